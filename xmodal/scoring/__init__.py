"""Every image against every caption: in blocks, with the exact metrics from low precision, or from a shortlist."""

from xmodal.scoring.blocks import score_all
from xmodal.scoring.exact import evaluate_exact

__all__ = ["evaluate_exact", "score_all"]
