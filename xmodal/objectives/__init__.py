"""What training minimizes: objectives as pure functions and the thin Modules around them. Imports torch only."""

from xmodal.objectives.addr import ADDR, addr_loss
from xmodal.objectives.captioning import Captioner, caption_labels, captioning_loss
from xmodal.objectives.class_adversarial import ClassAdversary, reversal_ramp, reverse_gradient
from xmodal.objectives.daml import DAML, HardNegativeGenerator
from xmodal.objectives.ecaml import EnergyConfusion, energy_confusion_loss, row_norm_penalty
from xmodal.objectives.ie import IncludeExclude, center_loss, include_exclude_loss
from xmodal.objectives.metric import MetricLoss, MetricObjective, binomial_deviance_loss
from xmodal.objectives.ranking import HingeRanking, InfoNCE, hinge_ranking_loss, info_nce_loss

OBJECTIVES = {"hinge": HingeRanking, "info_nce": InfoNCE}
"""Objectives by the name that a configuration uses."""

METRIC_OBJECTIVES = {
    "metric": MetricObjective,
    "daml": DAML,
    "ecaml": EnergyConfusion,
    "ie": IncludeExclude,
    "class_adversarial": ClassAdversary,
}
"""Objectives on features and class labels by the name that a configuration uses."""

__all__ = [
    "ADDR",
    "DAML",
    "METRIC_OBJECTIVES",
    "OBJECTIVES",
    "Captioner",
    "ClassAdversary",
    "EnergyConfusion",
    "HardNegativeGenerator",
    "HingeRanking",
    "IncludeExclude",
    "InfoNCE",
    "MetricLoss",
    "MetricObjective",
    "addr_loss",
    "binomial_deviance_loss",
    "caption_labels",
    "captioning_loss",
    "center_loss",
    "energy_confusion_loss",
    "hinge_ranking_loss",
    "include_exclude_loss",
    "info_nce_loss",
    "reversal_ramp",
    "reverse_gradient",
    "row_norm_penalty",
]
