"""Attention scores from compressed vectors: approximate ones from 4 bits, upper bounds from 8."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.heads.attention import EPSILON, Side, stacked_attention
from xmodal.heads.bfan import refocus
from xmodal.scoring.blocks import side_by_side
from xmodal.search import native
from xmodal.search.bound import STEPS, Estimate, aggregated, nearest_direction, upper_bounds
from xmodal.search.quantize import unpack_scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float, Int, Int8
    from torch import Tensor

    from xmodal.heads.comparison import CrossAttention
    from xmodal.search.collection import Collection, Part
    from xmodal.search.manifest import Indexed
    from xmodal.search.quantize import Quantizer
    from xmodal.search.segment import Segment

PRODUCTS = 1 << 20
"""Products of a block, at most: a few buffers of them stay in the cache or near it."""

FEW = 1024
"""Items for which other threads are not woken."""

NATIVE_ROWS = 1 << 16
"""Vectors of a block that is bounded item by item: few enough that all threads have work to the end."""

COLUMNS = 16
"""Vectors of queries are padded to a multiple of this, in which integer products are fastest."""


class Rounded(NamedTuple):
    """Vectors in integers, for products with those of an index."""

    codes: Int8[Tensor, "column coordinate"]
    """Padded with zeros; one vector a row, or with `fine` steps two: coarse ones, then what they leave out."""
    vectors: int
    """How many."""
    step: float
    error: float
    """Length of what is left out of a vector, at most."""
    norm: float
    """The greatest of the vectors."""
    least: float = 1.0
    """Of the factors that the vectors were divided by, in units of their lengths, the smallest."""

    @classmethod
    def of(cls, coordinates: Float[Tensor, "place coordinate"], *, fine: bool = False) -> Rounded:
        """Round all vectors with one step."""
        step = float(coordinates.abs().max()) / 127 or 1.0
        codes = (coordinates / step).round()
        left = coordinates - codes * step
        rows = [codes]
        if fine:
            rows.append((left * (FINE / step)).round().clamp(-127, 127))
            left = left - rows[1] * (step / FINE)
        padding = codes.new_zeros(-len(codes) * len(rows) % COLUMNS, codes.shape[1])
        norm = float(coordinates.norm(dim=1).max())
        error = float(left.norm(dim=1).max()) + 1e-5 * norm
        return cls(torch.cat([*rows, padding]).to(torch.int8), len(codes), step, error, norm)


FINE = 254
"""Fine steps in a coarse one."""


class Query(NamedTuple):
    """What is searched for: the vectors of one caption or image, all real, with what is computed of them once."""

    vectors: Float[Tensor, "place dim"]
    coordinates: Float[Tensor, "place coordinate"]
    norms: Float[Tensor, " place"]
    gram: Float[Tensor, "place place"]
    spread: float
    """The greatest length of the products of these vectors with a vector of length one."""
    fine: Rounded
    attending: Rounded
    """The vectors in length one: as queries, of whose products with contexts the greatest counts."""
    reach: Float[Tensor, " place"]
    """Products of the vectors with the direction nearest to all, at least; zero where that is not near."""
    attended: Rounded | None
    """The vectors divided by their products with the direction nearest to all: as contexts; None if there is none."""
    words: native.Words

    @classmethod
    def of(cls, vectors: Float[Tensor, "place dim"], quantizer: Quantizer) -> Query:
        """The query of some vectors."""
        vectors = vectors.float()
        coordinates, norms, gram = quantizer.rotate(vectors), vectors.norm(dim=1), vectors @ vectors.T
        spread = float(torch.linalg.matrix_norm(vectors.double(), 2)) * (1 + 1e-5)
        fine = Rounded.of(coordinates, fine=True)
        attending = Rounded.of(coordinates / norms[:, None].clamp_min(EPSILON))
        reach = (nearest_direction(gram[None])[0] - 1e-5 * float(norms.max())).clamp_min(0)
        attended = None
        if float(reach.min()) > 1e-3:
            least = float((reach / norms).min())
            attended = Rounded.of(coordinates / reach[:, None])._replace(least=least)
        words = native.Words.of(coordinates, norms, spread, quantizer.lead)
        return cls(vectors, coordinates, norms, gram, spread, fine, attending, reach, attended, words)


class Compressed:
    """The compressed vectors of an index, and how they are compared with a query.

    Args:
        collection: the items.
        quantizer: what compressed them.
        how: the comparison of the head.
        indexed: which side they are.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from xmodal.heads.comparison import CrossAttention
        >>> from xmodal.search.collection import Collection
        >>> from xmodal.search.compressed import Compressed, Query
        >>> from xmodal.search.manifest import SegmentEntry
        >>> from xmodal.search.quantize import Quantizer
        >>> from xmodal.search.draft import Items, draft, write_segment
        >>> from xmodal.search.segment import Segment
        >>> vectors = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
        >>> quantizer, path = Quantizer.fit(vectors), Path("a.safetensors")
        >>> write_segment(path, [draft(Items(["7", "8"], vectors, torch.tensor([2, 4])), quantizer)])
        >>> collection = Collection([Segment(path)], [SegmentEntry(path.name, 2, 0)])
        >>> compressed = Compressed(collection, quantizer, CrossAttention(), "images")
        >>> both, query = torch.arange(2), Query.of(vectors[:3], quantizer)
        >>> approximate = compressed.approximate([query], both)
        >>> approximate.shape, bool((compressed.bounds(query, both) > approximate[0] - 0.2).all())
        (torch.Size([1, 2]), True)
    """

    def __init__(self, collection: Collection, quantizer: Quantizer, how: CrossAttention, indexed: Indexed) -> None:
        self.collection, self.quantizer, self.how = collection, quantizer, how
        as_context = (how.direction == "t2i") == (indexed == "images")
        self.roles = (True, False) if how.both else (as_context,)
        """Whether the items are what is attended over (else they attend), for each direction that counts."""

    def approximate(
        self, queries: Sequence[Query], items: Int[Tensor, " item"], *, bits: int = 4
    ) -> Float[Tensor, "query item"]:
        """Scores by the leading coordinates in 4 bits, or by all in 8: one product with all queries a block."""
        scores = torch.empty(len(queries), len(items))
        groups: dict[int, list[int]] = defaultdict(list)
        for number, query in enumerate(queries):
            groups[len(query.vectors)].append(number)
        used = slice(self.quantizer.lead if bits == 4 else None)
        stacks = [
            torch.stack([queries[number].coordinates[:, used] for number in group], 1) for group in groups.values()
        ]
        columns = torch.cat([stack.flatten(0, 1) for stack in stacks])
        members = list(groups.values())

        def work(segment: Segment, length: int, some: Int[Tensor, " item"]) -> Float[Tensor, "query item"]:
            if bits == 4:
                values = unpack_scan(segment.take("scan", length, some))
            else:
                values = self.quantizer.decode(
                    *(segment.take(name, length, some) for name in ("lead", "rest", "steps"))
                )
            products = (values @ columns.T).split([stack.shape[0] * stack.shape[1] for stack in stacks], dim=1)
            values, norms = values.view(len(some), length, -1), segment.norms(length, some)
            gram = values @ values.transpose(1, 2) if True in self.roles else norms
            if True in self.roles:
                gram.diagonal(dim1=1, dim2=2).copy_(norms.square())
            contexts, found = Side(values, torch.ones_like(norms, dtype=torch.bool), norms, gram), []
            for group, tile in zip(members, products, strict=True):
                tile = tile.reshape(len(some), length, -1, len(group))
                found.append(self._attended(tile, contexts, [queries[number] for number in group]))
            return torch.cat(found)

        order = torch.tensor([number for group in members for number in group])
        for places, found in self._blocks(items, PRODUCTS // len(columns), work):
            scores[order[:, None], places] = found
        return scores

    def _attended(
        self, products: Float[Tensor, "item place other query"], items: Side, queries: Sequence[Query]
    ) -> Float[Tensor, "query item"]:
        """Scores of items with queries that have equally many vectors."""
        how = self.how
        score = partial(
            stacked_attention,
            normalization=how.normalization,
            temperature=how.temperature,
            aggregation=how.aggregation,
            lse_scale=how.lse_scale,
            focal=how.focal,
            focus=None if how.focal is None else partial(refocus, focal=how.focal),
        )
        norms = torch.stack([query.norms for query in queries])
        others = Side(norms, torch.ones_like(norms, dtype=torch.bool), norms, torch.stack([q.gram for q in queries]))
        total = products.new_zeros(len(queries), len(products))
        for as_context in self.roles:
            if as_context:
                total += score(products, items, others.norms.T[None], others.mask.T[None]).T
            else:
                exchanged = products.permute(3, 2, 1, 0).contiguous()
                total += score(exchanged, others, items.norms.T[None], items.mask.T[None])
        return total

    def estimates(self, query: Query, items: Int[Tensor, " item"]) -> Float[Tensor, " item"]:
        """Scores by all coordinates in 8 bits."""
        if not self.served(query):
            return self.approximate([query], items, bits=8)[0]
        return self.natively(query, items, steps=native.ESTIMATE)

    def reaching(self, query: Query, items: Int[Tensor, " item"], least: float) -> Int[Tensor, " some"]:
        """Those of some items whose scores with a query may be so high."""
        if self.served(query):
            return items[self.natively(query, items, steps=STEPS, enough=least) >= least]
        items = items[self.cone_bounds([query], items)[0] >= least]
        for steps in (1, STEPS):  # the first excludes most of them at half the price
            items = items[self.bounds(query, items, steps=steps) >= least]
        return items

    def served(self, query: Query) -> bool:
        """Whether one pass over memory bounds and estimates (see `xmodal.search.native`)."""
        return native.served(self.how, self.roles, len(query.vectors))

    def natively(self, query: Query, items: Int[Tensor, " item"], **options: float) -> Float[Tensor, " item"]:
        """Bounds or estimates by `xmodal.search.native.bounds`, whose options these are."""
        found = torch.empty(len(items))

        def work(segment: Segment, length: int, some: Int[Tensor, " item"]) -> Float[Tensor, " item"]:
            return native.bounds(query.words, self.how, segment, length, some, **options)  # type: ignore[arg-type]

        for places, some in self._blocks(items, NATIVE_ROWS, work):
            found[places] = some
        return found

    def cone_bounds(self, queries: Sequence[Query], items: Int[Tensor, " item"]) -> Float[Tensor, "query item"]:
        """Wide bounds on the scores of queries with items, at the price of one product with all queries a block.

        Whatever the attention weights are, a similarity is at most the greatest product with a context item, divided by
        that of the context item with one direction (see `xmodal.search.bound`).
        """
        rounded: list[list[Rounded]] = []
        for role in self.roles:
            row = [query.attending if role else query.attended for query in queries]
            rounded.append([each for each in row if each is not None])
        if min(map(len, rounded)) < len(queries):  # the vectors of a query are near no direction
            return torch.full((len(queries), len(items)), torch.inf)
        bounds = torch.empty(len(queries), len(items))
        codes = torch.cat([each.codes for row in rounded for each in row])
        tasks = self._blocks(items, PRODUCTS // len(codes), lambda *block: self._cones(rounded, codes, *block))
        for places, found in tasks:
            bounds[:, places] = found
        return bounds

    def bounds(self, query: Query, items: Int[Tensor, " item"], *, steps: int = STEPS) -> Float[Tensor, " item"]:
        """The most that the scores of some items with a query can be."""
        bounds = torch.empty(len(items))
        most_rows = PRODUCTS // 4 // len(query.fine.codes)
        for places, found in self._blocks(items, most_rows, lambda *block: self._bounded(query, steps, *block)):
            bounds[places] = found
        return bounds

    def _blocks(
        self,
        items: Int[Tensor, " item"],
        most_rows: int,
        work: Callable[[Segment, int, Int[Tensor, " item"]], Tensor],
    ) -> Iterator[tuple[Int[Tensor, " some"], Tensor]]:
        """The results of blocks of items of equal length, and where in `items` they are, by all threads."""

        workers = torch.get_num_threads() if len(items) > FEW else 1
        tasks = (task for part in self.collection.parts(items) for task in self._tasks(part, max(1, most_rows), work))
        before: Segment | None = None
        for segment, places, found in side_by_side(tasks, workers) if workers > 1 else (task() for task in tasks):
            if before is not None and segment is not before:
                self.collection.let_go(before)
            before = segment
            yield places, found
        if before is not None:
            self.collection.let_go(before)

    def _tasks(
        self, part: Part, most_rows: int, work: Callable[[Segment, int, Int[Tensor, " item"]], Tensor]
    ) -> Iterator[Callable[[], tuple[Segment, Tensor, Tensor]]]:
        done = 0
        for length, some in part.segment.blocks(part.items, most_rows):
            places = part.places[done : done + len(some)]
            done += len(some)
            yield partial(_placed, places, work, part.segment, length, some)

    def _products(
        self, codes: Int8[Tensor, "column coordinate"], segment: Segment, length: int, items: Int[Tensor, " item"]
    ) -> list[Int[Tensor, "column row"]]:
        """Integer products of a query's codes with the two parts of the items'."""
        lead = self.quantizer.lead
        products = []
        for name, part in (("lead", codes[:, :lead]), ("rest", codes[:, lead:])):
            if part.shape[1]:
                rows = torch.from_numpy(segment.take(name, length, items))
                products.append(torch._int_mm(part.contiguous(), rows.T))  # pyright: ignore[reportPrivateImportUsage]
        return products

    def _cones(
        self,
        rounded: list[list[Rounded]],
        codes: Int8[Tensor, "column coordinate"],
        segment: Segment,
        length: int,
        items: Int[Tensor, " item"],
    ) -> Float[Tensor, "query item"]:
        products = self._products(codes, segment, length, items)
        steps, errors, norms = _scales(segment, length, items)
        start, total = 0, torch.zeros(len(rounded[0]), len(items))
        for role, row in zip(self.roles, rounded, strict=True):
            cosine = _cosines(segment, length, items) if role else torch.ones_like(norms)
            reach = norms * cosine
            scale = 1 / reach.clamp_min(1e-9)
            nothing = torch.where(reach > 0, 0.0, torch.inf)  # is known
            for number, query in enumerate(row):
                columns = slice(start, start + query.vectors)
                start += len(query.codes)
                found = (query.norm * errors + query.error * (norms + errors)) * scale + nothing
                for each, step in zip(products, steps, strict=False):
                    found = torch.addcmul(found, each[columns].float(), step * scale, value=query.step)
                least = cosine.view(len(items), length).amin(dim=1) if role else query.least
                total[number] += self._most(found.view(-1, len(items), length), role, least)
        return total

    def _most(
        self, found: Float[Tensor, "column item place"], as_context: bool, least: Float[Tensor, " item"] | float
    ) -> Float[Tensor, " item"]:
        """The score where every query has its greatest similarity: products divided by reach, of which one is `least`.

        All that is negative is to be divided by the length of the context item instead, which is more.
        """
        most = found.amax(dim=2) if as_context else found.amax(dim=0).T
        return aggregated(self.how, torch.where(most < 0, most * least, most))

    def _bounded(
        self, query: Query, steps: int, segment: Segment, length: int, items: Int[Tensor, " item"]
    ) -> Float[Tensor, " item"]:
        many, shape = query.fine.vectors, (query.fine.vectors, len(items), length)
        scales, errors, norms = _scales(segment, length, items)
        products = torch.zeros(many, len(errors))
        for each, scale in zip(self._products(query.fine.codes, segment, length, items), scales, strict=False):
            fine = torch.add(each[:many].float(), each[many : 2 * many].float(), alpha=1 / FINE)
            products.addcmul_(fine, scale, value=query.fine.step)
        products = products.view(shape)
        missed = (query.fine.error * (norms + errors)).view(shape[1:]).T  # (place, item), as all that follows
        errors, norms = errors.view(shape[1:]).T, norms.view(shape[1:]).T
        total = torch.zeros(len(items))
        for as_context in self.roles:
            if as_context:
                gram, cosines = segment.gram(length, items), _cosines(segment, length, items).view(shape[1:]).T
                wrong = 2.0**-11 * gram.flatten(1).abs().amax(dim=1) + 4e-5 * norms.amax(dim=0).square()
                entry = errors[:, None] * query.norms[:, None] + missed[:, None]
                column = query.spread * errors + many**0.5 * missed
                estimate = Estimate(
                    products.permute(2, 0, 1).contiguous(),
                    entry,
                    column,
                    gram,
                    wrong,
                    query.norms[:, None],
                    norms,
                    norms * cosines,
                )
            else:
                entry = query.norms[:, None, None] * errors + missed
                column = query.norms[:, None] * errors.norm(dim=0) + missed.norm(dim=0)
                exchanged = products.transpose(1, 2).contiguous()
                sure = torch.zeros(1)
                near = (query.gram[None], sure, norms, query.norms[:, None], query.reach[:, None])
                estimate = Estimate(exchanged, entry, column, *near)
            total += upper_bounds(self.how, estimate, steps=steps)
        return total


def _scales(
    segment: Segment, length: int, items: Int[Tensor, " item"]
) -> tuple[list[Float[Tensor, " row"]], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """The steps of both parts of the vectors, what they leave out and the vectors' lengths."""
    steps = torch.from_numpy(segment.take("steps", length, items)).float()
    errors = torch.from_numpy(segment.take("errors", length, items)).float()
    return [steps[:, 0], steps[:, 1]], errors, segment.norms(length, items).flatten()


def _cosines(segment: Segment, length: int, items: Int[Tensor, " item"]) -> Float[Tensor, " row"]:
    """Of the vectors with the direction nearest to all of their item."""
    return torch.from_numpy(segment.take("reach", length, items)).float() / 255


def _placed(
    places: Tensor, work: Callable[..., Tensor], segment: Segment, *block: Any
) -> tuple[Segment, Tensor, Tensor]:
    return segment, places, work(segment, *block)
