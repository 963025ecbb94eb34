"""A segment: some images or captions of an index in one file that never changes once it has its name.

The file is a safetensors file, mapped into memory. Its items are sorted by the number of their vectors, so that they
fall into runs of equal length, which need no padding. Arrays, `item` for what is there once an image or caption, `row`
once a vector (older files have no `tails`):

| array | shape | what |
|---|---|---|
| `ids` | (item, byte) | UTF-8, zeros after it |
| `order` | (item,) | the items in the order of their ids |
| `lengths` | (item,) | vectors of each, ascending |
| `scan`, `lead`, `rest`, `steps`, `errors`, `tails` | (row, ...) | compressed: see `xmodal.search.quantize.Codes` |
| `gram` | (product,) | float16 products of every pair of vectors of an item |
| `reach` | (row,) | 255 times its cosine, at least, with the direction nearest to all vectors of its item |
| `norms` | (row,) | lengths of the vectors, where not all are one |
| `floats` | (row, dim) | the vectors; none in an index that has the encoder make them again |
| `boxes` | (row, 4) | shares of width and height, where known |
| `places` | (item,) | where the item is in its source |
| `postings`, `posting_ends` | | the items of every cell, see `xmodal.search.cells` |
| `metadata` | (byte,) | JSON: a list of values a name, one an item |
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import weakref
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

TYPES = {
    "U8": np.uint8,
    "U16": np.uint16,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
}


PER_VECTOR = ("scan", "lead", "rest", "steps", "errors", "tails", "reach", "norms", "floats", "boxes")
"""Arrays with an entry a vector."""


class Run(NamedTuple):
    """Consecutive items with equally many vectors."""

    length: int
    start: int
    stop: int
    row: int
    """The first vector of the first."""


def rows_of(lengths: Int[Tensor, " item"], items: Int[Tensor, " some"]) -> Int[Tensor, " row"]:
    """The rows of some items whose vectors lie one after the other.

    >>> rows_of(torch.tensor([1, 2, 3]), torch.tensor([2, 0]))
    tensor([3, 4, 5, 0])
    """
    lengths = lengths.long()
    starts, some = lengths.cumsum(0) - lengths, lengths[items]
    ends = some.cumsum(0)
    return (starts[items] - (ends - some)).repeat_interleave(some) + torch.arange(int(some.sum()))


def id_bytes(name: Any) -> bytes:
    """An id as a segment keeps it: UTF-8, or the bytes that the name of a file is where that is none.

    Raises:
        ValueError: it is no text, is empty, or holds a zero byte, which fills ids up, or half of a surrogate pair.

    >>> id_bytes("7")
    b'7'
    >>> id_bytes("7\\0")
    Traceback (most recent call last):
    ...
    ValueError: id '7\\x00' cannot be kept in an index; wanted text, not empty, without zero bytes or half surrogates
    """
    if isinstance(name, str) and name and "\0" not in name:
        with contextlib.suppress(UnicodeEncodeError):
            return name.encode("utf-8", "surrogateescape")
    raise ValueError(
        f"id {name!r} cannot be kept in an index; wanted text, not empty, without zero bytes or half surrogates"
    )


class Segment:
    """A segment's file, mapped into memory.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from xmodal.search.draft import Items, draft, write_segment
        >>> from xmodal.search.segment import Segment
        >>> items = Items(["7", "8"], torch.eye(3), torch.tensor([1, 2]))
        >>> write_segment(Path("two.safetensors"), [draft(items, None)])
        >>> Segment(Path("two.safetensors")).vectors(torch.tensor([1]))[0]
        tensor([[[0., 1., 0.],
                 [0., 0., 1.]]])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.descriptor = os.dup(file.fileno())  # the file may lose its name while it is read
            weakref.finalize(self, os.close, self.descriptor)
            try:
                # Private and writable, so that torch takes what is mapped; nobody writes.
                self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                size = int.from_bytes(self.mapped[:8], "little")
                header = json.loads(self.mapped[8 : 8 + size])
                self.arrays = {
                    name: self._array(8 + size, **about) for name, about in header.items() if name != "__metadata__"
                }
                _check_shapes(self.arrays)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f"{path} is damaged: no segment of an index ({error}). Build the index again."
                ) from error
        self.lengths = torch.from_numpy(self.arrays["lengths"])

    def __len__(self) -> int:
        return len(self.lengths)

    def _array(self, base: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
        start, end = data_offsets
        if min(start, *shape) < 0 or math.prod(shape) * np.dtype(TYPES[dtype]).itemsize != end - start:
            raise ValueError("an array is not as long as its shape says")
        if base + end > len(self.mapped):
            raise ValueError("it is shorter than it says")
        count = math.prod(shape)
        if not count:
            return np.zeros(shape, TYPES[dtype])
        return np.frombuffer(self.mapped, TYPES[dtype], count, base + start).reshape(shape)

    @cached_property
    def ids(self) -> np.ndarray:
        """The ids, as bytes."""
        return self.arrays["ids"].view(f"S{self.arrays['ids'].shape[1]}")[:, 0]

    @cached_property
    def runs(self) -> list[Run]:
        """Items of equal length."""
        runs, start, row = [], 0, 0
        lengths, counts = self.lengths.unique_consecutive(return_counts=True)
        for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
            runs.append(Run(length, start, start + count, row))
            start, row = start + count, row + length * count
        return runs

    @cached_property
    def starts(self) -> Int[Tensor, " item"]:
        """The first row of every item."""
        return self.lengths.long().cumsum(0) - self.lengths

    @cached_property
    def metadata(self) -> dict[str, list[Any]]:
        """Values by their names, one an item."""
        return json.loads(self.arrays["metadata"].tobytes()) if "metadata" in self.arrays else {}

    def forget(self) -> None:
        """Let go of the memory that looking at the file has taken; what is asked for again is mapped again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)

    def id(self, item: int) -> str:
        """The id of an item."""
        return self.ids[item].decode("utf-8", "surrogateescape")

    def find(self, name: str) -> int | None:
        """The item of an id; None if it is not here."""
        try:
            wanted = np.array(id_bytes(name))
        except ValueError:
            return None
        place = int(np.searchsorted(self.ids, wanted, sorter=self.arrays["order"]))
        item = int(self.arrays["order"][place]) if place < len(self) else -1
        return item if item >= 0 and self.ids[item] == wanted else None

    def blocks(self, items: Int[Tensor, " item"], most_rows: int) -> Iterator[tuple[int, Int[Tensor, " some"]]]:
        """Some items, ascending, as blocks of equal length: the length and the items."""
        stops = torch.searchsorted(items, torch.tensor([run.stop for run in self.runs]))
        for run, part in zip(self.runs, items.tensor_split(stops[:-1]), strict=True):
            if len(part):
                yield from ((run.length, some) for some in part.split(max(1, most_rows // run.length)))

    def take(self, name: str, length: int, items: Int[Tensor, " item"]) -> np.ndarray:
        """What an array has of some items of equal length, in the order given: `(row, ...)`; neighbors uncopied."""
        start = int(self.starts[items[0]])
        if int(items[-1]) - int(items[0]) == len(items) - 1 and bool((items.diff() == 1).all()):
            return self.arrays[name][start : start + length * len(items)]
        rows = self.starts[items][:, None] + torch.arange(length)
        return self.arrays[name][rows.flatten().numpy()]

    def gram(self, length: int, items: Int[Tensor, " item"]) -> Float[Tensor, "item place place"]:
        """The products of the vectors of items of equal length."""
        run = self._run(length)
        each = length * (length - 1) // 2
        table = self.arrays["gram"][self._gram_start(run) :][: (run.stop - run.start) * each]
        packed = torch.from_numpy(table.reshape(run.stop - run.start, each)[(items - run.start).numpy()]).float()
        squares = self.norms(length, items).square()
        entries = torch.cat([packed, squares], dim=1).index_select(1, _unpacking(length))
        return entries.view(len(items), length, length)

    def gram_starts(self, length: int, items: Int[Tensor, " item"]) -> Int[Tensor, " item"]:
        """Where the products of the vectors of items of equal length begin in `gram`."""
        run = self._run(length)
        return self._gram_start(run) + (items - run.start) * (length * (length - 1) // 2)

    def _run(self, length: int) -> Run:
        return next(run for run in self.runs if run.length == length)

    def _gram_start(self, run: Run) -> int:
        return sum((r.stop - r.start) * r.length * (r.length - 1) // 2 for r in self.runs if r.start < run.start)

    def norms(self, length: int, items: Int[Tensor, " item"]) -> Float[Tensor, "item place"]:
        """The lengths of the vectors of items of equal length."""
        if "norms" not in self.arrays:
            return torch.ones(len(items), length)
        return torch.from_numpy(self.take("norms", length, items)).view(len(items), length)

    def vectors(self, items: Int[Tensor, " item"]) -> tuple[Float[Tensor, "item place dim"], Tensor]:
        """The vectors of some items, padded to the longest of them, and their mask."""
        return padded(torch.from_numpy(self.arrays["floats"][self.rows(items).numpy()]), self.lengths[items])

    def rows(self, items: Int[Tensor, " item"]) -> Int[Tensor, " row"]:
        """The rows of some items."""
        return rows_of(self.lengths, items)


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
    """Make sure that there are as many entries as the items and their vectors take."""
    lengths = arrays["lengths"].astype(np.int64)
    if lengths.ndim != 1 or int(lengths.min(initial=0)) < 0:
        raise ValueError("lengths are no numbers of vectors, one an item")
    items, products = len(lengths), int((lengths * (lengths - 1) // 2).sum())
    wanted = dict.fromkeys(("ids", "order", "places"), items) | {"gram": products}
    wanted |= dict.fromkeys(PER_VECTOR, int(lengths.sum()))
    if wrong := [name for name, array in arrays.items() if len(array) != wanted.get(name, len(array))]:
        raise ValueError(f"{wrong[0]} has {len(arrays[wrong[0]])} entries, wanted {wanted[wrong[0]]}")
    if missing := [name for name in ("ids", "order") if name not in arrays]:
        raise ValueError(f"{missing[0]} is missing")


@cache
def _unpacking(length: int) -> Int[Tensor, " entry"]:
    """Where the entries of a symmetric matrix are in those above its diagonal and then the diagonal."""
    places, upper = torch.empty(length, length, dtype=torch.long), torch.triu_indices(length, length, 1)
    places[upper[0], upper[1]] = places[upper[1], upper[0]] = torch.arange(upper.shape[1])
    places.diagonal().copy_(upper.shape[1] + torch.arange(length))
    return places.flatten()


def padded(
    rows: Float[Tensor, "row dim"], lengths: Int[Tensor, " item"]
) -> tuple[Float[Tensor, "item place dim"], Tensor]:
    """Rows of items one after the other, as a padded tensor and its mask.

    >>> padded(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 2]))
    (tensor([[[1.],
             [0.]],
    <BLANKLINE>
            [[2.],
             [3.]]]), tensor([[ True, False],
            [ True,  True]]))
    """
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    items = rows.new_zeros(*mask.shape, rows.shape[1])
    items[mask] = rows
    return items, mask
