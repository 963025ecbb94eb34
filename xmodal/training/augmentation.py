"""What training does to a batch at random: regions and words left out, masked, replaced; several views of a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils.operations import recursively_apply

from xmodal.data.region_store import RegionBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def repeated(batch: PairBatch, views: int) -> PairBatch:
    """Every pair so many times, one behind the other.

    Example:
        >>> import torch
        >>> from xmodal.data import PairBatch, RegionBatch
        >>> from xmodal.training.augmentation import repeated
        >>> real, pair = torch.ones(2, 3, dtype=torch.bool), torch.arange(2)
        >>> batch = PairBatch(RegionBatch(torch.randn(2, 3, 8), real), torch.ones(2, 3).long(), real, pair, pair)
        >>> repeated(batch, 2).image
        tensor([0, 0, 1, 1])
    """
    views_of_all: Any = recursively_apply(lambda tensor: tensor.repeat_interleave(views, dim=0), batch)
    return views_of_all


class Corruption(NamedTuple):
    """Words chosen at random: half of them are masked, a tenth becomes any word, the others are left out.

    As in the released code of VSE-infinity, whose paper speaks of words left out alone (vse_infty,
    lib/datasets/image_caption.py: process_caption; there whole words are chosen, here the tokens that captions come
    in). A caption that would lose all of them keeps all.

    Example:
        >>> import torch
        >>> from xmodal.data import PairBatch
        >>> from xmodal.training.augmentation import Corruption
        >>> tokens, real, pair = torch.full((8, 50), 7), torch.ones(8, 50, dtype=torch.bool), torch.arange(8)
        >>> batch = PairBatch(None, tokens, real, pair, pair)
        >>> changed = Corruption(share=0.5, mask=3, words=100, keep_ends=False)(batch)
        >>> bool((changed.tokens == 3).any()), changed.tokens.shape[1] < 50
        (True, True)
    """

    share: float
    mask: int
    """Number of the word that masks others."""
    words: int
    """How many words there are."""
    keep_ends: bool
    """Whether the first and the last token of a caption, which are no words of it, stay."""

    def __call__(self, batch: PairBatch) -> PairBatch:
        """The batch with other words. Draws from torch's global generator, whose state a checkpoint holds."""
        tokens, real = batch.tokens, batch.word_mask
        chosen = real & (torch.rand(tokens.shape, device=tokens.device) < self.share)
        if self.keep_ends:
            places = torch.arange(tokens.shape[1], device=tokens.device)
            last = real.sum(dim=1, keepdim=True) - 1
            chosen &= (places > 0) & (places != last)
        fate = torch.rand(tokens.shape, device=tokens.device)
        masked, replaced, gone = chosen & (fate < 0.5), chosen & (fate >= 0.5) & (fate < 0.6), chosen & (fate >= 0.6)
        anything = torch.randint(self.words, tokens.shape, device=tokens.device)
        tokens = torch.where(replaced, anything, tokens.masked_fill(masked, self.mask))
        left = real & ~gone
        kept = Kept.those(torch.where(left.any(dim=1, keepdim=True), left, real))
        return batch._replace(tokens=kept.of(tokens), word_mask=kept.mask)

    @classmethod
    def of(cls, share: float, words: Sequence[str], *, subwords: bool) -> Corruption:
        """For the words of a tokenizer: what masks is `<mask>` or `[MASK]` where it has that, else the unknown word.

        Raises:
            ValueError: the tokenizer has none of them.

        Example:
            >>> from xmodal.training.augmentation import Corruption
            >>> Corruption.of(0.2, ["<pad>", "<unk>", "dog"], subwords=False).mask
            1
        """
        masks = ("<mask>", "[MASK]", "<unk>", "[UNK]")
        mask = next((words.index(word) for word in masks if word in words), None)
        if mask is None:
            raise ValueError(f"corrupt_words is {share}, but the tokenizer has none of {', '.join(masks)}; set it to 0")
        return cls(share, mask, len(words), keep_ends=subwords)


def shrink(batch: PairBatch, drop_regions: float, drop_words: float) -> PairBatch:
    """Size augmentation (Chen et al., CVPR 2021, sec. 4.1): a batch without a share of its regions and words.

    Dropping regions takes images that are a `RegionBatch`.

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
