"""Every image against every caption: in blocks, with the exact metrics from low precision, or from a shortlist."""

from xmodal.scoring.blocks import score_all
from xmodal.scoring.exact import evaluate_exact
from xmodal.scoring.pairs import score_pairs
from xmodal.scoring.shortlist import Shortlist, shortlist

__all__ = ["Shortlist", "evaluate_exact", "score_all", "score_pairs", "shortlist"]
