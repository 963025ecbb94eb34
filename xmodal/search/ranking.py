"""How items are ranked by a head: candidates, bounds and scores, in the way that its comparison allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from xmodal.heads import Head
from xmodal.heads.comparison import CrossAttention, InnerProduct
from xmodal.scoring import score_all
from xmodal.search.bound import MARGIN
from xmodal.search.compressed import Compressed, Query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.search.cells import Cells
    from xmodal.search.collection import Collection
    from xmodal.search.manifest import Indexed
    from xmodal.search.quantize import Quantizer

SHORTLIST = 4096
"""Items that cells find, at least, whose compressed vectors are then scored."""

SHARE = 60
"""Items of a large collection for one of them that cells find."""

REFINED = 8
"""Candidates by 4 bits for every one that is left by 8 bits."""

SPARE = 32
"""Candidates beyond those wanted, where products find them: in the last digit their order may be another."""

BLOCK = 1024
"""Items whose float vectors are scored at a time."""


class Ranked(NamedTuple):
    """The best items of a query, best first."""

    items: Int[Tensor, " item"]
    scores: Float[Tensor, " item"]
    certified: bool
    rescored: int


class Ranking(Protocol):
    """What ranking by a kind of comparison takes."""

    complete: bool
    """Whether candidates are the best ones but for the last digit, so that nothing else needs to be bounded."""

    def approximate(self, queries: Sequence[Tensor], items: Int[Tensor, " item"]) -> Float[Tensor, "query item"]:
        """About the scores that some items have, where that is cheaper than scoring them."""
        ...

    def candidates(
        self, queries: Sequence[Tensor], items: Int[Tensor, " item"], count: int
    ) -> list[Int[Tensor, " some"]]:
        """About so many items that every query may match best, among some."""
        ...

    def reaching(
        self, query: Float[Tensor, "place dim"], items: Int[Tensor, " item"], least: float
    ) -> Int[Tensor, " some"]:
        """Those of some items whose scores may be so high."""
        ...

    def scores(self, query: Float[Tensor, "place dim"], items: Int[Tensor, " item"]) -> Float[Tensor, " item"]:
        """Those of the head, from float vectors."""
        ...


class _ByAttention:
    """By stacked attention: a scan of 4-bit vectors, bounds from 8-bit ones."""

    complete = False

    def __init__(
        self,
        collection: Collection,
        quantizer: Quantizer,
        cells: Cells | None,
        how: CrossAttention,
        indexed: Indexed,
        bits: int,
    ) -> None:
        self.collection, self.quantizer, self.cells, self.how = collection, quantizer, cells, how
        self.indexed: Indexed = indexed
        self.bits = bits
        self.compressed = Compressed(collection, quantizer, how, indexed)
        self.head = Declared(how)

    def approximate(self, queries: Sequence[Tensor], items: Int[Tensor, " item"]) -> Float[Tensor, "query item"]:
        return self.compressed.approximate([Query.of(query, self.quantizer) for query in queries], items)

    def candidates(
        self, queries: Sequence[Tensor], items: Int[Tensor, " item"], count: int
    ) -> list[Int[Tensor, " some"]]:
        asked, found = [Query.of(query, self.quantizer) for query in queries], []
        if self.cells is None or len(items) <= SHORTLIST:
            scanned = list(zip([items] * len(asked), self.compressed.approximate(asked, items), strict=True))
        else:
            scanned = [self._looked_up(query, items, count) for query in asked]
        for query, (few, scores) in zip(asked, scanned, strict=True):
            if self.bits == 8 and scores is not None:  # the 4 bits decide on whom the 8 bits are asked about
                few, scores = few[scores.topk(min(REFINED * count, len(few))).indices], None
            scores = self.compressed.estimates(query, few) if scores is None else scores
            found.append(few[scores.topk(min(count, len(few))).indices])
        return found

    def _looked_up(
        self, query: Query, items: Int[Tensor, " item"], count: int
    ) -> tuple[Int[Tensor, " some"], Float[Tensor, " some"] | None]:
        """What the cells find, and its approximate scores where these are cheaper than estimates."""
        assert self.cells is not None, "there are cells to look into"
        lead = query.coordinates[:, : self.quantizer.lead]
        count = max(SHORTLIST, len(items) // SHARE, count)
        few = self.cells.candidates(lead, self.collection, items, count, self.how)
        if self.bits == 8 and self.compressed.served(query):
            return few, None
        return few, self.compressed.approximate([query], few)[0]

    def reaching(
        self, query: Float[Tensor, "place dim"], items: Int[Tensor, " item"], least: float
    ) -> Int[Tensor, " some"]:
        if self.bits != 8:
            raise ValueError(
                f"this index keeps {self.bits} bits, which certify nothing; search with exact=False, or build it with "
                "bits=8"
            )
        asked = Query.of(query, self.quantizer)
        return self.compressed.reaching(asked, items, least)

    def scores(self, query: Float[Tensor, "place dim"], items: Int[Tensor, " item"]) -> Float[Tensor, " item"]:
        return _scored(self.head, self.collection, self.indexed, query, items)


class _ByInnerProduct:
    """By the product of one vector an item: faiss finds the best ones."""

    complete = True

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def approximate(self, queries: Sequence[Tensor], items: Int[Tensor, " item"]) -> Float[Tensor, "query item"]:
        asked, scores = torch.cat(list(queries)), torch.empty(len(queries), len(items))
        for part in self.collection.parts(items):
            vectors = torch.from_numpy(part.segment.arrays["floats"])
            chosen = vectors if len(part.items) == len(vectors) else vectors[part.items]
            scores[:, part.places] = asked @ chosen.T
        return scores

    def candidates(
        self, queries: Sequence[Tensor], items: Int[Tensor, " item"], count: int
    ) -> list[Int[Tensor, " some"]]:
        import faiss  # here: loading it takes a while

        asked = torch.cat(list(queries)).numpy()
        found, products = [], []
        for part in self.collection.parts(items):
            vectors = part.segment.arrays["floats"]
            if len(part.items) < len(vectors):
                vectors = vectors[part.items.numpy()]
            nearest = faiss.knn(asked, vectors, min(count, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
            if bool((nearest[1] < 0).any()):
                raise ValueError(f"{part.segment.path} holds vectors that are no numbers. Build the index again.")
            products.append(nearest[0])
            found.append(items[part.places].numpy()[nearest[1]])
        order = np.concatenate(products, axis=1).argsort(axis=1, kind="stable")[:, ::-1][:, :count]
        return list(torch.from_numpy(np.take_along_axis(np.concatenate(found, axis=1), order, axis=1)))

    def reaching(
        self, query: Float[Tensor, "place dim"], items: Int[Tensor, " item"], least: float
    ) -> Int[Tensor, " some"]:
        return items[self.approximate([query], items)[0] >= least]

    def scores(self, query: Float[Tensor, "place dim"], items: Int[Tensor, " item"]) -> Float[Tensor, " item"]:
        return self.collection.vectors(items)[0][:, 0] @ query[0]


class _ByEverything:
    """By a head that says nothing of how it compares: everything is scored, so that everything is certain."""

    complete = False

    def __init__(self, collection: Collection, head: Head, indexed: Indexed) -> None:
        self.collection, self.head = collection, head
        self.indexed: Indexed = indexed

    def approximate(self, queries: Sequence[Tensor], items: Int[Tensor, " item"]) -> Float[Tensor, "query item"]:
        return torch.stack([self.scores(query, items) for query in queries])

    def candidates(
        self, queries: Sequence[Tensor], items: Int[Tensor, " item"], count: int
    ) -> list[Int[Tensor, " some"]]:
        return [items] * len(queries)

    def reaching(
        self, query: Float[Tensor, "place dim"], items: Int[Tensor, " item"], least: float
    ) -> Int[Tensor, " some"]:
        return items[self.scores(query, items) >= least]

    def scores(self, query: Float[Tensor, "place dim"], items: Int[Tensor, " item"]) -> Float[Tensor, " item"]:
        return _scored(self.head, self.collection, self.indexed, query, items)


def make_ranking(
    head: Head,
    collection: Collection,
    quantizer: Quantizer | None,
    cells: Cells | None,
    indexed: Indexed,
    bits: int,
) -> Ranking:
    """The ranking that a head's comparison allows.

    >>> from xmodal.heads import Cosine
    >>> from xmodal.search.collection import Collection
    >>> make_ranking(Cosine(), Collection([], []), None, None, "images", 8).complete
    True
    """
    how = head.comparison
    if isinstance(how, CrossAttention):
        assert quantizer is not None, "what is compared by attention was compressed"
        return _ByAttention(collection, quantizer, cells, how, indexed, bits)
    if isinstance(how, InnerProduct):
        return _ByInnerProduct(collection)
    return _ByEverything(collection, head, indexed)


def rank(
    ranking: Ranking,
    query: Float[Tensor, "place dim"],
    candidates: Int[Tensor, " some"],
    items: Int[Tensor, " item"],
    k: int,
    *,
    exact: bool,
) -> Ranked:
    """The best `k` of some items: of their candidates, and if it must be exact of all that could be better.

    >>> from xmodal.search.collection import Collection
    >>> ranking = _ByInnerProduct(Collection([], []))
    >>> ranking.scores = lambda query, items: items / 10
    >>> rank(ranking, torch.ones(1, 2), torch.tensor([1, 3]), torch.arange(4), 1, exact=True)
    Ranked(items=tensor([3]), scores=tensor([0.3000]), certified=True, rescored=2)
    """
    scores = ranking.scores(query, candidates)
    ascending = scores.sort().values
    least = reachable_from(float(ascending[-min(k, len(ascending))]))
    # Of the best by products none that is left out is above the last: so far below the hits nothing can be missing.
    certified = len(candidates) == len(items) or (ranking.complete and float(ascending[0]) < least)
    if exact and not certified:
        scored = torch.zeros(int(items[-1]) + 1, dtype=torch.bool)
        scored[candidates] = True
        others = items[~scored[items]]
        reachable = ranking.reaching(query, others, least)
        if len(reachable):
            candidates = torch.cat([candidates, reachable])
            scores = torch.cat([scores, ranking.scores(query, reachable)])
        certified = True
    order = candidates.argsort()  # ties: in the order of the index
    candidates, scores = candidates[order], scores[order]
    best = scores.argsort(descending=True, stable=True)[:k]
    return Ranked(candidates[best], scores[best], certified, len(candidates))


def reachable_from(score: float) -> float:
    """What an item must score by approximate numbers, at least, to have such a score in truth.

    >>> reachable_from(0.5) < 0.5
    True
    """
    return score - MARGIN * max(1.0, abs(score))


class Declared(Head):
    """A head of nothing but a comparison, for items that are embedded already: the fast engines score it.

    Args:
        how: the comparison.

    Example:
        >>> from xmodal.search.ranking import Declared
        >>> score_all(Declared(CrossAttention()), torch.ones(1, 3, 2), torch.ones(4, 5, 2)).shape
        torch.Size([1, 4])
    """

    def __init__(self, how: CrossAttention) -> None:
        super().__init__()
        self.how = how

    @property
    def comparison(self) -> CrossAttention:  # type: ignore[override]  # noqa: D102
        return self.how


def score_vectors(
    head: Head,
    indexed: Indexed,
    query: Float[Tensor, "place dim"],
    vectors: Float[Tensor, "item place dim"],
    mask: Bool[Tensor, "item place"],
) -> Float[Tensor, " item"]:
    """The scores of a query with items that are embedded already.

    Args:
        head: what scores.
        indexed: which side the items are of.
        query: its vectors.
        vectors: those of the items.
        mask: which of them are real.

    >>> items, mask = torch.eye(4)[:, None], torch.ones(4, 1, dtype=torch.bool)
    >>> score_vectors(Declared(CrossAttention()), "images", torch.eye(4)[:1], items, mask).argmax()
    tensor(0)
    """
    sides = (vectors, query[None], mask, None) if indexed == "images" else (query[None], vectors, None, mask)
    return score_all(head, *sides).flatten()


def _scored(
    head: Head, collection: Collection, indexed: Indexed, query: Float[Tensor, "place dim"], items: Int[Tensor, " item"]
) -> Float[Tensor, " item"]:
    blocks = (collection.vectors(some) for some in items.split(BLOCK))
    return torch.cat([score_vectors(head, indexed, query, *block) for block in blocks])
