"""Every image against every caption: in blocks, with the exact metrics from low precision, or from a shortlist."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xmodal.scoring.blocks import score_all
from xmodal.scoring.pairs import score_pairs
from xmodal.scoring.shortlist import Shortlist, shortlist

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Shortlist", "evaluate_exact", "score_all", "score_pairs", "shortlist"]

evaluate_exact: Callable[..., dict[str, Any]]


def __getattr__(name: str) -> Any:
    """`evaluate_exact` lives with the metrics that it gives, which import this package: it is found when asked for."""
    if name != "evaluate_exact":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("xmodal.evaluation.exact").evaluate_exact
