"""What a search found, and which word is to be thanked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.heads.attention import (
    aggregate,
    aligned_products,
    attended_cosine,
    attention_weights,
    contexts_and_queries,
    prepare_side,
)
from xmodal.heads.bfan import refocus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.heads.attention import Direction
    from xmodal.heads.comparison import CrossAttention


class WordHit(NamedTuple):
    """A word of the sentence, where it looks in the image, and its part in the score."""

    word: str
    box: tuple[float, float, float, float] | None
    """x1 y1 x2 y2 of the region it looks at most, as shares of width and height; None where no boxes are known."""
    share: float
    """Of the score; those of all words sum to one."""


class Hit(NamedTuple):
    """An image, or in an index of captions a caption, that was found."""

    image_id: str
    score: float
    """That of the head, in float32."""
    certified: bool
    """Whether nothing that was left out can score higher than the last hit: it was scored, or its bound is lower."""
    words: list[WordHit] = []  # noqa: RUF012  # of a NamedTuple, never changed


class Found(NamedTuple):
    """The hits of a query, best first, and what finding them took."""

    hits: list[Hit]
    rescored: int
    """Items whose scores were computed from float vectors."""
    searched: int
    """Items that could have been found."""
    recall: float | None
    """The measured share of the exact top 10 that a search like this finds, in percent; 100 where certified.

    None where no search of the whole index was measured, as it is now, that scored as few items.
    """


def check_scores(scores: Float[Tensor, " item"], owner: Callable[[int], str]) -> None:
    """Make sure that scores can be put in order.

    Args:
        scores: of items.
        owner: whose a score is, in words.

    Raises:
        ValueError: one is NaN; whose it is is named.

    >>> check_scores(torch.tensor([0.5, float("nan")]), lambda place: f"image {place}")
    Traceback (most recent call last):
    ...
    ValueError: the score of image 1 is NaN, which is neither better nor worse than any other; look at what it is ...
    """
    wrong = scores.isnan()
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        raise ValueError(
            f"the score of {owner(place)} is NaN, which is neither better nor worse than any other; look at what it is "
            "made of: features or weights that are NaN, infinite or huge"
        )


def word_shares(
    how: CrossAttention, regions: Float[Tensor, "region dim"], words: Float[Tensor, "word dim"]
) -> tuple[Float[Tensor, " word"], Int[Tensor, " word"]]:
    """What every word contributes to the score of a pair, and the region that it looks at most.

    A similarity contributes as much as the score follows it: its weight in the gradient of a LogSumExp or maximum, its
    positive part in a mean or sum. Where regions attend over words, a region's part goes to the words that it looks at.

    >>> from xmodal.heads.comparison import CrossAttention
    >>> words = torch.eye(2, 4)
    >>> share, region = word_shares(CrossAttention(), torch.eye(4)[[1, 0, 3]], words)
    >>> share, region
    (tensor([0.5000, 0.5000]), tensor([1, 0]))
    """
    parts = pair_shares(how, regions, words)
    return parts.sum(dim=1), parts.argmax(dim=1)


def pair_shares(
    how: CrossAttention, regions: Float[Tensor, "region dim"], words: Float[Tensor, "word dim"]
) -> Float[Tensor, "word region"]:
    """What every word with every region contributes to the score of a pair, as for `word_shares`.

    >>> from xmodal.heads.comparison import CrossAttention
    >>> pair_shares(CrossAttention(), torch.eye(4)[[1, 0, 3]], torch.eye(2, 4)).sum(dim=1)
    tensor([0.5000, 0.5000])
    """
    directions: Sequence[Direction] = ("t2i", "i2t") if how.both else (how.direction,)
    return torch.stack([_parts(how, direction, regions, words) for direction in directions]).mean(dim=0)


def _parts(
    how: CrossAttention, direction: Direction, regions: Float[Tensor, "region dim"], words: Float[Tensor, "word dim"]
) -> Float[Tensor, "word region"]:
    """The part in the score of every word with every region."""
    contexts, queries = contexts_and_queries(
        direction, prepare_side(regions[None], None), prepare_side(words[None], None)
    )
    products = aligned_products(contexts, queries)
    real = queries.mask[..., None]
    weights = attention_weights(
        products, contexts.mask, real, normalization=how.normalization, temperature=how.temperature
    )
    if how.focal is not None:
        weights = refocus(weights, contexts.mask, focal=how.focal)
    similarities = attended_cosine(products, weights, contexts.gram, queries.norms[..., None])
    with torch.enable_grad():
        leaf = similarities.detach().requires_grad_()
        score = aggregate(leaf, real, aggregation=how.aggregation, lse_scale=how.lse_scale).sum()
        (slope,) = torch.autograd.grad(score, leaf)
    parts = slope if how.aggregation in ("logsumexp", "max") else slope * similarities.clamp_min(0)
    parts = parts / parts.sum().clamp_min(1e-12)
    looks = weights / weights.sum(dim=1, keepdim=True)
    shared = (parts[:, None] * looks)[0, :, :, 0]  # (context, query)
    return shared.T if direction == "t2i" else shared
