"""Deep adversarial metric learning (Duan et al., CVPR 2018; TIP 2020): negatives that a generator makes hard.

From an anchor a, its positive p and an easy negative n a generator makes a synthetic negative g, near the anchor, near
the negative it came from, and on the wrong side of the margin in the learned metric; the metric loss is then taken on
g in place of n. Triplet and contrastive are the paper's equations; N-pair, lifted and angular with synthetic negatives
were not readable and are this project's reading.
"""

from xmodal.objectives.daml.generator import HardNegativeGenerator
from xmodal.objectives.daml.losses import (
    SYNTHETIC_LOSSES,
    angular_on_synthetic,
    contrastive_on_synthetic,
    generator_losses,
    lifted_on_synthetic,
    n_pair_on_synthetic,
    triplet_on_synthetic,
)
from xmodal.objectives.daml.objective import DAML, Gradients, Synthesis
from xmodal.objectives.daml.triplets import TripletLayout, Triplets, batch_triplets

__all__ = [
    "DAML",
    "SYNTHETIC_LOSSES",
    "Gradients",
    "HardNegativeGenerator",
    "Synthesis",
    "TripletLayout",
    "Triplets",
    "angular_on_synthetic",
    "batch_triplets",
    "contrastive_on_synthetic",
    "generator_losses",
    "lifted_on_synthetic",
    "n_pair_on_synthetic",
    "triplet_on_synthetic",
]
