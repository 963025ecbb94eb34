"""Re-ranking the first answers of a query by how well the query stands with them, as MTFN does after scoring.

An image should not only score high with a caption; it should also be among the first that this caption retrieves.
Wang et al. (ACM Multimedia 2019; `rerank.py` of their released code) sort the first 15 captions of an image by the rank
of the image in each caption's list, and the first 20 images of a caption by the best rank, in each image's list, of
*all captions of the image that is looked for*. The second needs to know which captions of the test set describe one
image: that is what is to be found out, so that it leaks. It is here under a name that says so, beside an honest form
that asks for the rank of the query caption itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from xmodal.evaluation.hubs import check_matrix, first_answers
from xmodal.evaluation.ranks import BLOCK_ELEMENTS, as_relevance
from xmodal.evaluation.relevance import check_direction, count_as_good, query_scores
from xmodal.numerics import check_count

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.data.relevance import Relevance
    from xmodal.evaluation.relevance import Direction

TOP: dict[Direction, int] = {"i2t": 15, "t2i": 20}
"""How many answers of a query are put into another order, as published."""

LEVEL = 2.0**-10
"""How far apart answers are put, as a share of their size: far enough for float32."""


@torch.no_grad()
def rerank(
    scores: Float[Tensor, "image caption"],
    direction: Direction,
    *,
    siblings: Relevance | Int[Tensor, " caption"] | None = None,
    top: int | None = None,
) -> Float[Tensor, "image caption"]:
    """Scores whose order for one direction is that after re-ranking.

    The first answers of a query are sorted by the rank of the query among all that such an answer retrieves: how many
    score at least as high as the query. Equal ranks stay in the order of their scores, and what is equal in both stays
    tied. What is tied across the last place to be re-ranked is left where it was: nothing decides which of them is in.

    Args:
        scores: similarity of every image to every caption, higher is more alike.
        direction: `i2t` re-ranks the captions of images, `t2i` the images of captions.
        siblings: for `t2i` as published, which image each caption describes: a caption then has the rank of its best
            sibling. **This reads the right answers of the test set**; None is the honest form, without.
        top: answers of a query to re-rank; None for those published, 15 captions or 20 images.

    Returns:
        The scores with other values for the first answers, above all others of the query. Only their order means
        something, and only for the queries of this direction.

    Raises:
        ValueError: shapes that do not go together, a NaN score, an infinite one among the first answers, a `top` below
            1, or siblings in direction `i2t`, which has no use for them.

    >>> scores = torch.tensor([[0.9, 0.8], [0.95, 0.1]])  # image 0 comes second for caption 0, and first for caption 1
    >>> rerank(scores, "i2t").argmax(dim=1)
    tensor([1, 0])
    """
    scores = check_matrix(scores)
    check_direction(direction)
    top = TOP[direction] if top is None else top
    check_count("top", top)
    if siblings is not None and direction == "i2t":
        raise ValueError("siblings are for direction t2i; images have none")
    dtype = torch.promote_types(scores.dtype, torch.float32) if scores.is_floating_point() else torch.float64
    result = scores.to("cpu", dtype, copy=True)
    table = result if direction == "i2t" else result.T  # (query, item); writing to it writes to the result
    queries, items = table.shape
    parts = []
    for chosen in torch.arange(queries).split(max(1, BLOCK_ELEMENTS // items)):
        places, is_first = first_answers(query_scores(scores, chosen, direction), top)
        query, answer = is_first.nonzero(as_tuple=True)
        parts.append((chosen[query], places[query, answer]))
    query, item = (torch.cat(column) for column in zip(*parts, strict=True))
    values = table[query, item]
    if not len(values):  # all is tied
        return result
    if not values.isfinite().all():
        raise ValueError("a score among the first answers of a query is infinite; re-ranking needs finite ones")
    asked = values if siblings is None else _best_sibling(result, as_relevance(siblings, *scores.shape), query, item)
    back: Direction = "t2i" if direction == "i2t" else "i2t"
    standing = _standings(scores, back, item, asked)
    table[query, item] = _placed(query, standing, values)
    return result


def _best_sibling(
    scores: Float[Tensor, "image caption"],
    relevance: Relevance,
    caption: Int[Tensor, " pair"],
    image: Int[Tensor, " pair"],
) -> Float[Tensor, " pair"]:
    """For some captions and images, the best score with this image of all captions that share an image with it."""
    of_image = relevance.caption_image
    if of_image is None:
        raise ValueError(f"siblings need captions of exactly one image each, which those of {relevance} are not")
    order = of_image.argsort(stable=True)
    families = pad_sequence(
        list(order.split(torch.bincount(of_image, minlength=relevance.images).tolist())),
        batch_first=True,
        padding_value=-1,
    )
    best = torch.full(caption.shape, float("-inf"), dtype=scores.dtype)
    for sibling in families.T:  # the first caption of every image, then the second, ...
        other = sibling[of_image[caption]]
        found = scores[image, other.clamp_min(0)].masked_fill(other < 0, float("-inf"))
        best = torch.maximum(best, found)
    return best


def _standings(
    scores: Float[Tensor, "image caption"],
    direction: Direction,
    query: Int[Tensor, " pair"],
    value: Float[Tensor, " pair"],
) -> Int[Tensor, " pair"]:
    """How many scores of each query are at least so high."""
    order = query.argsort(stable=True)
    asked, counts = query[order].unique_consecutive(return_counts=True)
    items = scores.shape[1 if direction == "i2t" else 0]
    found = []
    parts = value[order].split(counts.tolist())
    for block in torch.arange(len(asked)).split(max(1, BLOCK_ELEMENTS // items)):
        part = query_scores(scores, asked[block], direction)
        wanted = pad_sequence([parts[place] for place in block.tolist()], batch_first=True)
        as_good = count_as_good(part, wanted, counts[block])
        found += [row[:count] for row, count in zip(as_good, counts[block].tolist(), strict=True)]
    result = torch.empty_like(query)
    result[order] = torch.cat(found)
    return result


def _placed(
    query: Int[Tensor, " pair"], standing: Int[Tensor, " pair"], value: Float[Tensor, " pair"]
) -> Float[Tensor, " pair"]:
    """Scores by which the answers of each query are in their new order, all at least as high as its best was."""
    order = value.argsort(descending=True, stable=True)
    order = order[standing[order].argsort(stable=True)]
    order = order[query[order].argsort(stable=True)]
    query, standing, value = query[order], standing[order], value[order]
    is_new = torch.ones(len(query), dtype=torch.bool)
    is_new[1:] = (query[1:] != query[:-1]) | (standing[1:] != standing[:-1]) | (value[1:] != value[:-1])
    level = is_new.cumsum(0)
    queries = int(query.max()) + 1
    last = level.new_zeros(queries).scatter_reduce(0, query, level, "amax", include_self=False)
    best = value.new_zeros(queries).scatter_reduce(0, query, value, "amax", include_self=False)
    base = best[query]
    placed = torch.empty_like(value)
    placed[order] = base + (last[query] - level) * LEVEL * (1 + base.abs())
    return placed
