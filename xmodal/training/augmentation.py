"""Size augmentation: leave out some regions and words at random (Chen et al., CVPR 2021, sec. 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.data.region_store import RegionBatch

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Shaped
    from torch import Tensor

    from xmodal.data import PairBatch


def drop_at_random(mask: Bool[Tensor, "set item"], share: float) -> Kept:
    """Choose what stays when about a share of the real items of every set goes; a set that would lose all keeps all.

    Draws from torch's global generator, whose state a checkpoint holds.

    Example:
        >>> import torch
        >>> kept = drop_at_random(torch.ones(2, 6, dtype=torch.bool), share=0.5)
        >>> items = kept.of(torch.arange(12).view(2, 6))
        >>> bool((items.diff(dim=1)[kept.mask[:, 1:]] > 0).all()), items.shape[1] <= 6
        (True, True)
    """
    kept = mask & (torch.rand(mask.shape, device=mask.device) >= share)
    return Kept.those(torch.where(kept.any(dim=1, keepdim=True), kept, mask))


class Kept(NamedTuple):
    """Which items of every set stay, in their order, padded to the most."""

    order: Int[Tensor, "set kept"]
    mask: Bool[Tensor, "set kept"]

    @classmethod
    def those(cls, kept: Bool[Tensor, "set item"]) -> Kept:
        """The items where a mask is True."""
        order = (~kept).int().argsort(dim=1, stable=True)[:, : int(kept.sum(dim=1).max())]
        return cls(order, kept.gather(1, order))

    def of(self, items: Shaped[Tensor, "set item *dim"]) -> Shaped[Tensor, "set kept *dim"]:
        """These items of some."""
        return items[torch.arange(len(items), device=items.device)[:, None], self.order]


def shrink(batch: PairBatch, drop_regions: float, drop_words: float) -> PairBatch:
    """A batch without a share of its regions and words; dropping regions takes images that are a `RegionBatch`.

    Example:
        >>> import torch
        >>> from xmodal.data import PairBatch, RegionBatch
        >>> from xmodal.training.augmentation import shrink
        >>> real, tokens = torch.ones(2, 36, dtype=torch.bool), torch.ones(2, 12, dtype=torch.long)
        >>> images = RegionBatch(torch.randn(2, 36, 8), real)
        >>> batch = PairBatch(images, tokens, real[:, :12], torch.arange(2), torch.arange(2))
        >>> smaller = shrink(batch, drop_regions=0.5, drop_words=0.0)
        >>> bool(smaller.images.region_mask.sum() < real.sum()), smaller.tokens.shape
        (True, torch.Size([2, 12]))
    """
    if drop_regions > 0:
        images = batch.images
        kept = drop_at_random(images.region_mask, drop_regions)
        boxes = None if images.boxes is None else kept.of(images.boxes)
        batch = batch._replace(images=RegionBatch(kept.of(images.regions), kept.mask, boxes))
    if drop_words > 0:
        kept = drop_at_random(batch.word_mask, drop_words)
        batch = batch._replace(tokens=kept.of(batch.tokens), word_mask=kept.mask)
    return batch
