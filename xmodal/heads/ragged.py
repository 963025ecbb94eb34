"""Products with the real words of captions alone: captions differ in length, and padding is dear to multiply with.

The queries of a tile come from long to short, so that those that have a word are the first ones: the products of each
word lie side by side, and those of one word follow those of the word before.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor


class Ragged(NamedTuple):
    """Products of contexts with the real items of queries.

    >>> products = Ragged(torch.arange(3.0).view(1, 1, 3), [2, 1])  # of a query of two words, and one of one word
    >>> products.padded()
    tensor([[[[0., 1.],
              [2., 0.]]]])
    """

    values: Float[Tensor, "context_item context column"]
    """Those of all first words, of all second words, ..."""
    counts: list[int]
    """How many queries have each word: all of them the first."""

    def padded(self) -> Float[Tensor, "context_item context query query_item"]:
        """With zeros for the words that a query has not."""
        return self.parted(self.counts[0])[0]

    def parted(self, size: int) -> list[Float[Tensor, "context_item context query some_item"]]:
        """So many queries at a time, each part with the words of its longest, padded with zeros."""
        starts = range(0, self.counts[0], size)
        sizes = [[min(size, count - start) for start in starts if start < count] for count in self.counts]
        # One split and not slices, the gradient of each of which would be as large as all values.
        pieces = iter(self.values.split([one for word in sizes for one in word], dim=2))
        parts: list[list[Tensor]] = [[] for _ in starts]
        for word in sizes:
            for part in parts[: len(word)]:
                part.append(next(pieces))
        return [_stacked(part) for part in parts]


def _stacked(words: Sequence[Float[Tensor, "context_item context item"]]) -> Tensor:
    """The products with each word of some queries, of which fewer and fewer have it, side by side."""
    most = words[0].shape[2]
    return torch.stack([F.pad(word, (0, most - word.shape[2])) for word in words], dim=2)


def counts_of(lengths: Sequence[int]) -> list[int]:
    """How many of the queries, which come from long to short, have each word.

    >>> counts_of([3, 1])
    [2, 1, 1]
    """
    return [sum(length > word for length in lengths) for word in range(lengths[0])]


def columns_of(starts: Sequence[int], counts: Sequence[int], length: int) -> list[int]:
    """Where the items of the columns are, among the items of all queries of a padded length, one after the other.

    Args:
        starts: numbers of the queries of a tile.
        counts: how many of them have each word.
        length: of every query, padding included.

    >>> columns_of([4, 7], [2, 1], length=10)  # first words of queries 4 and 7, second word of query 4
    [40, 70, 41]
    """
    return [start * length + word for word, count in enumerate(counts) for start in starts[:count]]


def offsets_of(counts: Sequence[int]) -> list[int]:
    """Where the products of each word begin.

    >>> offsets_of([2, 1, 1])
    [0, 2, 3]
    """
    return list(accumulate(counts, initial=0))[:-1]
