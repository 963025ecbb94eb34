"""Hubs: what many queries retrieve. How much of it there is, and scores that make up for it.

In high dimensions a few images are near to most captions, and many images are near to none. The ways here to
make up for it take from every score an offset of the image and one of the caption. Only the offset of what is searched
changes a ranking, that of who asks does not, so that one matrix serves both directions.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from xmodal.evaluation.ranks import BLOCK_ELEMENTS, as_matrix
from xmodal.evaluation.relevance import DIRECTIONS, check_direction, query_scores
from xmodal.numerics import check_count, check_number
from xmodal.scoring.blocks import bar_options
from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.evaluation.relevance import Direction

ROUNDS = 10
"""Rounds of Sinkhorn's algorithm, as published for DBSN."""

SMALLEST = 1e-280
"""Sums of float64 below which what is too small for it may have been lost."""


class Bank(NamedTuple):
    """Scores of other images and captions than those that are evaluated, of the training set say.

    They say which images and captions are hubs without a look at the queries of the test.
    """

    captions: Float[Tensor, "image bank_caption"]
    """The images that are evaluated against the captions of the bank."""
    images: Float[Tensor, "bank_image caption"]
    """The images of the bank against the captions that are evaluated."""
    both: Float[Tensor, "bank_image bank_caption"]
    """The images of the bank against its captions."""

    def select(self, images: Int[Tensor, " some"], captions: Int[Tensor, " some"]) -> Bank:
        """The bank for some of the images and captions that are evaluated.

        >>> bank = Bank(torch.zeros(5, 3), torch.zeros(2, 7), torch.zeros(2, 3))
        >>> [tuple(scores.shape) for scores in bank.select(torch.tensor([4, 0]), torch.tensor([6]))]
        [(2, 3), (2, 1), (2, 3)]
        """
        return Bank(self.captions[images], self.images[:, captions], self.both)


class Offsets(NamedTuple):
    """What is taken from the scores of every image and of every caption."""

    images: Float[Tensor, " image"]
    captions: Float[Tensor, " caption"]


@torch.no_grad()
def hubness(scores: Float[Tensor, "image caption"], *, k: int = 10) -> dict[str, Any]:
    """How unevenly captions (`i2t`) and images (`t2i`) are retrieved.

    The k-occurrence of an item is the number of queries that have it among their first k (Radovanovic et al., JMLR
    2010). An item counts as retrieved where at most k items, itself among them, score at least as high as it does:
    what is tied across the k-th place is not.

    Args:
        scores: similarity of every image to every caption, higher is more alike.
        k: answers of a query that are looked at.

    Returns:
        `{"i2t": {...}, "t2i": {...}, "k": k}`, each with

        - `skewness`: of the k-occurrences, third central moment by the cube of the standard deviation; 0 where all are
          equal. The more it is above 0, the more few items take the places of many.
        - `never`: share of items that no query retrieves, in percent.
        - `most`: the largest k-occurrence.

    Raises:
        ValueError: scores of another shape, a NaN score, or a k below 1.

    >>> hubness(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.6]]), k=1)["i2t"]  # all images retrieve caption 0
    {'skewness': 0.0, 'never': 50.0, 'most': 3}
    """
    result: dict[str, Any] = {}
    for direction in DIRECTIONS:
        counts = occurrences(scores, direction, k=k).double()
        apart = counts - counts.mean()
        spread = float((apart**2).mean())
        result[direction] = {
            "skewness": float((apart**3).mean()) / spread**1.5 if spread else 0.0,
            "never": 100.0 * float((counts == 0).double().mean()),
            "most": int(counts.max()),
        }
    return {**result, "k": k}


@torch.no_grad()
def occurrences(scores: Float[Tensor, "image caption"], direction: Direction, *, k: int = 10) -> Int[Tensor, " item"]:
    """How many queries have each item among their first k: captions for `i2t`, images for `t2i`; see `hubness`.

    >>> occurrences(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), "i2t", k=1)
    tensor([2, 0])
    """
    scores = check_matrix(scores)
    check_direction(direction)
    check_count("k", k)
    queries, items = scores.shape[:: 1 if direction == "i2t" else -1]
    counts = torch.zeros(items, dtype=torch.int64)
    blocks = torch.arange(queries).split(max(1, BLOCK_ELEMENTS // items))
    for chosen in tqdm(blocks, "looking for hubs", unit="block", **bar_options(progress=True)):
        first, is_first = first_answers(query_scores(scores, chosen, direction), k)
        counts += torch.bincount(first[is_first], minlength=items)
    return counts


def first_answers(
    part: Float[Tensor, "query item"], k: int
) -> tuple[Int[Tensor, "query answer"], Float[Tensor, "query answer"]]:
    """The best k items of every query, best first, and whether each is among the first k however ties are broken.

    >>> first_answers(torch.tensor([[0.5, 0.9, 0.5]]), 2)[1]  # two items are tied across the second place
    tensor([[ True, False]])
    """
    items = part.shape[1]
    values, places = part.topk(min(k + 1, items), dim=1)
    if items <= k:
        return places, torch.ones_like(places, dtype=torch.bool)
    return places[:, :k], values[:, :k] > values[:, k:]


def dual_softmax(
    scores: Float[Tensor, "image caption"], bank: Bank | None = None, *, temperature: float = 0.01
) -> Offsets:
    """Offsets that rank by the product of two softmaxes of the scores, over images and over captions.

    In logarithms, and in units of the score, the product is score - temperature / 2 (logsumexp of the image's row +
    logsumexp of the caption's column), which neither underflows nor needs a matrix a direction. (The form of Cheng et
    al., arXiv 2109.04290, multiplies the score itself by the softmax over the queries.) It reads all queries of the
    test together, which no search engine could: such figures are not comparable to those of single queries.

    Args:
        scores: similarity of every image to every caption; the temperature is in its units, 0.01 suits cosines.
        bank: must be None: this is a normalization by the test set itself.
        temperature: above 0; the smaller, the more the best partner of an item counts alone.

    Raises:
        ValueError: there is a bank, scores of another shape, or a temperature that is not positive.

    >>> scores = torch.tensor([[0.9, 1.0], [0.8, 0.1]])  # image 0 is the best of both captions
    >>> subtract_offsets(scores, dual_softmax(scores, temperature=0.1)).argmax(dim=0)
    tensor([1, 0])
    """
    check_takes_bank("dual_softmax", bank is not None)
    return Offsets(*(offsets / 2 for offsets in querybank(scores, temperature=temperature)))


@torch.no_grad()
def querybank(
    scores: Float[Tensor, "image caption"], bank: Bank | None = None, *, temperature: float = 0.05
) -> Offsets:
    """Offsets that rank by the inverted softmax: what an item scores against a bank of queries counts against it.

    The inverted softmax (Smith et al., ICLR 2017; Bogolin et al., CVPR 2022, eq. 3) divides exp(score / temperature) by
    its sum over a bank of queries; its logarithm in units of the score is score - temperature logsumexp(bank /
    temperature). (The dynamic form of Bogolin et al. leaves out queries whose first answer is no hub; this one does
    not.)

    Args:
        scores: similarity of every image to every caption; the temperature is in its units.
        bank: scores against other queries; None takes those of the test set, all together, which is no longer a
            figure for single queries.
        temperature: above 0; 0.05 is 1 / 20, as published.

    Raises:
        ValueError: shapes that do not go together, or a temperature that is not positive.

    >>> scores = torch.tensor([[0.9, 0.8], [0.5, 0.1]])
    >>> bank = Bank(torch.tensor([[0.9], [0.1]]), torch.tensor([[0.3, 0.3]]), torch.tensor([[0.5]]))
    >>> subtract_offsets(scores, querybank(scores, bank))
    tensor([[-0.3000, -0.4000],
            [ 0.1000, -0.3000]])
    """
    scores, bank = check_bank(scores, bank)
    check_number("temperature", temperature, above=0)
    captions, images = (scores, scores) if bank is None else (bank.captions, bank.images)
    of_images = torch.cat([(part / temperature).logsumexp(dim=1) for part in _rows(captions)])
    of_captions = _over_rows(part / temperature for part in _rows(images))
    return Offsets(temperature * of_images, temperature * of_captions)


@torch.no_grad()
def dbsn(
    scores: Float[Tensor, "image caption"],
    bank: Bank | None = None,
    *,
    temperature: float = 0.01,
    rounds: int = ROUNDS,
) -> Offsets:
    """Offsets of images by Sinkhorn's algorithm on two banks, in the manner of DBSN (ACM Multimedia 2025).

    The matrix of all images, evaluated and of the bank, against the captions of the bank is scaled towards rows and
    columns of equal sums; an image whose row had to be scaled down is a hub and gets that much less. Captions have no
    offset: images retrieve what they did.

    Args:
        scores: similarity of every image to every caption, on the scale of cosines.
        bank: other images and captions. It is needed.
        temperature: of the kernel exp(-(1 - score) / temperature).
        rounds: of Sinkhorn's algorithm; rows are scaled first, then columns.

    Raises:
        ValueError: there is no bank, shapes that do not go together, or numbers that are not positive.

    >>> bank = Bank(torch.tensor([[0.9, 0.8], [0.1, 0.2]]), torch.zeros(1, 3), torch.tensor([[0.5, 0.4]]))
    >>> [round(float(offset), 2) for offset in dbsn(torch.zeros(2, 3), bank, temperature=0.1).images]
    [0.04, -0.65]
    """
    check_takes_bank("dbsn", bank is not None)
    scores, bank = check_bank(scores, bank)
    assert bank is not None, "checked"
    of_all = sinkhorn_potentials([bank.captions, bank.both], temperature, rounds).images
    return Offsets(of_all[: len(scores)], of_all.new_zeros(scores.shape[1]))


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "image caption"],
    bank: Bank | None = None,
    *,
    temperature: float = 0.01,
    rounds: int = ROUNDS,
) -> Offsets:
    """Offsets of both sides by Sinkhorn's algorithm: `dbsn` with its mirror image for captions, which is ours.

    Args:
        scores: similarity of every image to every caption, on the scale of cosines.
        bank: other images and captions; None scales the scores of the test set themselves, all queries together.
        temperature: as for `dbsn`.
        rounds: as for `dbsn`.

    Raises:
        ValueError: shapes that do not go together, or numbers that are not positive.

    >>> scores = torch.tensor([[0.9, 0.8], [0.5, 0.1]])
    >>> subtract_offsets(scores, sinkhorn(scores, temperature=0.1)).argmax(dim=0)
    tensor([1, 0])
    """
    scores, bank = check_bank(scores, bank)
    if bank is None:
        return sinkhorn_potentials([scores], temperature, rounds)
    of_images = sinkhorn_potentials([bank.captions, bank.both], temperature, rounds).images[: len(scores)]
    across = sinkhorn_potentials([bank.images.T, bank.both.T], temperature, rounds)
    return Offsets(of_images, across.images[: scores.shape[1]])


def sinkhorn_potentials(
    parts: Sequence[Float[Tensor, "some_image caption"]], temperature: float, rounds: int = ROUNDS
) -> Offsets:
    """- temperature log u and - temperature log v of the scalings that give exp(-(1 - score) / temperature) equal sums.

    All in float64, in logarithms where it matters, and in one pass over the scores a round.

    Args:
        parts: the matrix, its images in parts.
        temperature: of the kernel.
        rounds: u = (1 / images) / (K v), then v = (1 / captions) / (K' u), so many times, from v = 1.

    Raises:
        ValueError: numbers that are not positive.

    >>> offsets = sinkhorn_potentials([torch.tensor([[0.9, 0.8], [0.5, 0.4]])], 0.1)
    >>> round(float(offsets.images[0] - offsets.images[1]), 6)  # image 0 scores 0.4 more throughout
    0.4
    """
    check_number("temperature", temperature, above=0)
    check_number("rounds", rounds, least=1)
    images, captions = sum(map(len, parts)), parts[0].shape[1]
    log_u, log_v = torch.zeros(images).double(), torch.zeros(captions).double()
    for _ in tqdm(range(rounds), "making up for hubs", unit="round", **bar_options(progress=True)):
        of_rows, shares = [], torch.zeros(captions).double()
        for part in _kernels(parts, temperature):
            largest = part.add_(log_v).amax(dim=1)
            weights = part.sub_(largest[:, None]).exp_()
            masses = weights.sum(dim=1)
            of_rows.append(-largest - masses.log() - math.log(images))
            shares += masses.reciprocal() @ weights
        log_u = torch.cat(of_rows)
        log_v = log_v + math.log(images / captions) - shares.log()
        lost = (shares < SMALLEST).nonzero().flatten()
        if len(lost):  # of a caption that no image has a weight for in float64; in logarithms there is one
            log_v[lost] = -_log_sums(parts, temperature, log_u, lost) - math.log(captions)
    return Offsets(-temperature * log_u, -temperature * log_v)


def _kernels(
    parts: Sequence[Float[Tensor, "some_image caption"]], temperature: float
) -> Iterator[Float[Tensor, "some_image caption"]]:
    """Logarithms of the kernel, some images at a time, free to be written to."""
    for part in (rows for scores in parts for rows in _rows(scores)):
        yield (part - 1).div_(temperature)


def _log_sums(
    parts: Sequence[Float[Tensor, "some_image caption"]],
    temperature: float,
    log_u: Float[Tensor, " image"],
    columns: Int[Tensor, " some_caption"],
) -> Float[Tensor, " some_caption"]:
    """Logarithms of the sums over the images of u times the kernel, for some captions."""
    chosen = [scores[:, columns] for scores in parts]
    starts = [0, *itertools.accumulate(len(kernel) for kernel in _kernels(chosen, temperature))]
    kernels = zip(starts, _kernels(chosen, temperature), strict=False)
    return _over_rows(kernel + log_u[start : start + len(kernel), None] for start, kernel in kernels)


@torch.no_grad()
def subtract_offsets(scores: Float[Tensor, "image caption"], offsets: Offsets) -> Float[Tensor, "image caption"]:
    """Scores less the offsets of their image and caption, in at least float32.

    Raises:
        ValueError: an offset is not finite, which comes of scores that are not.

    >>> subtract_offsets(torch.tensor([[0.5, 1.0]]), Offsets(torch.tensor([0.5]), torch.tensor([0.0, 2.0])))
    tensor([[ 0.0000, -1.5000]])
    """
    scores = check_matrix(scores)
    for side, values in offsets._asdict().items():
        wrong = (~values.isfinite()).nonzero()
        if len(wrong):
            raise ValueError(
                f"the scores of {side[:-1]} {int(wrong[0])} cannot be normalized: their offset is "
                f"{float(values[wrong[0]])}; look for scores that are infinite or NaN"
            )
    dtype = torch.promote_types(scores.dtype, torch.float32) if scores.is_floating_point() else torch.float64
    result = torch.empty(scores.shape, dtype=dtype)
    step = max(1, BLOCK_ELEMENTS // scores.shape[1])
    for start in range(0, len(scores), step):
        rows = slice(start, start + step)
        result[rows] = scores[rows].double() - offsets.images[rows, None] - offsets.captions
    return result


NORMALIZATIONS: dict[str, Callable[..., Offsets]] = {
    "dual_softmax": dual_softmax,
    "querybank": querybank,
    "dbsn": dbsn,
    "sinkhorn": sinkhorn,
}
"""What makes up for hubs, by name: `function(scores, bank=None, *, temperature=...) -> Offsets`."""


def find_normalization(name: str) -> Callable[..., Offsets]:
    """The normalization of that name.

    Raises:
        ValueError: there is none; the nearest name is suggested.

    >>> find_normalization("querybank") is querybank
    True
    """
    if name not in NORMALIZATIONS:
        known = ", ".join(NORMALIZATIONS)
        raise ValueError(f"there is no normalization {name!r}{near_miss(name, NORMALIZATIONS)}; known: {known}")
    return NORMALIZATIONS[name]


def check_takes_bank(name: str, is_given: bool) -> None:
    """Make sure that a normalization has the bank that it needs, or none where it takes none.

    Raises:
        ValueError: it is otherwise.

    >>> check_takes_bank("dual_softmax", is_given=False)
    >>> check_takes_bank("dual_softmax", is_given=True)
    Traceback (most recent call last):
    ...
    ValueError: dual_softmax normalizes by the queries of the test set; for a bank of others take querybank
    """
    if name == "dual_softmax" and is_given:
        raise ValueError("dual_softmax normalizes by the queries of the test set; for a bank of others take querybank")
    if name == "dbsn" and not is_given:
        raise ValueError("dbsn needs a bank of other images and captions; without one take sinkhorn")


def check_matrix(scores: Float[Tensor, "image caption"]) -> Float[Tensor, "image caption"]:
    """Scores as a tensor of images and captions.

    Raises:
        ValueError: they are of another shape.

    >>> check_matrix(torch.zeros(3))
    Traceback (most recent call last):
    ...
    ValueError: scores have shape (3,); expected (image, caption), at least one of each
    """
    return as_matrix(scores)


def check_bank(
    scores: Float[Tensor, "image caption"], bank: Bank | None
) -> tuple[Float[Tensor, "image caption"], Bank | None]:
    """Scores and a bank that goes with them.

    Raises:
        ValueError: wrong shapes.

    >>> check_bank(torch.zeros(2, 3), Bank(torch.zeros(2, 5), torch.zeros(4, 2), torch.zeros(4, 5)))
    Traceback (most recent call last):
    ...
    ValueError: the bank's scores have shapes (2, 5), (4, 2) and (4, 5); for scores of (2, 3) they are ...
    """
    scores = check_matrix(scores)
    if bank is None:
        return scores, None
    shapes = [tuple(part.shape) for part in bank]
    images, captions = scores.shape
    others = len(bank.both), bank.both.shape[-1]
    if not bank.both.numel() or shapes != [(images, others[1]), (others[0], captions), others]:
        raise ValueError(
            f"the bank's scores have shapes {shapes[0]}, {shapes[1]} and {shapes[2]}; for scores of "
            f"{tuple(scores.shape)} they are ({images}, bank caption), (bank image, {captions}) and "
            "(bank image, bank caption), at least one of each"
        )
    return scores, bank


def _rows(scores: Float[Tensor, "image caption"]) -> Iterator[Float[Tensor, "some_image caption"]]:
    """Images of a matrix, some at a time, on the CPU in float64."""
    for part in scores.split(max(1, BLOCK_ELEMENTS // scores.shape[1])):
        yield part.to("cpu", torch.float64)


def _over_rows(parts: Iterable[Float[Tensor, "some_image caption"]]) -> Float[Tensor, " caption"]:
    """The logsumexp of every column of a matrix that comes in parts."""
    total = None
    for part in parts:
        of_part = part.logsumexp(dim=0)
        total = of_part if total is None else torch.logaddexp(total, of_part)
    assert total is not None  # there is an image
    return total
