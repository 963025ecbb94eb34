"""Every image against every caption, in blocks under a byte budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.heads import Head

DEFAULT_BUDGET_BYTES = 1 << 30


@torch.no_grad()
def score_all(
    head: Head,
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    budget_bytes: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Float[Tensor, "image caption"]:
    """Scores of all pairs, equal to `head(regions, words, ...)` but in bounded memory and without needless padding.

    Per-item work of the head runs once an item. Captions are scored in order of their length, so that a block is
    padded to its own longest caption and not to that of the whole set.

    Args:
        head: any head.
        regions: encoded images, on any device.
        words: encoded captions.
        region_mask: True = real region.
        word_mask: True = real word.
        budget_bytes: bound on the temporary memory of one block; 1 GiB by default. The result does not depend on it.
        dtype: compare pairs in this dtype instead of that of the inputs; per-item work stays in that of the inputs.
        device: compute there instead of on the device of `regions`; the head must be there.
        progress: show a bar.

    Returns:
        Scores on the CPU, at least float32.

    Raises:
        ValueError: for a budget that is not positive.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring import score_all
        >>> score_all(SCAN(), torch.randn(4, 36, 64), torch.randn(6, 12, 64)).shape
        torch.Size([4, 6])
    """
    if budget_bytes is None:
        budget_bytes = DEFAULT_BUDGET_BYTES
    if budget_bytes <= 0:
        raise ValueError(f"budget_bytes must be positive, got {budget_bytes}")
    device, dtype = torch.device(device or regions.device), dtype or regions.dtype
    region_mask = torch.ones(regions.shape[:2], dtype=torch.bool) if region_mask is None else region_mask
    word_mask = torch.ones(words.shape[:2], dtype=torch.bool) if word_mask is None else word_mask
    block = _block_size(regions.shape[1] * words.shape[1], dtype, budget_bytes)

    images = []
    for part, mask in zip(regions.split(block), region_mask.split(block), strict=True):
        part, mask = part.to(device), mask.to(device)
        images.append((head.embed_images(part, mask).to(dtype), mask))

    ends = (word_mask.cpu() * torch.arange(1, words.shape[1] + 1)).amax(dim=1)  # after the last real word
    scores = torch.empty(len(regions), len(words), dtype=torch.promote_types(dtype, torch.float32))
    with tqdm(total=scores.numel(), unit="pair", unit_scale=True, desc="scoring", **bar_options(progress)) as bar:
        for chosen in ends.argsort(stable=True).split(block):
            longest = int(ends[chosen[-1]])
            part = words[chosen.to(words.device), :longest].to(device)
            mask = word_mask[chosen.to(word_mask.device), :longest].to(device)
            captions = head.embed_captions(part, mask).to(dtype)
            first = 0
            for embedded, embedded_mask in images:
                tile = head.compare(embedded, captions, embedded_mask, mask)
                scores[first : first + len(tile), chosen] = tile.to(scores)
                first += len(tile)
                bar.update(tile.numel())
    return scores


def bar_options(progress: bool) -> dict[str, Any]:
    """How progress bars of scoring behave: they appear after two seconds and leave nothing behind."""
    return {"disable": not progress, "delay": 2, "leave": False}


def _block_size(products: int, dtype: torch.dtype, budget_bytes: int) -> int:
    """Images and captions a block, such that a block's products and their few temporaries stay under the budget.

    Args:
        products: products of a region and a word in one pair.
        dtype: of the products; their temporaries take at least float32.
        budget_bytes: the budget.
    """
    temporaries = 6
    pair_bytes = products * max(4, dtype.itemsize) * temporaries
    return max(1, int((budget_bytes / pair_bytes) ** 0.5))
