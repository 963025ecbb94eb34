"""What training minimizes: objectives as pure functions and the thin Modules around them. Imports torch only.

One convention holds for all:

- a function (`hinge_ranking_loss`, `info_nce_loss`, `energy_confusion_loss`, ...) returns its loss, a scalar tensor;
- an objective, a Module of `OBJECTIVES` or `METRIC_OBJECTIVES`, returns a dict of named scalar terms, of which `total`
  is what is minimized: `HingeRanking()(scores)["total"].backward()`. So do the methods of `ADDR` and `addr_loss`, which
  is the whole of ADDR in one call;
- `step`, the optimizer's step (0-based), matters to objectives that warm up, and none of them needs it: without it
  every warm-up is over.

`MetricLoss` is no objective but the term that those of `METRIC_OBJECTIVES` are made of: it is called like a function of
embeddings and labels and returns a tensor. `Captioner` is a network, whose `loss` is a tensor as well.
"""

from xmodal.objectives.addr import ADDR, MeanMatch, addr_loss, mean_match_loss
from xmodal.objectives.captioning import Captioner, caption_labels, captioning_loss
from xmodal.objectives.class_adversarial import ClassAdversary, reversal_ramp, reverse_gradient
from xmodal.objectives.daml import DAML, HardNegativeGenerator
from xmodal.objectives.ecaml import EnergyConfusion, energy_confusion_loss, row_norm_penalty
from xmodal.objectives.esa import ESARanking, esa_ranking_loss
from xmodal.objectives.ie import IncludeExclude, center_loss, include_exclude_loss
from xmodal.objectives.metric import MetricLoss, MetricObjective, binomial_deviance_loss
from xmodal.objectives.ranking import HingeRanking, InfoNCE, hinge_ranking_loss, info_nce_loss

OBJECTIVES = {"hinge": HingeRanking, "info_nce": InfoNCE, "esa": ESARanking}
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
    "ESARanking",
    "EnergyConfusion",
    "HardNegativeGenerator",
    "HingeRanking",
    "IncludeExclude",
    "InfoNCE",
    "MeanMatch",
    "MetricLoss",
    "MetricObjective",
    "addr_loss",
    "binomial_deviance_loss",
    "caption_labels",
    "captioning_loss",
    "center_loss",
    "energy_confusion_loss",
    "esa_ranking_loss",
    "hinge_ranking_loss",
    "include_exclude_loss",
    "info_nce_loss",
    "mean_match_loss",
    "reversal_ramp",
    "reverse_gradient",
    "row_norm_penalty",
]
