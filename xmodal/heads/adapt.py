"""ADAPT: adaptive cross-modal embeddings (Wehrmann et al., AAAI 2020)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from xmodal.heads.attention import Direction, tile_bytes
from xmodal.heads.base import Head, check_inputs, check_items
from xmodal.heads.foveae import Fovea, foveal_sums
from xmodal.heads.foveal_maxima import Asked, maxima_sums
from xmodal.heads.pooling import POOLERS, make_pooler
from xmodal.masks import lengths
from xmodal.numerics import (
    Positive,
    Size,
    at_least_float32,
    check_count,
    check_number,
    full_mask,
    no_autocast,
    normed_real,
    unit_length,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float
    from torch import Tensor


def adapted_vectors(
    values: Float[Tensor, "*#pair item dim"],
    mask: Bool[Tensor, "*#pair item"],
    gains: Float[Tensor, "*#pair dim"],
    shifts: Float[Tensor, "*#pair dim"],
    *,
    temperature: float = 10.0,
    direction: Direction = "t2i",
) -> Float[Tensor, "*pairs dim"]:
    """One unit vector of a set, adapted to a query: modulated, foveated and pooled (ADAPT eq. 2-8).

    The items become x_i = v_i o (1 + gain) + shift; every channel of them is multiplied with its softmax over the
    items (the fovea), and the mean over the items (`t2i`) or the maximum (`i2t`) is normalized, as in the released code
    (retrieval.pytorch, retrieval/model/similarity/similarity.py). Other leading axes broadcast.

    Args:
        values: the items of a set.
        mask: True = real item; padding is left out of softmax, mean and maximum.
        gains: what the query multiplies channels by, beside 1.
        shifts: what the query adds to channels.
        temperature: gamma, the inverse temperature of the softmax, > 0.
        direction: `t2i` pools regions by their mean, `i2t` words by their maximum.

    Example:
        >>> import torch
        >>> from xmodal.heads.adapt import adapted_vectors
        >>> values, real, nothing = torch.tensor([[[3.0, 0.0], [3.0, 8.0]]]), torch.ones(1, 2).bool(), torch.zeros(1, 2)
        >>> adapted_vectors(values, real, nothing, nothing)
        tensor([[0.3511, 0.9363]])
    """
    adapted = values * (1 + gains)[..., None, :] + shifts[..., None, :]
    fovea = (temperature * adapted).masked_fill(~mask[..., None], float("-inf")).softmax(dim=-2) * adapted
    if direction == "i2t":
        return unit_length(fovea.masked_fill(~mask[..., None], float("-inf")).amax(dim=-2))
    return unit_length(fovea.sum(dim=-2) / mask.sum(dim=-1, keepdim=True))


def foveated_cosines(
    values: Float[Tensor, "set item dim"],
    mask: Bool[Tensor, "set item"],
    queries: Float[Tensor, "query three dim"],
    *,
    temperature: float = 10.0,
) -> Float[Tensor, "set query"]:
    """Cosines of the queries with what `adapted_vectors` makes of every set for them in direction t2i, by products.

    The vectors are never formed, see `xmodal.heads.foveae`; for scores without a gradient.

    Args:
        values: the items of the sets, finite.
        mask: True = real item.
        queries: unit vector, gains and shifts of every query.
        temperature: gamma, the inverse temperature of the softmax, > 0.

    Example:
        >>> import torch
        >>> from xmodal.heads.adapt import foveated_cosines
        >>> values, real = torch.tensor([[[3.0, 0.0], [3.0, 8.0]]]), torch.ones(1, 2).bool()
        >>> foveated_cosines(values, real, torch.tensor([[[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]))
        tensor([[0.9363]])
    """
    query, gains, shifts = queries.unbind(dim=1)
    widths = 1 + gains
    fovea = Fovea(temperature * widths, query * widths, 2 * widths * shifts, widths.square())
    dots, squares = foveal_sums(values, mask, fovea)
    dots += (query * shifts).sum(dim=-1)
    squares += shifts.square().sum(dim=-1)
    return _cosines(dots, squares)


def cosines_with_maxima(
    values: Float[Tensor, "set item dim"],
    mask: Bool[Tensor, "set item"],
    queries: Float[Tensor, "query three dim"],
    *,
    temperature: float = 10.0,
) -> Float[Tensor, "set query"]:
    """Cosines of the queries with what `adapted_vectors` makes of every set for them in direction i2t.

    See `xmodal.heads.foveal_maxima`; for scores without a gradient. Arguments are those of `foveated_cosines`.

    Example:
        >>> import torch
        >>> from xmodal.heads.adapt import cosines_with_maxima
        >>> values, real = torch.tensor([[[3.0, 0.0], [3.0, 8.0]]]), torch.ones(1, 2).bool()
        >>> cosines_with_maxima(values, real, torch.tensor([[[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]))
        tensor([[0.9829]])
    """
    query, gains, shifts = queries.unbind(dim=1)
    asked = Asked(temperature * (1 + gains), 1 + gains, shifts, query)
    return _cosines(*maxima_sums(values, mask, asked))


def _cosines(dots: Float[Tensor, "set query"], squares: Float[Tensor, "set query"]) -> Float[Tensor, "set query"]:
    """From products with unit vectors and squared lengths; rounding can leave a short vector with a long product."""
    return (dots / squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()).clamp(-1.0, 1.0)


class ADAPT(Head):
    """Embeddings of one side that adapt to each query of the other (Wehrmann et al., AAAI 2020, sec. 3).

    In direction t2i the mean word of a caption asks: its gains and shifts, a linear layer each, modulate the regions of
    an image, whose channels a batch norm without affine parameters has normalized, and the image's vector is that of
    `adapted_vectors`; the score is its cosine with the mean word. In direction i2t the mean region asks the words. The
    published figures average the scores of a model of either direction. In training the channels of every item are
    modulated anew for every pair: pairs are compared in blocks, and computed again for the gradient instead of being
    kept. Without a gradient scores are matrix products (`xmodal.heads.foveae`, `xmodal.heads.foveal_maxima`).

    Only real items enter the statistics of the batch norm, the fovea and the pooling. In the released code all words
    up to the longest of the batch do, also in testing.

    Args:
        dim: dim of the joint space.
        direction: `t2i`, captions ask images; `i2t`, images ask captions.
        temperature: gamma, the inverse temperature of the fovea's softmax, > 0 (10 on Flickr30k, 5 on COCO).
        pooling: what makes the asking vector of its items, a name of `POOLERS` or its options (the mean as published).

    Raises:
        ValueError: for an unknown direction, with those that exist, or a temperature that is not positive.

    Example:
        >>> import torch
        >>> from xmodal.heads import ADAPT
        >>> ADAPT(dim=64)(torch.randn(4, 36, 64), torch.randn(6, 12, 64)).shape
        torch.Size([4, 6])
    """

    parts: ClassVar[dict[str, Any]] = {"pooling": POOLERS}
    """The options that are parts themselves."""

    def __init__(
        self,
        dim: Size,
        direction: Direction = "t2i",
        temperature: Positive = 10.0,
        pooling: str | Mapping[str, Any] = "mean",
    ) -> None:
        super().__init__()
        if direction not in get_args(Direction):
            raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}; got {direction!r}")
        check_number("temperature", temperature, above=0)
        check_count("dim", dim)
        self.direction: Direction = direction
        self.temperature = temperature
        self.pooler = make_pooler(pooling, dim)
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.gain, self.shift = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def embed_images(self, regions, region_mask=None):
        """t2i: the normalized regions; i2t: what an image asks with, `(image, 3, dim)`: unit vector, gains, shifts."""
        check_items(regions, region_mask, "regions", "region_mask", "image region dim")
        embed = self._values if self.direction == "t2i" else self._queries
        return embed(regions, full_mask(regions, region_mask))

    def embed_captions(self, words, word_mask=None):
        """i2t: the normalized words; t2i: what a caption asks with, `(caption, 3, dim)`: unit vector, gains, shifts."""
        check_items(words, word_mask, "words", "word_mask", "caption word dim")
        embed = self._queries if self.direction == "t2i" else self._values
        return embed(words, full_mask(words, word_mask))

    def compare(self, images, captions, region_mask=None, word_mask=None):  # noqa: D102
        if self.direction == "t2i":
            return self._compare(images, captions, full_mask(images, region_mask))
        return self._compare(captions, images, full_mask(captions, word_mask)).T

    def pairs(self, regions, words, region_mask=None, word_mask=None):  # noqa: D102
        check_inputs(regions, words, region_mask, word_mask, aligned=True)
        region_mask, word_mask = full_mask(regions, region_mask), full_mask(words, word_mask)
        images, captions = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        t2i = self.direction == "t2i"
        values, queries, mask = (images, captions, region_mask) if t2i else (captions, images, word_mask)
        query, gains, shifts = at_least_float32(queries).unbind(dim=1)
        return (self._adapted(at_least_float32(values), mask, gains, shifts) * query).sum(dim=-1)

    def pair_bytes(self, image, caption):
        """The sums that make a score; what items become on the way takes a tile whatever the number of pairs."""
        return 8 * max(4, image.element_size())

    def extra_repr(self) -> str:  # noqa: D102
        return f"direction={self.direction!r}, temperature={self.temperature}"

    @property
    def _adapted(self) -> Any:
        return partial(adapted_vectors, temperature=self.temperature, direction=self.direction)

    def _values(
        self, items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]
    ) -> Float[Tensor, "set item dim"]:
        return normed_real(self.norm, items.to(self.gain.weight.dtype), mask)

    def _queries(
        self, items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]
    ) -> Float[Tensor, "set three dim"]:
        query = self.pooler(items, mask).to(self.gain.weight.dtype)
        return torch.stack([unit_length(at_least_float32(query)).to(query), self.gain(query), self.shift(query)], dim=1)

    def _compare(
        self,
        values: Float[Tensor, "set item dim"],
        queries: Float[Tensor, "query three dim"],
        mask: Bool[Tensor, "set item"],
    ) -> Float[Tensor, "set query"]:
        """All sets against all queries, a block of queries at a time."""
        longest = max(lengths(mask))
        values, mask, queries = at_least_float32(values[:, :longest]), mask[:, :longest], at_least_float32(queries)
        if not torch.is_grad_enabled():
            cosines = foveated_cosines if self.direction == "t2i" else cosines_with_maxima
            with no_autocast(values.device):  # half precision would cut the series short
                return cosines(values, mask, queries, temperature=self.temperature)

        def block(some: Float[Tensor, "query three dim"]) -> Float[Tensor, "set query"]:
            query, gains, shifts = some.unbind(dim=1)
            vectors = self._adapted(values[:, None], mask[:, None], gains[None], shifts[None])
            return (vectors * query).sum(dim=-1)

        blocks = queries.split(max(1, tile_bytes(values.device) // values.nbytes))
        # Modulated items of all pairs would not fit beside one another.
        return torch.cat([checkpoint(block, some, use_reentrant=False) for some in blocks], dim=1)
