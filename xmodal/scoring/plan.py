"""How to score, decided before the first score is computed, and what comes of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.scoring.backends import choose_backend
from xmodal.scoring.memory import check_budget

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.heads import Head
    from xmodal.scoring.backends import Backend
    from xmodal.scoring.sides import Sides

logger = logging.getLogger("xmodal")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What products may be computed in."""


class Plan(NamedTuple):
    """How to score; see `xmodal.scoring.score_all`."""

    budget_bytes: int
    dtype: torch.dtype
    device: torch.device
    backend: Backend

    @property
    def exact_dtype(self) -> torch.dtype:
        """Of what is done once an item, and of scores."""
        return result_dtype(self.dtype)


class Tile(NamedTuple):
    """Scores of some images against some captions."""

    images: Int[Tensor, " image"]
    captions: Int[Tensor, " caption"]
    scores: Float[Tensor, "image caption"]


def make_plan(
    head: Head,
    sides: Sides,
    *,
    budget_bytes: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: Backend | None = None,
) -> Plan:
    """How to score, with all that was left to `score_all` to choose, whose arguments these are.

    Raises:
        ValueError: for a dtype that products cannot have, and as `score_all`.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring.plan import make_plan
        >>> from xmodal.scoring.sides import Sides
        >>> sides = Sides.checked(torch.randn(4, 36, 64), torch.randn(6, 12, 64))
        >>> plan = make_plan(SCAN(), sides, dtype=torch.bfloat16, device="cpu")
        >>> plan.dtype, plan.backend
        (torch.bfloat16, 'eager')
    """
    regions, words = sides.images.items, sides.captions.items
    device, dtype = torch.device(device or regions.device), dtype or regions.dtype
    if dtype not in DTYPES:
        known = ", ".join(str(each) for each in DTYPES)
        raise ValueError(f"dtype is {dtype}; scores can be computed in {known}")
    backend = choose_backend(backend, head, dtype, device, (regions.shape[1], words.shape[1]))
    logger.info("scoring %s in %s on %s, backend %s", type(head).__name__, dtype, device, backend)
    return Plan(check_budget(budget_bytes, device), dtype, device, backend)


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores are at least float32.

    Example:
        >>> import torch
        >>> from xmodal.scoring.plan import result_dtype
        >>> result_dtype(torch.bfloat16), result_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)
