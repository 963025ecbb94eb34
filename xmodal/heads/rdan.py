"""RDAN-style: our reading of relation-wise dual attention (after Hu et al., IJCAI 2019).

Of the paper only its abstract could be read: an over-complete set of region-word pairs, a relation CNN that encodes
local correlations and global dependencies on it, and dual-pathway attention. Every equation here is ours, so that no
figure of the paper can be expected of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from xmodal.heads.attention import tile_bytes
from xmodal.heads.base import Attention, Head, check_inputs, check_items, every_pair, xavier
from xmodal.masks import lengths
from xmodal.numerics import Positive, Size, at_least_float32, check_count, check_number, full_mask, unit_length

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class DualAttention(NamedTuple):
    """The score of pairs and where their words and regions look."""

    scores: Float[Tensor, " pair"]
    to_regions: Float[Tensor, "pair word region"]
    to_words: Float[Tensor, "pair region word"]


def dual_attention(
    regions: Float[Tensor, "pair region dim"],
    words: Float[Tensor, "pair word dim"],
    to_regions: Float[Tensor, "pair region word"],
    to_words: Float[Tensor, "pair region word"],
    region_mask: Bool[Tensor, "pair region"],
    word_mask: Bool[Tensor, "pair word"],
) -> DualAttention:
    """Words attend over regions and regions over words; half the sum of the mean cosines of both (ours).

    Args:
        regions: of the image of every pair; padding is zero.
        words: of its caption; padding is zero.
        to_regions: logits of the attention of words over regions.
        to_words: logits of that of regions over words.
        region_mask: True = real region.
        word_mask: True = real word.

    Example:
        >>> import torch
        >>> from xmodal.heads.rdan import dual_attention
        >>> items, real = torch.eye(2)[None], torch.ones(1, 2, dtype=torch.bool)
        >>> dual_attention(items, items, 50 * items, 50 * items, real, real).scores
        tensor([1.])
    """
    over_regions = to_regions.masked_fill(~region_mask[..., None], float("-inf")).softmax(dim=1).transpose(1, 2)
    over_words = to_words.masked_fill(~word_mask[:, None], float("-inf")).softmax(dim=2)
    agreements = [
        (unit_length(asking) * unit_length(weights @ asked)).sum(dim=2).sum(dim=1) / mask.sum(dim=1)
        for asking, asked, weights, mask in (
            (words, regions, over_regions, word_mask),
            (regions, words, over_words, region_mask),
        )
    ]
    return DualAttention(
        (agreements[0] + agreements[1]) / 2,
        over_regions.masked_fill(~word_mask[..., None], 0.0),
        over_words.masked_fill(~region_mask[..., None], 0.0),
    )


class RDANStyle(Head):
    """RDAN-style, in equations of our own: a small CNN on the region-word pairs guides attention in both directions.

    Every region and word make a relation r_ij = relu(U v_i + W e_j + b + (P v_i) o (Q e_j)); a convolution along the
    words and one of a single pair find local correlations, means over words, regions and all of them what depends on
    the whole, and both are added to the relations, which a layer norm follows. Linear maps of these are added to
    `temperature` v_i . e_j for the logits of `dual_attention`. Relations are made of every pair of an image and a
    caption: these are compared in blocks, and in training computed again for the gradient instead of being kept.

    Args:
        dim: dim of the joint space.
        relation_dim: dim of a relation (128).
        temperature: of the products beside the relations in both attentions, > 0 (9, as SCAN's).

    Raises:
        ValueError: for a temperature that is not positive or a dim that is not.

    Example:
        >>> import torch
        >>> from xmodal.heads import RDANStyle
        >>> RDANStyle(dim=64, relation_dim=16)(torch.randn(4, 36, 64), torch.randn(6, 12, 64)).shape
        torch.Size([4, 6])
    """

    def __init__(self, dim: Size, relation_dim: Size = 128, temperature: Positive = 9.0) -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        check_count("dim", dim)
        check_count("relation_dim", relation_dim)
        self.temperature = temperature
        self.region_sum, self.word_sum = nn.Linear(dim, relation_dim), nn.Linear(dim, relation_dim, bias=False)
        self.region_factor = nn.Linear(dim, relation_dim, bias=False)
        self.word_factor = nn.Linear(dim, relation_dim, bias=False)
        self.single = nn.Linear(relation_dim, relation_dim)
        self.neighbors = nn.Conv1d(relation_dim, relation_dim, 3, padding=1, bias=False)  # the single one has a bias
        self.whole = nn.Linear(3 * relation_dim, relation_dim)
        self.update = nn.Linear(2 * relation_dim, relation_dim)
        self.norm = nn.LayerNorm(relation_dim)
        self.to_regions, self.to_words = nn.Linear(relation_dim, 1), nn.Linear(relation_dim, 1)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                xavier(layer)

    def embed_images(self, regions, region_mask=None):
        """The regions in at least the precision of the weights; padding is zero."""
        check_items(regions, region_mask, "regions", "region_mask", "image region dim")
        return self._zeroed(regions, full_mask(regions, region_mask))

    def embed_captions(self, words, word_mask=None):
        """The words in at least the precision of the weights; padding is zero."""
        check_items(words, word_mask, "words", "word_mask", "caption word dim")
        return self._zeroed(words, full_mask(words, word_mask))

    def compare(self, images, captions, region_mask=None, word_mask=None):  # noqa: D102
        region_mask, word_mask = full_mask(images, region_mask), full_mask(captions, word_mask)
        if torch.compiler.is_exporting():  # neither lengths nor memory are known in a graph
            image, caption = every_pair(images, captions)
            pairs = self._attend(images[image], captions[caption], region_mask[image], word_mask[caption])
            return pairs.scores.view(images.shape[0], captions.shape[0])
        ends = torch.tensor(lengths(word_mask), device="cpu")
        size = max(1, tile_bytes(images.device) // (self.pair_bytes(images[:1], captions[:1]) * len(images)))

        def column(some: Tensor) -> Float[Tensor, "image caption"]:
            longest = int(ends[some].max())
            image = torch.arange(len(images), device=images.device).repeat_interleave(len(some))
            caption = some.repeat(len(images))
            words, real = captions[caption, :longest], word_mask[caption, :longest]
            return self._attend(images[image], words, region_mask[image], real).scores.view(-1, len(some))

        order = ends.argsort()
        if torch.is_grad_enabled():  # the relations of all pairs would not fit beside one another
            columns = [checkpoint(column, some, use_reentrant=False) for some in order.split(size)]
        else:
            columns = [column(some) for some in order.split(size)]
        return torch.cat(columns, dim=1)[:, order.argsort()]

    def pairs(self, regions, words, region_mask=None, word_mask=None):  # noqa: D102
        return self._attend(*self._aligned(regions, words, region_mask, word_mask)).scores

    def attention(self, regions, words, region_mask=None, word_mask=None):
        """The attention of words over regions."""
        return Attention(self._attend(*self._aligned(regions, words, region_mask, word_mask)).to_regions)

    def pair_bytes(self, image, caption):
        """About ten times the relations, and copies of both sides."""
        relations = image.shape[1] * caption.shape[1] * self.norm.normalized_shape[0]
        return image.element_size() * (10 * relations + 3 * image.numel() + 3 * caption.numel())

    def extra_repr(self) -> str:  # noqa: D102
        return f"temperature={self.temperature}"

    def _zeroed(self, items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]) -> Tensor:
        return items.to(self.region_sum.weight.dtype).masked_fill(~mask[..., None], 0.0)

    def _aligned(
        self, regions: Tensor, words: Tensor, region_mask: Tensor | None, word_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_inputs(regions, words, region_mask, word_mask, aligned=True)
        region_mask, word_mask = full_mask(regions, region_mask), full_mask(words, word_mask)
        images, captions = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return images, captions, region_mask, word_mask

    def _attend(
        self,
        regions: Float[Tensor, "pair region dim"],
        words: Float[Tensor, "pair word dim"],
        region_mask: Bool[Tensor, "pair region"],
        word_mask: Bool[Tensor, "pair word"],
    ) -> DualAttention:
        relations = self._relations(regions, words, region_mask, word_mask)
        products = self.temperature * at_least_float32(regions @ words.transpose(1, 2))
        to_regions, to_words = (
            products + at_least_float32(layer(relations)[..., 0]) for layer in (self.to_regions, self.to_words)
        )
        sides = at_least_float32(regions), at_least_float32(words)
        return dual_attention(*sides, to_regions, to_words, region_mask, word_mask)

    def _relations(
        self,
        regions: Float[Tensor, "pair region dim"],
        words: Float[Tensor, "pair word dim"],
        region_mask: Bool[Tensor, "pair region"],
        word_mask: Bool[Tensor, "pair word"],
    ) -> Float[Tensor, "pair region word relation"]:
        padding = ~(region_mask[:, :, None] & word_mask[:, None])[..., None]
        sums = self.region_sum(regions)[:, :, None] + self.word_sum(words)[:, None]
        factors = self.region_factor(regions)[:, :, None] * self.word_factor(words)[:, None]
        relations = (sums + factors).relu().masked_fill(padding, 0.0)
        local = (self.single(relations) + self._along(relations, word_mask)).relu().masked_fill(padding, 0.0)
        region_count, word_count = (
            region_mask.sum(dim=1)[:, None, None, None],
            word_mask.sum(dim=1)[:, None, None, None],
        )
        of_region = local.sum(dim=2, keepdim=True) / word_count
        of_word = local.sum(dim=1, keepdim=True) / region_count
        of_all = of_region.sum(dim=1, keepdim=True) / region_count
        means = torch.cat([mean.expand_as(local) for mean in (of_region, of_word, of_all)], dim=-1)
        whole = self.whole(means.to(local.dtype)).relu()
        return self.norm(relations + self.update(torch.cat([local, whole], dim=-1)))

    def _along(
        self, relations: Float[Tensor, "pair region word relation"], word_mask: Bool[Tensor, "pair word"]
    ) -> Float[Tensor, "pair region word relation"]:
        """The convolution along the real words, whatever padding is between them."""
        real_first = (~word_mask).int().argsort(dim=1, stable=True)
        places = real_first[:, None, :, None].expand_as(relations)
        rows = relations.gather(2, places).flatten(0, 1)
        found = self.neighbors(rows.transpose(1, 2)).transpose(1, 2).reshape(relations.shape)
        return found.gather(2, real_first.argsort(dim=1)[:, None, :, None].expand_as(found))
