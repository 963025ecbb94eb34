"""Where candidates come from: the stage before a head's own scores, which others may replace.

An index finds candidates itself. Where a collection lives in another engine, in a vector database say, whoever speaks
to that engine gives a `CandidateEngine`; the index scores what it names and ranks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor


@runtime_checkable
class CandidateEngine(Protocol):
    """Names images that may match a query; `Index.search(..., engine=...)` scores them by the head.

    What it may take to do so, `Index.embedded` gives: the ids and vectors of all items, block by block.
    """

    def candidates(self, query_words: Float[Tensor, "word dim"], k: int) -> Sequence[str]:
        """Ids of about `k` items that may match best, most promising first; those of no item of the index are ignored.

        Args:
            query_words: the embedded words of one sentence, without padding; of an image, its regions. For a head that
                compares by an inner product, its one vector: `(1, dim)`.
            k: how many are wanted.
        """
        ...
