"""BFAN: bidirectional focal attention (Liu et al., ACM MM 2019, arXiv 1909.11416)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from xmodal.heads.attention import (
    Direction,
    Focal,
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


def bfan_scores(
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    focal: Focal = "prob",
    temperature: float = 20.0,
    validate: bool = False,
) -> Float[Tensor, "image caption"]:
    """Bidirectional focal attention scores (Liu et al., ACM MM 2019), every image against every caption.

    As SCAN with clipped L2 normalization and mean aggregation in both directions, except that attention below a
    threshold is dropped and the rest renormalized; the scores of the two directions are added.

    Args:
        regions: region embeddings of the images; the paper L2-normalizes them, which is not required.
        words: word embeddings of the captions in the same space.
        region_mask: True = real region; None means that all are real.
        word_mask: True = real word; None means that all are real.
        focal: how a context item earns its place: `equal` compares its attention with the plain mean, `prob` with a
            mean in which confident items count more (see `focal_mask`).
        temperature: inverse temperature of the softmax over the context, > 0.
        validate: also refuse NaN and infinity among the real features, at the cost of a pass over them.

    Returns:
        Sums of two mean cosines, in [-2, 2], in the inputs' dtype, or float32 where that is a half precision.

    Raises:
        ValueError: for inputs that cannot be scored (see `check_inputs`) and for an unknown option.

    Example:
        >>> import torch
        >>> from xmodal.heads import bfan_scores
        >>> regions, words = torch.randn(4, 36, 256), torch.randn(6, 12, 256)
        >>> word_mask = torch.arange(12) < torch.tensor([12, 9, 7, 7, 3, 1])[:, None]
        >>> bfan_scores(regions, words, word_mask=word_mask, focal="equal").shape
        torch.Size([4, 6])
    """
    check_inputs(regions, words, region_mask, word_mask, validate=validate)
    attend = _focal_attention(focal, temperature)
    images, captions = prepare_sides(regions, words, region_mask, word_mask, grams=["images", "captions"])
    ragged = takes_ragged(images.items, normalization="clipped_l2", temperature=temperature)
    return all_pairs(images, captions, attend, both_directions=True, ragged=ragged)


def bfan_pair_scores(
    regions: Float[Tensor, "pair region dim"],
    words: Float[Tensor, "pair word dim"],
    region_mask: Bool[Tensor, "pair region"] | None = None,
    word_mask: Bool[Tensor, "pair word"] | None = None,
    *,
    focal: Focal = "prob",
    temperature: float = 20.0,
    validate: bool = False,
) -> Float[Tensor, " pair"]:
    """Scores of aligned pairs: the diagonal of `bfan_scores`, whose arguments these are, without the rest of it.

    Example:
        >>> import torch
        >>> from xmodal.heads import bfan_pair_scores
        >>> bfan_pair_scores(torch.randn(3, 36, 64), torch.randn(3, 12, 64)).shape
        torch.Size([3])
    """
    check_inputs(regions, words, region_mask, word_mask, aligned=True, validate=validate)
    attend = _focal_attention(focal, temperature)
    images, captions = prepare_sides(regions, words, region_mask, word_mask, grams=["images", "captions"])
    return aligned_pairs(images, captions, attend, both_directions=True)


def bfan_attention(
    regions: Float[Tensor, "pair region dim"],
    words: Float[Tensor, "pair word dim"],
    region_mask: Bool[Tensor, "pair region"] | None = None,
    word_mask: Bool[Tensor, "pair word"] | None = None,
    *,
    direction: Direction = "t2i",
    focal: Focal = "prob",
    temperature: float = 20.0,
) -> Attention:
    """The refocused weights of one direction and the focal mask that shaped them, for aligned pairs.

    Args:
        direction: `t2i` for the weights of every word over the regions, `i2t` for those of every region over the words.

    The other arguments are those of `bfan_scores`.

    Example:
        >>> import torch
        >>> from xmodal.heads import bfan_attention
        >>> weights, focal = bfan_attention(torch.randn(3, 36, 64), torch.randn(3, 12, 64))
        >>> weights.shape, torch.equal(weights > 0, focal)
        (torch.Size([3, 12, 36]), True)
    """
    check_inputs(regions, words, region_mask, word_mask, aligned=True)
    how = _comparison(focal, temperature)
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}; got {direction!r}")
    contexts, queries = contexts_and_queries(direction, *prepare_sides(regions, words, region_mask, word_mask))
    weights = attention_weights(
        aligned_products(contexts, queries),
        contexts.mask,
        queries.mask[..., None],
        normalization=how.normalization,
        temperature=how.temperature,
    )
    kept = focal_mask(weights, contexts.mask, focal=focal) & queries.mask[:, None, :, None]
    weights = refocus(weights, contexts.mask, focal=focal).masked_fill(~kept, 0.0)
    axes = (0, 2, 1) if direction == "t2i" else (0, 1, 2)
    return Attention(weights[..., 0].permute(axes), kept[..., 0].permute(axes))


class BFAN(Head):
    """The BFAN head as a Module; arguments as for `bfan_scores`. It has no parameters.

    The published figures average the scores of an `equal` and a `prob` model.

    Example:
        >>> import torch
        >>> from xmodal.heads import BFAN
        >>> BFAN(focal="equal")(torch.randn(4, 36, 256), torch.randn(6, 12, 256)).shape
        torch.Size([4, 6])
    """

    def __init__(self, focal: Focal = "prob", temperature: Positive = 20.0) -> None:
        super().__init__()
        _comparison(focal, temperature)
        self.options: dict[str, Any] = {"focal": focal, "temperature": temperature}

    @property
    def comparison(self) -> CrossAttention:  # type: ignore[override]  # noqa: D102
        return _comparison(**self.options)

    def compare(self, images, captions, region_mask=None, word_mask=None):  # noqa: D102
        return bfan_scores(images, captions, region_mask, word_mask, **self.options)

    def pairs(self, regions, words, region_mask=None, word_mask=None):  # noqa: D102
        if self.comparison is None:  # a subclass compares in another way
            return super().pairs(regions, words, region_mask, word_mask)
        sides = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return bfan_pair_scores(*sides, region_mask, word_mask, **self.options)

    def attention(self, regions, words, region_mask=None, word_mask=None, *, direction: Direction = "t2i"):
        """The refocused weights of one of the two directions that the score adds up; see `bfan_attention`."""
        sides = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return bfan_attention(*sides, region_mask, word_mask, direction=direction, **self.options)

    def explain(self, regions, words, region_mask=None, word_mask=None):
        """Both directions that the score adds up, the attention of words first, and what each of them adds to it."""
        directions: dict[Looking, Direction] = {"words": "t2i", "regions": "i2t"}
        found: dict[Looking, Attention] = {
            looking: self.attention(regions, words, region_mask, word_mask, direction=direction)
            for looking, direction in directions.items()
        }
        how = self.comparison
        if how is None:  # a subclass compares in another way
            return tuple(Explanation(attention, looking) for looking, attention in found.items())
        embedded = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        images, captions = prepare_sides(*embedded, region_mask, word_mask, grams=["images", "captions"])
        shares = partial(
            pair_shares,
            normalization=how.normalization,
            temperature=how.temperature,
            aggregation=how.aggregation,
            focus=partial(refocus, focal=self.options["focal"]),
        )
        return tuple(
            Explanation(attention, looking, shares(*contexts_and_queries(directions[looking], images, captions)))
            for looking, attention in found.items()
        )

    def extra_repr(self) -> str:  # noqa: D102
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items())


def focal_mask(
    weights: Float[Tensor, "context_item context query query_item"],
    context_mask: Bool[Tensor, "context_item context"],
    *,
    focal: Focal,
) -> Bool[Tensor, "context_item context query query_item"]:
    """Which context items a query keeps (the focal function's sign, in closed form).

    The paper scores item i by F_i = sum_j g_j (a_i - a_j) and keeps it where F_i > 0, with the confidence g = 1
    (`equal`) or g_j = sqrt(a_j) (`prob`). The sum over pairs collapses: F_i = a_i sum_j g_j - sum_j g_j a_j. Only real
    context items are summed. Where no item is above the others (uniform attention, a single item), all are kept.

    Example:
        >>> import torch
        >>> from xmodal.heads.bfan import focal_mask
        >>> weights = torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1)
        >>> real = torch.ones(1, 3, dtype=torch.bool)
        >>> focal_mask(weights, real, focal="equal").flatten()
        tensor([ True, False, False])
    """
    real = context_mask[:, :, None, None]
    weights = weights.detach()
    confidence = real.to(weights) if focal == "equal" else weights.sqrt()
    total, average = confidence.sum(dim=1, keepdim=True), (confidence * weights).sum(dim=1, keepdim=True)
    kept = weights * total > average
    return kept | (real & ~kept.any(dim=1, keepdim=True))


def refocus(
    weights: Float[Tensor, "context_item context query query_item"],
    context_mask: Bool[Tensor, "context_item context"],
    *,
    focal: Focal,
) -> Float[Tensor, "context_item context query query_item"]:
    """Drop the attention that the focal mask does not keep and let the rest sum to one again.

    Example:
        >>> import torch
        >>> from xmodal.heads.bfan import refocus
        >>> weights = torch.tensor([0.45, 0.45, 0.1]).view(1, 3, 1, 1)
        >>> real = torch.ones(1, 3, dtype=torch.bool)
        >>> refocus(weights, real, focal="prob").flatten()
        tensor([0.5000, 0.5000, 0.0000])
    """
    kept = weights.masked_fill(~focal_mask(weights, context_mask, focal=focal), 0.0)
    return kept / kept.sum(dim=1, keepdim=True)


def _comparison(focal: Focal, temperature: float) -> CrossAttention:
    """How BFAN compares; refuses an unknown option by name, with the ones that exist."""
    if focal not in get_args(Focal):
        raise ValueError(f"focal must be one of {', '.join(get_args(Focal))}; got {focal!r}")
    return CrossAttention(aggregation="mean", temperature=temperature, focal=focal, both=True)


def _focal_attention(focal: Focal, temperature: float) -> Callable[..., Tensor]:
    how = _comparison(focal, temperature)
    return partial(
        stacked_attention,
        normalization=how.normalization,
        temperature=how.temperature,
        aggregation=how.aggregation,
        focal=focal,
        focus=partial(refocus, focal=focal),
    )
