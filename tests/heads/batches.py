"""Random batches for the tests of heads, and the heads whose common properties are tested."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple, get_args

import torch
from hypothesis import strategies as st
from torch import Tensor

from xmodal.heads import BFAN, SCAN, Cosine, Head
from xmodal.heads.attention import Aggregation, Direction, Normalization

SCAN_VARIANTS = list(product(get_args(Direction), get_args(Normalization), get_args(Aggregation)))

ALL_HEADS: list[Head] = [
    *(SCAN(*variant, temperature=4.0, lse_scale=5.0) for variant in SCAN_VARIANTS),
    BFAN("prob", temperature=4.0),
    BFAN("equal", temperature=4.0),
    Cosine("mean"),
    Cosine("max"),
]
"""Every variant without parameters."""


class Batch(NamedTuple):
    """The arguments of a head."""

    regions: Tensor
    words: Tensor
    region_mask: Tensor
    word_mask: Tensor


def random_mask(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Real items anywhere in a row, at least one."""
    mask = torch.rand(count, length, generator=generator) < 0.6
    mask[torch.arange(count), torch.randint(length, (count,), generator=generator)] = True
    return mask


def random_batch(
    seed: int = 0, images: int = 3, captions: int = 4, regions: int = 5, words: int = 6, dim: int = 8
) -> Batch:
    """Features in float64, not normalized, with zero padding."""
    generator = torch.Generator().manual_seed(seed)
    region_mask = random_mask(images, regions, generator)
    word_mask = random_mask(captions, words, generator)
    return Batch(
        torch.randn(images, regions, dim, generator=generator, dtype=torch.float64) * region_mask[..., None],
        torch.randn(captions, words, dim, generator=generator, dtype=torch.float64) * word_mask[..., None],
        region_mask,
        word_mask,
    )


def batches(**fixed: int) -> st.SearchStrategy[Batch]:
    """Batches of every small shape; single images, regions, captions and words among them."""
    sizes = {
        "images": st.integers(1, 4),
        "captions": st.integers(1, 4),
        "regions": st.integers(1, 5),
        "words": st.integers(1, 5),
        "dim": st.integers(3, 8),
    }
    sizes |= {name: st.just(size) for name, size in fixed.items()}
    return st.builds(random_batch, seed=st.integers(0, 2**31), **sizes)


def unit(items: Tensor) -> Tensor:
    """Rows of length one, as the published encoders give; zero rows stay zero."""
    return torch.nn.functional.normalize(items, dim=-1)
