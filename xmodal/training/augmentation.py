"""Size augmentation: leave out some regions and words at random (Chen et al., CVPR 2021, sec. 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Shaped
    from torch import Tensor

    from xmodal.data import PairBatch


def drop_at_random(
    items: Shaped[Tensor, "set item *dim"], mask: Bool[Tensor, "set item"], share: float
) -> tuple[Shaped[Tensor, "set kept *dim"], Bool[Tensor, "set kept"]]:
    """Drop about a share of the real items of every set, in their order; a set that would lose all keeps all.

    Draws from torch's global generator, whose state a checkpoint holds.

    Example:
        >>> import torch
        >>> items, mask = drop_at_random(torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.bool), share=0.5)
        >>> bool((items.diff(dim=1)[mask[:, 1:]] > 0).all()), mask.shape[1] <= 6
        (True, True)
    """
    kept = mask & (torch.rand(mask.shape, device=mask.device) >= share)
    kept = torch.where(kept.any(dim=1, keepdim=True), kept, mask)
    order = (~kept).int().argsort(dim=1, stable=True)[:, : int(kept.sum(dim=1).max())]
    rows = torch.arange(len(items), device=items.device)[:, None]
    return items[rows, order], kept[rows, order]


def shrink(batch: PairBatch, drop_regions: float, drop_words: float) -> PairBatch:
    """A batch without a share of its regions and words.

    Example:
        >>> import torch
        >>> from xmodal.data import PairBatch
        >>> from xmodal.training.augmentation import shrink
        >>> real, tokens = torch.ones(2, 36, dtype=torch.bool), torch.ones(2, 12, dtype=torch.long)
        >>> batch = PairBatch(torch.randn(2, 36, 8), real, tokens, real[:, :12], torch.arange(2), torch.arange(2))
        >>> smaller = shrink(batch, drop_regions=0.5, drop_words=0.0)
        >>> bool(smaller.region_mask.sum() < real.sum()), smaller.tokens.shape
        (True, torch.Size([2, 12]))
    """
    if drop_regions > 0:
        features, mask = drop_at_random(batch.region_features, batch.region_mask, drop_regions)
        batch = batch._replace(region_features=features, region_mask=mask)
    if drop_words > 0:
        tokens, mask = drop_at_random(batch.tokens, batch.word_mask, drop_words)
        batch = batch._replace(tokens=tokens, word_mask=mask)
    return batch
