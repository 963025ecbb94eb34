"""What the scoring benchmark scores, and the bare product that it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

DISTINCTNESS = 0.3
"""How much an image has of its own beside what it shares with others: makes retrieval about as hard as Flickr30k."""


class Sets(NamedTuple):
    """Encoded images and captions: the arguments of `score_all`, and which image a caption describes."""

    regions: Tensor
    words: Tensor
    region_mask: None
    word_mask: Tensor
    caption_image: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, None, Tensor]:
        """What is scored."""
        return self.regions, self.words, self.region_mask, self.word_mask


def random_sets(images: int, captions: int, *, regions: int = 36, dim: int = 1024) -> Sets:
    """Unit features; caption lengths are log-normal around 12 tokens with a long tail, about as in COCO."""
    generator = torch.Generator().manual_seed(0)
    lengths = (2.45 + 0.3 * torch.randn(captions, generator=generator)).exp().round().long().clamp(3, 50)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    caption_image = torch.arange(captions) * images // captions
    # Images come in tens that look alike; a word resembles one region of its image, some words hardly at all.
    scenes = torch.randn(-(-images // 10), regions, dim, generator=generator).repeat_interleave(10, dim=0)[:images]
    features = F.normalize(scenes + DISTINCTNESS * torch.randn(images, regions, dim, generator=generator), dim=-1)
    words = torch.zeros(*mask.shape, dim)
    words[mask] = F.normalize(torch.randn(int(mask.sum()), dim, generator=generator), dim=-1)
    picked = torch.randint(regions, mask.shape, generator=generator)[mask]
    likeness = torch.rand(len(picked), 1, generator=generator)
    resembled = features[caption_image[:, None].expand(mask.shape)[mask], picked]
    words[mask] = F.normalize(words[mask].add_(resembled.mul_(likeness)), dim=-1)
    return Sets(features, words, None, mask, caption_image)


class BareProduct:
    """Every region times every real word, packed beforehand, a cache-sized block at a time into one buffer.

    What no head that attends can go below; nothing but the products is timed. Words are filled up with zeros to a
    multiple of 16, as products in rows that start within a cache line take up to half as long again.
    """

    def __init__(self, sets: Sets, dtype: torch.dtype = torch.float32) -> None:
        self.rows, columns = sets.regions.flatten(0, 1).to(dtype), sets.words[sets.word_mask].to(dtype)
        self.columns = F.pad(columns, (0, 0, 0, -len(columns) % 16))
        self.buffer = torch.empty(1024 * 800, dtype=dtype)

    def __call__(self) -> None:
        """The products, and nothing kept of them."""
        for columns in self.columns.split(800):
            for rows in self.rows.split(1024):
                out = self.buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
                torch.mm(rows, columns.T, out=out)
