"""Exact nearest neighbors: found by a fast product, settled in float64 where rounding leaves the order open.

A squared distance |q - x|^2 is |q|^2 + |x|^2 - 2 <q, x>, so all pairs are one matrix product. Its rounding errors grow
with the lengths of the vectors, though, and not with their distance. So the points are centered first (at their median,
which a few long ones do not move), and every pair has a bound of its own:

    |computed - true| <= (dim + 32) u (|q| + |x|)^2

with lengths from the center and the unit roundoff u of the product's number format, 2^-24 for float32: dim roundings
of a product's sum, in whatever order, one or two of each coordinate, some of adding up the terms and of the bound, and
what counts as a tie in float64. Underflow has a term of its own. What the bound leaves open is computed again from the
differences q - x in float64, which are wrong in their last digits only; what even these cannot tell apart is a tie.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

BLOCK_ELEMENTS = 2**22
"""Distances, or differences of coordinates, held at once: some 300 MB of temporaries, whatever the number of images."""

MANY = 1 / 16
"""The share of candidates from which on one product in float64 is faster than single distances."""

LARGEST = 480
"""Exponent of the largest coordinate: as large as squares allow, so that those of small coordinates do not vanish."""

EQUAL = 8 * torch.finfo(torch.float64).eps
"""Relative to their size: how much two equal squared distances may differ in float64, summed pairwise."""

BLUR = 4 * torch.finfo(torch.float64).eps
"""How much the distance of two points may change when these are rounded to length one."""


class Neighbors(NamedTuple):
    """What some queries retrieve, nearest first, themselves left out."""

    query: Int[Tensor, "query"]
    """Which image each query is."""
    neighbor: Int[Tensor, "query neighbor"]
    """Which images are retrieved."""
    correct: Bool[Tensor, "query neighbor"]
    """Whether they are of the query's class."""


def as_points(embeddings: Float[Tensor, "image dim"], *, normalize: bool) -> Float[Tensor, "image dim"]:
    """Embeddings in float64, such that nothing overflows when they are squared.

    Args:
        embeddings: one row an image, of any real type and scale.
        normalize: give them length one, however short they are (only zeros stay zeros); otherwise all are scaled by one
            power of two, which rounds nothing.

    >>> as_points(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]), normalize=True)
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]], dtype=torch.float64)
    """
    points = embeddings.double() + 0.0  # there are no two zeros
    if normalize:
        # By the largest coordinate first: vectors that are multiples of each other become the same to the last bit.
        largest = points.abs().amax(dim=1, keepdim=True)
        points = points / largest.where(largest > 0, 1)
        return points / points.norm(dim=1, keepdim=True).clamp(min=1)
    return points * 2.0 ** min(1000, LARGEST - _exponent(points.abs().max()))


class Centered(NamedTuple):
    """Points about their median, of lengths of at most one, and the power of two that scaled them."""

    points: Float[Tensor, "image dim"]
    scale: float


def center(points: Float[Tensor, "image dim"]) -> Centered:
    """Move points so that their median, coordinate by coordinate, is the origin, and scale them to lengths up to one.

    >>> center(torch.tensor([[999.0], [1000.0], [1001.0]])).points.flatten()
    tensor([-0.5000,  0.0000,  0.5000])
    """
    moved = points - points.median(dim=0).values
    scale = 2.0 ** -_exponent(moved.norm(dim=1).max())
    return Centered(moved * scale, scale)


def nearest_neighbors(
    embeddings: Float[Tensor, "image dim"],
    labels: Int[Tensor, "image"],
    queries: Int[Tensor, "query"],
    gallery: Int[Tensor, "item"],
    count: int,
    *,
    normalize: bool = False,
    progress: bool = False,
) -> Iterator[Neighbors]:
    """The nearest images to every query by their distance in float64, some queries at a time.

    Wrong images come before right ones that are equally near, to the rounding of float64. No image is its own neighbor.

    Args:
        embeddings: one row an image, of any real type and scale.
        labels: its class.
        queries: which images to look up.
        gallery: which images to look among.
        count: how many neighbors, fewer than there are images in the gallery.
        normalize: compare by cosine instead of by Euclidean distance.
        progress: show a bar.

    >>> points, labels = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 1, 0])
    >>> everything = torch.arange(3)
    >>> (found,) = nearest_neighbors(points, labels, everything, everything, count=1)
    >>> found.neighbor.flatten(), found.correct.flatten()
    (tensor([1, 0, 1]), tensor([False, False, False]))
    """
    points = as_points(embeddings, normalize=normalize)
    gallery = _without_surplus(points, labels, gallery, count)
    search = _Search(points, labels, gallery, count, BLUR if normalize else 0.0)
    bar = {"desc": "neighbors", "unit": "block", "delay": 2, "leave": False, "disable": not progress}
    for block in tqdm(queries.split(max(1, BLOCK_ELEMENTS // len(gallery))), **bar):
        yield search.neighbors(block)


class _Product:
    """Squared distances to a gallery by one matrix product in a number format, with a bound on the error of each."""

    def __init__(self, points: Tensor, gallery: Tensor, dtype: torch.dtype, blur: float) -> None:
        lengths = points.norm(dim=1)
        self.queries, self.items = points.to(dtype), points[gallery].to(dtype)
        self.squares = lengths[gallery].square().to(dtype)
        self.query_lengths, self.item_lengths = lengths.to(dtype), lengths[gallery].to(dtype)
        dim, numbers = points.shape[1], torch.finfo(dtype)
        self.epsilon = (dim + 32) * numbers.eps / 2
        self.blur, self.underflow = blur, 4 * (dim + 1) * numbers.tiny

    def __call__(self, block: Int[Tensor, "query"]) -> tuple[Float[Tensor, "query item"], Float[Tensor, "query item"]]:
        """Squared distances, less the squared length of the query, which orders nothing; and the bounds."""
        with torch.autocast(self.items.device.type, enabled=False):
            value = torch.addmm(self.squares, self.queries[block], self.items.T, alpha=-2)
        reach = self.query_lengths[block, None] + self.item_lengths
        return value, (self.epsilon * reach + 2 * self.blur) * reach + self.blur**2 + self.underflow


class _Candidates(NamedTuple):
    """Pairs of a query and an item that may be among its neighbors, with what `_Product` gives."""

    row: Int[Tensor, "pair"]
    item: Int[Tensor, "pair"]
    value: Float[Tensor, "pair"]
    error: Float[Tensor, "pair"]


class _Search:
    """The neighbors of blocks of queries among one gallery."""

    def __init__(self, points: Tensor, labels: Tensor, gallery: Tensor, count: int, blur: float) -> None:
        self.points, self.labels, self.gallery, self.count, self.blur = points, labels, gallery, count, blur
        self.place = torch.full_like(labels, -1)
        self.place[gallery] = torch.arange(len(gallery), device=labels.device)
        centered = center(points)
        self.exact_product = functools.cache(
            lambda: _Product(centered.points, gallery, torch.float64, blur * centered.scale)
        )
        # Where a product of float32 is not computed in float32 (TF32, bfloat16), its bound does not hold.
        if _is_computed_in_float32():
            self.product = _Product(centered.points, gallery, torch.float32, blur * centered.scale)
        else:
            self.product = self.exact_product()

    def neighbors(self, block: Int[Tensor, "query"]) -> Neighbors:
        """The neighbors of some queries."""
        candidates = self.candidates(block, self.product)
        if len(candidates.row) > MANY * len(block) * len(self.gallery):
            candidates = self.candidates(block, self.exact_product())
        return self.settled(block, candidates)

    def candidates(self, block: Int[Tensor, "query"], product: _Product) -> _Candidates:
        """All pairs that may be among the `count` nearest, by a product."""
        value, error = product(block)
        itself = (self.place[block] >= 0).nonzero().squeeze(1)
        value[itself, self.place[block][itself]] = torch.inf
        surely_within = (value + error).topk(self.count, dim=1, largest=False).values[:, -1:]
        row, item = (value - error <= surely_within).nonzero(as_tuple=True)
        return _Candidates(row, item, value[row, item], error[row, item])

    def settled(self, block: Int[Tensor, "query"], candidates: _Candidates) -> Neighbors:
        """The nearest of the candidates, in the order of their distances in float64."""
        order = _lexsort(candidates.row, candidates.value)
        row, item, value, error = (column[order] for column in candidates)
        widest = value.new_zeros(len(block)).scatter_reduce(0, row, error, "amax")
        # Candidates of one query between which there is no gap form a run, whose order is open.
        apart = (row[1:] != row[:-1]) | (value[1:] - value[:-1] > 2 * widest[row[1:]])
        edges = torch.nn.functional.pad(apart, (1, 1), value=True)
        open_ = ~(edges[1:] & edges[:-1])
        distance = torch.zeros(len(row), dtype=torch.float64, device=row.device)
        distance[open_] = self.squared_distances(block[row[open_]], self.gallery[item[open_]])
        correct = self.labels[block[row]] == self.labels[self.gallery[item]]
        order = _lexsort(edges[:-1].cumsum(0), distance + correct * self.rounding(distance), correct)
        sizes = torch.bincount(row, minlength=len(block))
        nearest = order[(sizes.cumsum(0) - sizes)[:, None] + torch.arange(self.count, device=row.device)]
        return Neighbors(block, self.gallery[item[nearest]], correct[nearest])

    def squared_distances(self, one: Int[Tensor, "pair"], other: Int[Tensor, "pair"]) -> Float[Tensor, "pair"]:
        """Squared distances in float64 of pairs of images, by their differences."""
        few = max(1, BLOCK_ELEMENTS // self.points.shape[1])
        pairs = zip(one.split(few), other.split(few), strict=True)
        return torch.cat([(self.points[a] - self.points[b]).square().sum(dim=1) for a, b in pairs])

    def rounding(self, distance: Float[Tensor, "pair"]) -> Float[Tensor, "pair"]:
        """How much squared distances that are equal may differ in float64."""
        return EQUAL * distance + 2 * self.blur * distance.sqrt() + self.blur**2


def _is_computed_in_float32() -> bool:
    """Whether products of float32 are; torch refuses to say where it was told something for some devices only."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:
        return False


def _without_surplus(
    points: Float[Tensor, "image dim"], labels: Int[Tensor, "image"], gallery: Int[Tensor, "item"], count: int
) -> Int[Tensor, "item"]:
    """A gallery without the equal points that no query can have among its `count` neighbors.

    So an embedding that collapsed to one point does not leave all pairs open. Of equal points, the first of every class
    are kept, then the second, and so on: half of them are of other classes than the query, or all that there are.
    """
    point = points[gallery].unique(dim=0, return_inverse=True)[1]
    kind = torch.stack([point, labels[gallery]]).unique(dim=1, return_inverse=True)[1]
    order = _lexsort(point, _occurrence(kind))
    return gallery[(order[_occurrence(point[order]) < 2 * count + 2]).sort().values]


def _occurrence(groups: Int[Tensor, "item"]) -> Int[Tensor, "item"]:
    """How many items of the same group come before each item."""
    order = groups.argsort(stable=True)
    sizes = torch.bincount(groups)
    place = torch.arange(len(groups), device=groups.device) - (sizes.cumsum(0) - sizes)[groups[order]]
    return torch.empty_like(groups).index_copy(0, order, place)


def _lexsort(*keys: Tensor) -> Int[Tensor, "item"]:
    """The order of items by the first key, where that is equal by the second, and so on."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def _exponent(value: Float[Tensor, ""]) -> int:
    """The power of two above a number."""
    return int(torch.frexp(value).exponent)
