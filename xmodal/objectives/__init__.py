"""What training minimizes: objectives as pure functions and the thin Modules around them. Imports torch only."""

from xmodal.objectives.captioning import Captioner, caption_labels, captioning_loss
from xmodal.objectives.ranking import HingeRanking, InfoNCE, hinge_ranking_loss, info_nce_loss

OBJECTIVES = {"hinge": HingeRanking, "info_nce": InfoNCE}
"""Objectives by the name that a configuration uses."""

__all__ = [
    "OBJECTIVES",
    "Captioner",
    "HingeRanking",
    "InfoNCE",
    "caption_labels",
    "captioning_loss",
    "hinge_ranking_loss",
    "info_nce_loss",
]
