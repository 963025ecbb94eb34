"""SCAN: stacked cross attention (Lee et al., ECCV 2018, arXiv 1803.08024)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xmodal.heads.attention import (
    CONTEXTS,
    Aggregation,
    Direction,
    Normalization,
    aligned_pairs,
    aligned_products,
    all_pairs,
    attention_weights,
    contexts_and_queries,
    pair_shares,
    prepare_sides,
    stacked_attention,
    takes_ragged,
)
from xmodal.heads.base import Attention, Explanation, Head, Looking, check_inputs
from xmodal.heads.comparison import CrossAttention
from xmodal.numerics import Positive  # noqa: TC001  # ranges are read at run time

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float
    from torch import Tensor

SCAN_PUBLISHED: dict[str, dict[str, Any]] = {
    "t-i LSE": {"direction": "t2i", "aggregation": "logsumexp", "temperature": 9.0, "lse_scale": 6.0},
    "t-i AVG": {"direction": "t2i", "aggregation": "mean", "temperature": 9.0},
    "i-t LSE Flickr30k": {"direction": "i2t", "aggregation": "logsumexp", "temperature": 4.0, "lse_scale": 5.0},
    "i-t LSE COCO": {"direction": "i2t", "aggregation": "logsumexp", "temperature": 4.0, "lse_scale": 20.0},
    "i-t AVG": {"direction": "i2t", "aggregation": "mean", "temperature": 4.0},
}
"""The settings of the paper's variants, as keyword arguments of `scan_scores` and `SCAN`.

Where no data set is named, the released settings for Flickr30k and COCO agree.
"""


def scan_scores(
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    direction: Direction = "t2i",
    normalization: Normalization = "clipped_l2",
    aggregation: Aggregation = "logsumexp",
    temperature: float = 9.0,
    lse_scale: float = 6.0,
    validate: bool = False,
) -> Float[Tensor, "image caption"]:
    """Stacked cross attention scores (Lee et al., ECCV 2018, eq. 1-9), every image against every caption.

    Args:
        regions: region embeddings of the images; the paper L2-normalizes them, which is not required.
        words: word embeddings of the captions in the same space.
        region_mask: True = real region; None means that all are real.
        word_mask: True = real word; None means that all are real.
        direction: `t2i` lets every word attend over the regions, `i2t` every region over the words.
        normalization: how the products are normalized over the queries before the softmax over the context.
        aggregation: how the similarities of the queries become one score. `logsumexp` and `sum` grow with the number
            of queries, as published.
        temperature: inverse temperature of the softmax over the context (lambda_1; 9 for t2i, 4 for i2t), > 0.
        lse_scale: lambda_2 of the LogSumExp aggregation (6 for t2i; 5 or 20 for i2t), > 0; ignored by the others.
        validate: also refuse NaN and infinity among the real features, at the cost of a pass over them.

    Returns:
        Scores in the inputs' dtype, or float32 where that is a half precision. Cosines under `mean` and `max`.

    Raises:
        ValueError: for inputs that cannot be scored (see `check_inputs`) and for an unknown option.

    Example:
        >>> import torch
        >>> from xmodal.heads import scan_scores
        >>> regions, words = torch.randn(4, 36, 256), torch.randn(6, 12, 256)
        >>> word_mask = torch.arange(12) < torch.tensor([12, 9, 7, 7, 3, 1])[:, None]
        >>> scan_scores(regions, words, word_mask=word_mask, aggregation="mean").shape
        torch.Size([4, 6])
    """
    check_inputs(regions, words, region_mask, word_mask, validate=validate)
    score_tile = _score_tile(direction, normalization, aggregation, temperature, lse_scale)
    images, captions = prepare_sides(regions, words, region_mask, word_mask, grams=[CONTEXTS[direction]])
    contexts, queries = contexts_and_queries(direction, images, captions)
    ragged = takes_ragged(images.items, normalization=normalization, temperature=temperature)
    scores = all_pairs(contexts, queries, score_tile, ragged=ragged)
    return scores if direction == "t2i" else scores.T


def scan_pair_scores(
    regions: Float[Tensor, "pair region dim"],
    words: Float[Tensor, "pair word dim"],
    region_mask: Bool[Tensor, "pair region"] | None = None,
    word_mask: Bool[Tensor, "pair word"] | None = None,
    *,
    direction: Direction = "t2i",
    normalization: Normalization = "clipped_l2",
    aggregation: Aggregation = "logsumexp",
    temperature: float = 9.0,
    lse_scale: float = 6.0,
    validate: bool = False,
) -> Float[Tensor, " pair"]:
    """Scores of aligned pairs: the diagonal of `scan_scores`, whose arguments these are, without the rest of it.

    Example:
        >>> import torch
        >>> from xmodal.heads import scan_pair_scores
        >>> scan_pair_scores(torch.randn(3, 36, 64), torch.randn(3, 12, 64)).shape
        torch.Size([3])
    """
    check_inputs(regions, words, region_mask, word_mask, aligned=True, validate=validate)
    score_tile = _score_tile(direction, normalization, aggregation, temperature, lse_scale)
    sides = prepare_sides(regions, words, region_mask, word_mask, grams=[CONTEXTS[direction]])
    contexts, queries = contexts_and_queries(direction, *sides)
    return aligned_pairs(contexts, queries, score_tile)


def scan_attention(
    regions: Float[Tensor, "pair region dim"],
    words: Float[Tensor, "pair word dim"],
    region_mask: Bool[Tensor, "pair region"] | None = None,
    word_mask: Bool[Tensor, "pair word"] | None = None,
    *,
    direction: Direction = "t2i",
    normalization: Normalization = "clipped_l2",
    temperature: float = 9.0,
) -> Attention:
    """The attention weights behind the scores of aligned pairs (SCAN eq. 4 and 8); arguments as for `scan_scores`.

    Example:
        >>> import torch
        >>> from xmodal.heads import scan_attention
        >>> weights = scan_attention(torch.randn(3, 36, 64), torch.randn(3, 12, 64)).weights
        >>> weights.shape, bool(torch.allclose(weights.sum(-1), torch.ones(3, 12)))
        (torch.Size([3, 12, 36]), True)
    """
    check_inputs(regions, words, region_mask, word_mask, aligned=True)
    how = CrossAttention(direction, normalization, temperature=temperature)
    contexts, queries = contexts_and_queries(direction, *prepare_sides(regions, words, region_mask, word_mask))
    weights = attention_weights(
        aligned_products(contexts, queries),
        contexts.mask,
        queries.mask[..., None],
        normalization=how.normalization,
        temperature=how.temperature,
    )[..., 0]
    weights = weights.masked_fill(~queries.mask[:, None, :], 0.0)
    return Attention(weights.transpose(1, 2) if direction == "t2i" else weights)


class SCAN(Head):
    """The SCAN head as a Module; arguments as for `scan_scores`, `SCAN_PUBLISHED` names the paper's variants.

    It has no parameters.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN, SCAN_PUBLISHED
        >>> head = SCAN(**SCAN_PUBLISHED["i-t AVG"])
        >>> head(torch.randn(4, 36, 256), torch.randn(6, 12, 256)).shape
        torch.Size([4, 6])
    """

    def __init__(
        self,
        direction: Direction = "t2i",
        normalization: Normalization = "clipped_l2",
        aggregation: Aggregation = "logsumexp",
        temperature: Positive = 9.0,
        lse_scale: Positive = 6.0,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "direction": direction,
            "normalization": normalization,
            "aggregation": aggregation,
            "temperature": temperature,
            "lse_scale": lse_scale,
        }
        CrossAttention(**self.options)  # refuses options that do not exist

    @property
    def comparison(self) -> CrossAttention:  # type: ignore[override]  # noqa: D102
        return CrossAttention(**self.options)

    def compare(self, images, captions, region_mask=None, word_mask=None):  # noqa: D102
        return scan_scores(images, captions, region_mask, word_mask, **self.options)

    def pairs(self, regions, words, region_mask=None, word_mask=None):  # noqa: D102
        if self.comparison is None:  # a subclass compares in another way
            return super().pairs(regions, words, region_mask, word_mask)
        sides = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return scan_pair_scores(*sides, region_mask, word_mask, **self.options)

    def attention(self, regions, words, region_mask=None, word_mask=None):  # noqa: D102
        options = {name: self.options[name] for name in ("direction", "normalization", "temperature")}
        sides = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return scan_attention(*sides, region_mask, word_mask, **options)

    def explain(self, regions, words, region_mask=None, word_mask=None):
        """The attention of words or, in direction i2t, of regions, and what each of them adds to the score."""
        attention = self.attention(regions, words, region_mask, word_mask)
        looking: Looking = "words" if self.options["direction"] == "t2i" else "regions"
        if self.comparison is None:  # a subclass compares in another way
            return (Explanation(attention, looking),)
        embedded = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        options = dict(self.options)
        direction = options.pop("direction")
        sides = prepare_sides(*embedded, region_mask, word_mask, grams=[CONTEXTS[direction]])
        shares = pair_shares(*contexts_and_queries(direction, *sides), **options)
        return (Explanation(attention, looking, shares),)

    def extra_repr(self) -> str:  # noqa: D102
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items())


def _score_tile(
    direction: Direction, normalization: Normalization, aggregation: Aggregation, temperature: float, lse_scale: float
) -> Callable[..., Tensor]:
    how = CrossAttention(direction, normalization, aggregation, temperature, lse_scale)
    return partial(
        stacked_attention,
        normalization=how.normalization,
        temperature=how.temperature,
        aggregation=how.aggregation,
        lse_scale=how.lse_scale,
    )
