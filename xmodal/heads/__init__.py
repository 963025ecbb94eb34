"""What compares: matching heads as pure functions and the thin Modules around them.

This folder imports torch and nothing else, and knows nothing of files, trainers or devices: copy a call of
`scan_scores` into any project.
"""

from xmodal.heads.adapt import ADAPT
from xmodal.heads.base import Attention, Explanation, Head
from xmodal.heads.bfan import BFAN, bfan_attention, bfan_pair_scores, bfan_scores
from xmodal.heads.chan import CHAN, chan_pair_scores, chan_scores
from xmodal.heads.cosine import Cosine, cosine_scores
from xmodal.heads.dprnn import DPRNN
from xmodal.heads.mtfn import MTFN
from xmodal.heads.naaf import NAAF, naaf_pair_scores, naaf_scores
from xmodal.heads.rdan import RDANStyle
from xmodal.heads.scan import SCAN, SCAN_PUBLISHED, scan_attention, scan_pair_scores, scan_scores
from xmodal.heads.sgraf import SGRAF
from xmodal.heads.vsrn import VSRN, vsrn_scores

HEADS: dict[str, type[Head]] = {
    "scan": SCAN,
    "bfan": BFAN,
    "vsrn": VSRN,
    "cosine": Cosine,
    "chan": CHAN,
    "sgraf": SGRAF,
    "naaf": NAAF,
    "mtfn": MTFN,
    "adapt": ADAPT,
    "dprnn": DPRNN,
    "rdan_style": RDANStyle,
}
"""Heads by the name that a configuration uses."""

__all__ = [
    "ADAPT",
    "BFAN",
    "CHAN",
    "DPRNN",
    "HEADS",
    "MTFN",
    "NAAF",
    "SCAN",
    "SCAN_PUBLISHED",
    "SGRAF",
    "VSRN",
    "Attention",
    "Cosine",
    "Explanation",
    "Head",
    "RDANStyle",
    "bfan_attention",
    "bfan_pair_scores",
    "bfan_scores",
    "chan_pair_scores",
    "chan_scores",
    "cosine_scores",
    "naaf_pair_scores",
    "naaf_scores",
    "scan_attention",
    "scan_pair_scores",
    "scan_scores",
    "vsrn_scores",
]
