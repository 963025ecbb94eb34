"""Every image against every caption, in blocks under a byte budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        word_mask: True = real word; real words come first.
        budget_bytes: bound on the temporary memory of one block; 1 GiB by default. The result does not depend on it.
        dtype: compute in this dtype instead of that of the inputs.
        device: compute there instead of on the device of `regions`.
        progress: show a bar.

    Returns:
        Scores on the CPU, at least float32.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring import score_all
        >>> score_all(SCAN(), torch.randn(4, 36, 64), torch.randn(6, 12, 64)).shape
        torch.Size([4, 6])
    """
    target = {"device": device or regions.device, "dtype": dtype or regions.dtype}
    lengths = torch.full((len(words),), words.shape[1]) if word_mask is None else word_mask.sum(dim=1).cpu()
    if word_mask is None:
        word_mask = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
    if region_mask is None:
        region_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
    order = lengths.argsort(stable=True)
    block = _block_size(regions, words, budget_bytes or DEFAULT_BUDGET_BYTES)

    images = []
    for start in range(0, len(regions), block):
        part, mask = regions[start : start + block].to(**target), region_mask[start : start + block]
        images.append((head.embed_images(part, mask.to(part.device)), mask.to(part.device)))

    scores = torch.empty(len(regions), len(words))
    with tqdm(total=scores.numel(), unit="pair", unit_scale=True, desc="scoring", disable=not progress) as bar:
        for start in range(0, len(words), block):
            chosen = order[start : start + block]
            longest = int(lengths[chosen[-1]])
            rows = chosen.to(words.device)
            mask = word_mask[rows, :longest].to(target["device"])
            captions = head.embed_captions(words[rows, :longest].to(**target), mask)
            first = 0
            for part, part_mask in images:
                tile = head.compare(part, captions, part_mask, mask)
                scores = scores.to(torch.promote_types(scores.dtype, tile.dtype))
                scores[first : first + len(part), chosen] = tile.to("cpu", scores.dtype)
                first += len(part)
                bar.update(tile.numel())
    return scores


def _block_size(regions: Tensor, words: Tensor, budget_bytes: int) -> int:
    """Images and captions a block, such that a block's products and their few temporaries stay under the budget."""
    temporaries = 6
    pair_bytes = regions.shape[1] * words.shape[1] * 4 * temporaries
    return max(1, int((budget_bytes / pair_bytes) ** 0.5))
