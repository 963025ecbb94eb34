"""How long scoring will take, told when its first tile is there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tqdm import tqdm

from xmodal.numerics import full_mask

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from xmodal.heads import Head
    from xmodal.scoring.plan import Tile
    from xmodal.scoring.sides import Side, Sides

logger = logging.getLogger("xmodal")

WORTH_TELLING = 10.0
"""Seconds from which on a person is told, beside the log."""


def expected_seconds(sides: Sides, tile: Tile, seconds: float) -> float:
    """Seconds of all pairs, if every real region and word costs as much as in the tile that took some.

    Example:
        >>> import torch
        >>> from xmodal.scoring.forecast import expected_seconds
        >>> from xmodal.scoring.plan import Tile
        >>> from xmodal.scoring.sides import Sides
        >>> words, real = torch.randn(4, 12, 8), torch.arange(12) < torch.tensor([[3], [3], [6], [12]])
        >>> sides = Sides.checked(torch.randn(10, 36, 8), words, None, real)
        >>> longest = Tile(torch.arange(5), torch.tensor([3]), torch.zeros(5, 1))
        >>> expected_seconds(sides, longest, seconds=2.0)  # half of the images, half of the words
        8.0
    """
    shares = [
        float(lengths[chosen].sum()) / float(lengths.sum())
        for lengths, chosen in ((_lengths(sides.images), tile.images), (_lengths(sides.captions), tile.captions))
    ]
    return seconds / (shares[0] * shares[1])


def tell(head: Head, sides: Sides, tile: Tile, seconds: float, *, progress: bool) -> None:
    """Log how long all pairs will take, and if that is long and progress is asked for, say so.

    Example:
        >>> import torch
        >>> from xmodal.heads import NAAF
        >>> from xmodal.scoring.forecast import tell
        >>> from xmodal.scoring.plan import Tile
        >>> from xmodal.scoring.sides import Sides
        >>> sides = Sides.checked(torch.randn(10, 36, 8), torch.randn(40, 12, 8))
        >>> tell(NAAF(), sides, Tile(torch.arange(10), torch.arange(4), torch.zeros(10, 4)), 60.0, progress=True)
        scoring NAAF, 10 x 40 pairs: about 10 min
    """
    expected = expected_seconds(sides, tile, seconds)
    images, captions = sides.shape
    told = f"scoring {type(head).__name__}, {images} x {captions} pairs: about {in_words(expected)}"
    logger.info(told)
    if progress and expected >= WORTH_TELLING:
        tqdm.write(told)


def in_words(seconds: float) -> str:
    """A time as a person says it.

    Example:
        >>> from xmodal.scoring.forecast import in_words
        >>> in_words(0.2), in_words(89), in_words(600), in_words(9000)
        ('1 s', '89 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _lengths(side: Side) -> Int[Tensor, " set"]:
    """How many items of every set are real."""
    return full_mask(side.items, side.mask).sum(dim=1).cpu()
