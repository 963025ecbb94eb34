"""Random embeddings that the suites score; caption lengths are about as in COCO."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


DISTINCTNESS = 0.3
"""How much an image has of its own beside what it shares with others: makes retrieval about as hard as Flickr30k."""
REGIONS, DIM = 36, 1024


class Batch(NamedTuple):
    """Unit features; words are padded with zeros to the longest caption."""

    regions: Tensor
    words: Tensor
    word_mask: Tensor


def random_word_mask(captions: int, generator: torch.Generator, *, shortest: int = 1, longest: int = 10_000) -> Tensor:
    """True = real word; lengths are log-normal around 12, with a long tail, as in COCO with start and end words."""
    device = generator.device
    lengths = (2.45 + 0.3 * torch.randn(captions, generator=generator, device=device)).exp().round().long()
    lengths = lengths.clamp(shortest, longest)
    return torch.arange(int(lengths.max()), device=device) < lengths[:, None]


def random_batch(images: int, captions: int) -> Batch:
    """Features without any likeness."""
    generator = torch.Generator().manual_seed(0)
    mask = random_word_mask(captions, generator)
    regions = torch.randn(images, REGIONS, DIM, generator=generator)
    words = torch.randn(*mask.shape, DIM, generator=generator) * mask[..., None]
    return Batch(F.normalize(regions, dim=-1), F.normalize(words, dim=-1), mask)


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


def random_sets(images: int, captions: int, *, regions: int = REGIONS, dim: int = DIM) -> Sets:
    """Unit features among which retrieval is about as hard as on Flickr30k."""
    generator = torch.Generator().manual_seed(0)
    mask = random_word_mask(captions, generator, shortest=3, longest=50)
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
