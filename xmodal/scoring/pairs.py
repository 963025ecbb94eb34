"""Some pairs out of all: the products of one image with all the captions it is asked for at once, or the other way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xmodal.scoring.blocks import result_dtype
from xmodal.scoring.memory import check_budget
from xmodal.scoring.packing import Collection
from xmodal.scoring.tiles import Scratch, fast_path, multiply

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.heads import Head

PACK_COST = 256
"""As in `packing`. A pack is multiplied with a single item here: less work a place, so that one more costs more."""


@torch.no_grad()
def score_pairs(
    head: Head,
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None,
    word_mask: Bool[Tensor, "caption word"] | None,
    images: Int[Tensor, " pair"],
    captions: Int[Tensor, " pair"],
    *,
    budget_bytes: int | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, " pair"]:
    """Scores of image `images[i]` and caption `captions[i]`, in at least float32; other arguments as for `score_all`.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring import score_pairs
        >>> regions, words = torch.randn(4, 36, 64), torch.randn(6, 12, 64)
        >>> score_pairs(SCAN(), regions, words, None, None, torch.tensor([3, 0]), torch.tensor([5, 1])).shape
        torch.Size([2])
    """
    device = torch.device(device or regions.device)
    budget = check_budget(budget_bytes, device)
    dtype = result_dtype(regions.dtype)
    scores = torch.empty(len(images), dtype=dtype)
    path, scratch = fast_path(head.comparison), Scratch()
    if path is None:
        pair_bytes = regions[0].nbytes + words[0].nbytes
        for some in torch.arange(len(images)).split(max(1, budget // 4 // pair_bytes)):
            sides = ((regions, region_mask, images), (words, word_mask, captions))
            (left, left_mask), (right, right_mask) = (_taken(*side, some, device) for side in sides)
            scores[some] = head.pairs(left, right, left_mask, right_mask).to(scores)
        return scores
    image_side = (Collection(regions, region_mask, dtype, device), path.images, images)
    caption_side = (Collection(words, word_mask, dtype, device), path.captions, captions)
    by_image = len(images.unique()) <= len(captions.unique())
    (anchors, anchor_use, which), (others, other_use, asked) = (
        (image_side, caption_side) if by_image else (caption_side, image_side)
    )
    order = which.argsort(stable=True)
    distinct, counts = which[order].unique_consecutive(return_counts=True)
    max_rows = max(1, budget // 4 // others.row_bytes)
    for anchor, run in zip(distinct, order.split(counts.tolist()), strict=True):
        one = anchors.block([anchor[None]], anchor_use)
        for parts in others.divide(asked[run], max_rows, pack_cost=PACK_COST):
            many = others.block([asked[run[part]] for part in parts], other_use)
            image_block, caption_block = (one, many) if by_image else (many, one)
            products = multiply(image_block, caption_block, path, scratch)
            tile = path.score(products, image_block, caption_block, scratch)
            scores[run[torch.cat(parts)]] = tile.flatten().to(scores)
    return scores


def _taken(
    items: Tensor, mask: Tensor | None, index: Tensor, some: Tensor, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The items and masks of one side of some pairs."""
    chosen = index[some]
    taken = items[chosen.to(items.device)].to(device)
    return taken, None if mask is None else mask[chosen.to(mask.device)].to(device)
