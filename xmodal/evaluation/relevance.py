"""Retrieval where a query may have many right answers, of different grades, as in CxC and ECCV Caption.

Everything is made of one thing: the ranks of all right answers of a query. Equal scores count against the model: wrong
answers come before right ones, and right ones of a lower grade before those of a higher one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from xmodal.data.relevance import Judgements, Relevance, load_relevance
from xmodal.evaluation.ranks import (
    BLOCK_ELEMENTS,
    RECALL_LEVELS,
    as_matrix,
    as_relevance,
    check_no_nan,
    check_relevance,
    direction_metrics,
)
from xmodal.numerics import check_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = [
    "AnswerRanks",
    "Judgements",
    "Relevance",
    "answer_ranks",
    "as_judgements",
    "check_direction",
    "count_as_good",
    "evaluate_direction",
    "evaluate_relevance",
    "load_relevance",
    "mean_metrics",
    "query_metrics",
    "query_scores",
]


Direction = Literal["i2t", "t2i"]
"""Which side asks: images look for captions, or captions for images."""

DIRECTIONS: tuple[Direction, ...] = ("i2t", "t2i")

COUNTED = 32
"""Up to so many values of a query on average, counting the scores above each is faster than sorting all."""


class AnswerRanks(NamedTuple):
    """Where some queries find their right answers, the first one first. Only queries that have one are listed."""

    query: Int[Tensor, " query"]
    """Which image, or caption, each query is."""
    rank: Int[Tensor, "query answer"]
    """1-based, rising; 0 after the last right answer of a query."""
    grade: Float[Tensor, "query answer"]
    """How well the answer at this rank fits; 0 after the last."""


@torch.no_grad()
def evaluate_relevance(
    scores: Float[Tensor, "image caption"],
    caption_image: Int[Tensor, " caption"] | Relevance | Judgements,
    *,
    block: int | None = None,
) -> dict[str, Any]:
    """Evaluate retrieval in both directions by all right answers of every query, and by their grades.

    Queries without a right answer are left out and those with one are counted: in CxC and ECCV Caption only some images
    and captions were judged.

    Args:
        scores: similarity of every image to every caption, higher is more alike; any real dtype.
        caption_image: which pairs belong together, as a `Relevance`, as the image of every caption, or as `Judgements`
            where other pairs were judged for images than for captions.
        block: queries looked at at once; by default as many as keep the temporaries near twenty megabytes. The result
            does not depend on it.

    Returns:
        `{"i2t": {...}, "t2i": {...}, "rsum"}` like `evaluate_retrieval`, in percent, with all that it has (the recalls
        and `MedR`, `MeanR` are those of the best right answer) and

        - `R-precision`: of the first R answers, those that are right, where R is how many right ones there are.
        - `mAP@R`: mean over the ranks 1 to R of the precision so far, where the rank holds a right answer, else 0
          (Musgrave et al., ECCV 2020; the main figure of ECCV Caption, Chun et al., ECCV 2022).
        - `nDCG`: sum over the right answers that are there of grade / log2(rank + 1), divided by the same of the best
          order.
        - `queries`: how many there are with a right answer, be it absent (see `Judgements`).

    Raises:
        ValueError: wrong shapes, a NaN score, or no query with a right answer.

    >>> both = Relevance([0, 0, 1], [0, 1, 1], [1.0, 0.5, 1.0], images=2, captions=2)
    >>> result = evaluate_relevance(torch.tensor([[0.1, 0.8], [0.3, 0.9]]), both)
    >>> result["i2t"]["R-precision"], result["t2i"]["R@1"], round(result["i2t"]["nDCG"], 1)
    (100.0, 50.0, 93.0)
    """
    if isinstance(caption_image, Judgements):
        scores, _ = check_relevance(scores, caption_image.i2t)
        both = as_judgements(caption_image, *scores.shape)
    else:
        scores, relevance = check_relevance(scores, caption_image)
        both = Judgements(relevance, relevance)
    return with_rsum({direction: evaluate_direction(scores, both, direction, block=block) for direction in DIRECTIONS})


@torch.no_grad()
def evaluate_direction(
    scores: Float[Tensor, "image caption"],
    judgements: Relevance | Judgements,
    direction: Direction,
    *,
    block: int | None = None,
) -> dict[str, float]:
    """One direction of `evaluate_relevance`, with its arguments and errors.

    >>> relevance = Relevance.from_caption_image(torch.tensor([0, 1]))
    >>> evaluate_direction(torch.eye(2), relevance, "t2i")["mAP@R"]
    100.0
    """
    return mean_metrics(*query_metrics(scores, judgements, direction, block=block))


def query_metrics(
    scores: Float[Tensor, "image caption"],
    judgements: Relevance | Judgements,
    direction: Direction,
    *,
    block: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rank of the best right answer, R-precision, mAP@R and nDCG of every query that has one; the latter from 0 to 1.

    Arguments and errors are those of `evaluate_relevance`. Queries whose right answers are all absent come last.

    >>> best, *_ = query_metrics(torch.eye(2), Relevance.from_caption_image(torch.tensor([1, 0])), "t2i")
    >>> best
    tensor([2, 2])
    """
    check_direction(direction)
    scores = as_matrix(scores)
    both = as_judgements(judgements, *scores.shape)
    relevance, absent = (both.i2t, both.absent_captions) if direction == "i2t" else (both.t2i, both.absent_images)
    if block is not None:
        check_count("block", block)
    if not len(relevance.image):
        raise ValueError(f"{relevance} has no pair that belongs together; there is nothing to evaluate")
    absent = torch.zeros(scores.shape[0 if direction == "i2t" else 1]).long() if absent is None else absent
    parts = [
        _query_metrics(part, absent[part.query]) for part in answer_ranks(scores, relevance, direction, block=block)
    ]
    asked = torch.bincount(relevance.image if direction == "i2t" else relevance.caption, minlength=len(absent)) > 0
    parts.append(_missed(int((~asked & (absent > 0)).sum()), scores.shape[1 if direction == "i2t" else 0]))
    best, r_precision, average_precision, gain = (torch.cat(column) for column in zip(*parts, strict=True))
    return best, r_precision, average_precision, gain


def _missed(queries: int, items: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The metrics of queries whose right answers are all absent: as if these came after all others."""
    nothing = torch.zeros(queries, dtype=torch.float64)
    return torch.full((queries,), items + 1), nothing, nothing, nothing


def check_direction(direction: str) -> None:
    """Make sure that it is one.

    Raises:
        ValueError: it is not.

    >>> check_direction("t2t")
    Traceback (most recent call last):
    ...
    ValueError: direction is 't2t'; wanted i2t, images that look for captions, or t2i, captions that look for images
    """
    if direction not in DIRECTIONS:
        raise ValueError(
            f"direction is {direction!r}; wanted i2t, images that look for captions, or t2i, captions that look for "
            "images"
        )


def with_rsum(sides: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    """The results of both directions and the sum of their six recalls.

    >>> with_rsum({side: {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0} for side in ("i2t", "t2i")})["rsum"]
    120.0
    """
    rsum = sum(metrics[f"R@{level}"] for metrics in sides.values() for level in RECALL_LEVELS)
    return {**sides, "rsum": rsum}


def as_judgements(judgements: Relevance | Judgements, images: int, captions: int) -> Judgements:
    """Judgements of so many images and captions; a `Relevance` serves both directions.

    Raises:
        ValueError: they are of another size.

    >>> as_judgements(Relevance.from_caption_image([1, 0]), images=2, captions=2).t2i
    Relevance(2 pairs of 2 images and 2 captions)
    """
    both = judgements if isinstance(judgements, Judgements) else Judgements(judgements, judgements)
    for side, absent, queries in ((both.i2t, both.absent_captions, images), (both.t2i, both.absent_images, captions)):
        as_relevance(side, images, captions)
        if absent is not None and absent.shape != (queries,):
            raise ValueError(f"absent answers have shape {tuple(absent.shape)}; wanted a number for {queries} queries")
    return both


def answer_ranks(
    scores: Float[Tensor, "image caption"],
    relevance: Relevance,
    direction: Direction,
    *,
    block: int | None = None,
) -> Iterator[AnswerRanks]:
    """The ranks of all right answers of all queries of one direction, some queries at a time.

    Arguments and errors are those of `evaluate_relevance`.

    >>> relevance = Relevance.from_caption_image(torch.tensor([0, 1, 0]))
    >>> (part,) = answer_ranks(torch.tensor([[0.9, 0.6, 0.5], [0.1, 0.3, 0.2]]), relevance, "i2t")
    >>> part.rank
    tensor([[1, 3],
            [1, 0]])
    """
    check_direction(direction)
    query, item = (relevance.image, relevance.caption)[:: 1 if direction == "i2t" else -1]
    order = query.argsort(stable=True)
    query, item, grade = query[order], item[order], relevance.grade[order]
    asked, counts = query.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    items = scores.shape[1 if direction == "i2t" else 0]
    for queries in torch.arange(len(asked)).split(block or max(1, BLOCK_ELEMENTS // items)):
        pairs = slice(int(ends[queries[0]] - counts[queries[0]]), int(ends[queries[-1]]))
        chosen = asked[queries]
        part = query_scores(scores, chosen, direction)
        lengths = counts[queries].tolist()
        answers, grades = (pad_sequence(list(x[pairs].split(lengths)), batch_first=True) for x in (item, grade))
        yield AnswerRanks(chosen, *_rank(part, answers, grades))


def query_scores(
    scores: Float[Tensor, "image caption"], queries: Int[Tensor, " query"], direction: Direction
) -> Float[Tensor, "query item"]:
    """The scores of some queries, in the same order, as rows in memory of a dtype that can be sorted and searched.

    Raises:
        ValueError: one is NaN.

    >>> query_scores(torch.tensor([[0.9, 0.6], [0.1, 0.3]]), torch.tensor([1]), "t2i")
    tensor([[0.6000, 0.3000]])
    """
    chosen = queries.to(scores.device)
    if direction == "i2t":
        part = scores[chosen]
        check_no_nan(part, queries, range(scores.shape[1]))
    else:
        part = _columns(scores, chosen)
        check_no_nan(part, range(len(scores)), queries)
        part = part.T
    dtype = torch.promote_types(scores.dtype, torch.float32) if scores.is_floating_point() else torch.float64
    return part.to("cpu", dtype).contiguous()


def _columns(scores: Float[Tensor, "image caption"], chosen: Int[Tensor, " some"]) -> Float[Tensor, "image some"]:
    """Some captions. Columns that are next to one another are copied together, which is thrice as fast."""
    first, last = int(chosen.min()), int(chosen.max())
    if last - first >= 2 * len(chosen):
        return scores[:, chosen]
    part = scores[:, first : last + 1].contiguous()
    return part if torch.equal(chosen, torch.arange(first, last + 1, device=chosen.device)) else part[:, chosen - first]


def _rank(
    scores: Float[Tensor, "query item"], answers: Int[Tensor, "query answer"], grades: Float[Tensor, "query answer"]
) -> tuple[Int[Tensor, "query answer"], Float[Tensor, "query answer"]]:
    """Ranks of the right answers, rising, and their grades in this order. Places with grade 0 are padding."""
    right = scores.gather(1, answers).masked_fill(grades == 0, float("-inf"))
    # By grade first, then stably by score: of equal scores the lower grade comes first, and padding last of all.
    order = grades.masked_fill(grades == 0, float("inf")).argsort(dim=1, stable=True)
    order = order.gather(1, right.gather(1, order).argsort(dim=1, descending=True, stable=True))
    right, grades = right.gather(1, order), grades.gather(1, order)
    real = grades > 0
    as_good = count_as_good(scores, right, real.sum(dim=1))
    as_good_right = torch.searchsorted(-right, -right, right=True).minimum(real.sum(dim=1, keepdim=True))
    place = torch.arange(1, right.shape[1] + 1)
    return (as_good - as_good_right + place) * real, grades


def count_as_good(
    scores: Float[Tensor, "query item"],
    values: Float[Tensor, "query value"],
    counts: Int[Tensor, " query"],
) -> Int[Tensor, "query value"]:
    """How many scores of a query are at least as high as each of its values.

    Args:
        scores: on the CPU.
        values: of each query the first `counts` are looked at; what is told of the others means nothing.
        counts: how many values a query has.

    >>> count_as_good(torch.tensor([[0.1, 0.5, 0.3]]), torch.tensor([[0.3, 0.9]]), torch.tensor([2]))
    tensor([[2, 0]])
    """
    if int(counts.sum()) > COUNTED * len(counts):
        rising = torch.from_numpy(np.sort(scores.numpy(), axis=1))  # torch would sort indices too
        return scores.shape[1] - torch.searchsorted(rising, values)
    # Queries of many values first: those that have a next one are then the first rows. NumPy counts faster than torch.
    order = counts.argsort(descending=True, stable=True)
    table, wanted, kept = scores[order].numpy(), values[order].numpy(), counts[order].numpy()
    found = np.zeros(values.shape, dtype=np.int64)
    for place in range(values.shape[1]):
        rows = slice(0, int(np.count_nonzero(kept > place)))
        found[rows, place] = np.count_nonzero(table[rows] >= wanted[rows, place, None], axis=1)
    result = torch.empty(values.shape, dtype=torch.int64)
    result[order] = torch.from_numpy(found)
    return result


def _query_metrics(answers: AnswerRanks, absent: Int[Tensor, " query"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rank of the best right answer, R-precision, mAP@R and nDCG of every query; the latter three from 0 to 1."""
    _, rank, grade = answers
    real = rank > 0
    count = real.sum(dim=1) + absent
    within = real & (rank <= count[:, None])
    precision = torch.arange(1, rank.shape[1] + 1) / rank.clamp_min(1).double()
    ideal = grade.sort(dim=1, descending=True).values
    places = torch.arange(1, rank.shape[1] + 1).expand_as(rank)
    return (
        rank[:, 0],
        within.sum(dim=1) / count.double(),
        (precision * within).sum(dim=1) / count,
        _gain(rank, grade) / _gain(places, ideal),
    )


def _gain(rank: Int[Tensor, "query answer"], grade: Float[Tensor, "query answer"]) -> Float[Tensor, " query"]:
    """Discounted cumulative gain."""
    return (grade / (rank + 1).double().log2().clamp_min(1)).sum(dim=1)


def mean_metrics(best: Tensor, r_precision: Tensor, average_precision: Tensor, gain: Tensor) -> dict[str, float]:
    """Means over queries, in percent, of what `query_metrics` gives.

    >>> mean_metrics(torch.tensor([1, 3]), *torch.tensor([[1.0, 0.5]] * 3).double())["mAP@R"]
    75.0
    """
    means = {"R-precision": r_precision, "mAP@R": average_precision, "nDCG": gain}
    percent = {name: 100 * float(values.mean()) for name, values in means.items()}
    return {**direction_metrics(best), **percent, "queries": len(best)}
