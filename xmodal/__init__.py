"""xmodal: image-text matching as one living package.

Two towers embed, a head compares, an objective judges. Importing xmodal loads torch and nothing heavier: the heads and
the objectives at once, `Matcher`, `Embedder`, `RegionStore`, `Vocabulary` and both evaluations when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xmodal.heads import BFAN, SCAN, VSRN, Cosine, bfan_scores, cosine_scores, scan_scores
from xmodal.objectives import ADDR, addr_loss, hinge_ranking_loss, info_nce_loss

if TYPE_CHECKING:
    from xmodal.data import RegionStore, Vocabulary
    from xmodal.evaluation import evaluate_embeddings, evaluate_retrieval
    from xmodal.model import Embedder, Matcher

__version__ = "0.1.0"

__all__ = [
    "ADDR",
    "BFAN",
    "SCAN",
    "VSRN",
    "Cosine",
    "Embedder",
    "Matcher",
    "RegionStore",
    "Vocabulary",
    "addr_loss",
    "bfan_scores",
    "cosine_scores",
    "evaluate_embeddings",
    "evaluate_retrieval",
    "hinge_ranking_loss",
    "info_nce_loss",
    "scan_scores",
]

_LATER = {
    "Embedder": "xmodal.model",
    "Matcher": "xmodal.model",
    "RegionStore": "xmodal.data",
    "Vocabulary": "xmodal.data",
    "evaluate_embeddings": "xmodal.evaluation",
    "evaluate_retrieval": "xmodal.evaluation",
}


def __getattr__(name: str) -> Any:
    """Import what is heavier than torch when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'xmodal' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    """What is here already and what is imported when it is first asked for."""
    return sorted({*globals(), *__all__})
