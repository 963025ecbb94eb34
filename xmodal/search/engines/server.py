"""What a server of vectors has to do to hold a part of a collection, and how its absence is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

PLACES = 1 << 16
"""Vectors of one item, below this: a vector's key is that of its item times this, plus its place."""


class Unavailable(ConnectionError):
    """A server does not answer, or does not hold what was put into it.

    Example:
        >>> from xmodal.search.engines.server import Unavailable
        >>> str(Unavailable("milvus at http://10.0.0.7:19530", "connection refused"))
        'milvus at http://10.0.0.7:19530: connection refused'
    """

    def __init__(self, server: str, reason: str) -> None:
        self.server, self.reason = server, " ".join(reason.split())[:300]
        super().__init__(f"{self.server}: {self.reason}")


class Near(NamedTuple):
    """A vector that is near to one that was asked for, and the item that it belongs to."""

    id: str
    item: int
    """Number of the item on this server."""
    places: int
    """Vectors that the item has."""
    product: float
    """Of the vector and that which was asked for."""


class VectorServer(Protocol):
    """Holds vectors of items and finds those with the greatest inner products.

    Making one connects to nothing; its methods do, when they must. All raise `Unavailable` for whatever goes wrong
    beyond this process.
    """

    address: str
    """What it is and where, for messages."""
    exact: bool
    """Whether `nearest` looks at all vectors, so that none that it leaves out is nearer."""

    def create(self, collection: str, dim: int, id_bytes: int) -> None:
        """Make an empty collection for vectors of some dimension and ids of at most so many bytes."""
        ...

    def insert(
        self,
        collection: str,
        first: int,
        ids: Sequence[str],
        vectors: Float[Tensor, "item place dim"],
        mask: Bool[Tensor, "item place"],
    ) -> None:
        """Add items, numbered from `first` on."""
        ...

    def finish(self, collection: str) -> None:
        """Make what was inserted last and be found; nothing is inserted after it."""
        ...

    def count(self, collection: str) -> int:
        """How many vectors a collection holds."""
        ...

    def nearest(self, collection: str, asked: Float[Tensor, "asked dim"], count: int) -> list[list[Near]]:
        """The vectors with the greatest inner products with each of some, greatest first."""
        ...

    def vectors(self, collection: str, items: Sequence[Near]) -> list[Float[Tensor, "place dim"]]:
        """All vectors of some items, as they were inserted."""
        ...

    def drop(self, collection: str) -> None:
        """Remove a collection, if it is there."""
        ...

    def close(self) -> None:
        """Let go of the connection; the next call makes a new one."""
        ...


def vector_keys(items: Sequence[Near]) -> list[int]:
    """The keys of all vectors of some items.

    >>> vector_keys([Near("7", item=2, places=3, product=0.5)])
    [131072, 131073, 131074]
    """
    return [each.item * PLACES + place for each in items for place in range(each.places)]
