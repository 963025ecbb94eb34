"""Attention scores from compressed vectors: approximate ones from 4 bits, upper bounds from 8."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.heads.attention import Side, stacked_attention
from xmodal.heads.bfan import refocus
from xmodal.search.bound import Estimate, upper_bounds
from xmodal.search.quantize import unpack_scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.heads.comparison import CrossAttention
    from xmodal.search.collection import Collection
    from xmodal.search.manifest import Indexed
    from xmodal.search.quantize import Quantizer
    from xmodal.search.segment import Segment

PRODUCTS = 1 << 21
"""Products of a block, at most: a few buffers of them stay in the cache or near it."""


class Query(NamedTuple):
    """What is searched for: the vectors of one caption or image, all real, with what is computed of them once."""

    vectors: Float[Tensor, "place dim"]
    coordinates: Float[Tensor, "place coordinate"]
    norms: Float[Tensor, " place"]
    gram: Float[Tensor, "place place"]
    spread: float
    """The greatest length of the products of these vectors with a vector of length one."""

    @classmethod
    def of(cls, vectors: Float[Tensor, "place dim"], quantizer: Quantizer) -> Query:
        """The query of some vectors."""
        vectors = vectors.float()
        spread = float(torch.linalg.matrix_norm(vectors.double(), 2)) * (1 + 1e-5)
        return cls(vectors, quantizer.rotate(vectors), vectors.norm(dim=1), vectors @ vectors.T, spread)


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
        >>> from xmodal.search.segment import Items, Segment, write_segment
        >>> vectors = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
        >>> quantizer, path = Quantizer.fit(vectors), Path("a.safetensors")
        >>> write_segment(path, Items(["7", "8"], vectors, torch.tensor([2, 4])), quantizer)
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

    def approximate(self, queries: Sequence[Query], items: Int[Tensor, " item"]) -> Float[Tensor, "query item"]:
        """Scores by the 4-bit coordinates: one product with all queries a block, then attention."""
        scores = torch.empty(len(queries), len(items))
        groups: dict[int, list[int]] = defaultdict(list)
        for number, query in enumerate(queries):
            groups[len(query.vectors)].append(number)
        lead = self.quantizer.lead
        stacks = [
            torch.stack([queries[number].coordinates[:, :lead] for number in group], 1) for group in groups.values()
        ]
        columns = torch.cat([stack.flatten(0, 1) for stack in stacks])
        for part in self.collection.parts(items):
            done = 0
            for length, some in part.segment.blocks(part.items, max(1, PRODUCTS // len(columns))):
                places = part.places[done : done + len(some)]
                done += len(some)
                values, tail = unpack_scan(part.segment.take("scan", length, some))
                products = (values @ columns.T).split([stack.shape[0] * stack.shape[1] for stack in stacks], dim=1)
                values, tail = values.view(len(some), length, -1), tail.view(len(some), length)
                norms = part.segment.norms(length, some)
                gram = values @ values.transpose(1, 2) if True in self.roles else None
                if gram is not None:
                    gram.diagonal(dim1=1, dim2=2).copy_(norms.square())
                contexts = Side(values, torch.ones_like(norms, dtype=torch.bool), norms, gram)  # type: ignore[arg-type]
                for group, of_group in zip(groups.values(), products, strict=True):
                    tile = of_group.reshape(len(some), length, -1, len(group))
                    scores[torch.tensor(group)[:, None], places] = self._attended(
                        tile, contexts, [queries[number] for number in group]
                    )
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

    def bounds(self, query: Query, items: Int[Tensor, " item"]) -> Float[Tensor, " item"]:
        """The most that the scores of some items with a query can be, by the 8-bit coordinates."""
        bounds = torch.empty(len(items))
        most_rows = max(1, PRODUCTS // 8 // len(query.vectors))
        for part in self.collection.parts(items):
            done = 0
            for length, some in part.segment.blocks(part.items, most_rows):
                places = part.places[done : done + len(some)]
                done += len(some)
                bounds[places] = self._bounded(query, part.segment, length, some)
        return bounds

    def _bounded(
        self, query: Query, segment: Segment, length: int, items: Int[Tensor, " item"]
    ) -> Float[Tensor, " item"]:
        codes = (segment.take(name, length, items) for name in ("lead", "rest", "steps"))
        products = (self.quantizer.decode(*codes) @ query.coordinates.T).view(len(items), length, -1)
        errors = torch.from_numpy(segment.take("errors", length, items).astype("float32")).view(len(items), length)
        norms = segment.norms(length, items)
        total = torch.zeros(len(items))
        for as_context in self.roles:
            if as_context:
                gram = segment.gram(length, items)
                wrong = 2.0**-11 * gram.abs().amax(dim=(1, 2)) + 4e-5 * norms.amax(dim=1).square()
                entry = errors[:, :, None] * query.norms
                estimate = Estimate(products, entry, query.spread * errors, gram, wrong, query.norms[None])
            else:
                entry = query.norms[None, :, None] * errors[:, None]
                column = query.norms * errors.norm(dim=1, keepdim=True)
                exact = torch.zeros(1)
                estimate = Estimate(products.transpose(1, 2), entry, column, query.gram[None], exact, norms)
            total += upper_bounds(self.how, estimate)
        return total
