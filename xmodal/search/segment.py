"""A segment: some images or captions of an index in one file that never changes once it has its name.

The file is a safetensors file, mapped into memory. Its items are sorted by the number of their vectors, so that they
fall into runs of equal length, which need no padding. Arrays, `item` for what is there once an image or caption, `row`
once a vector:

| array | shape | what |
|---|---|---|
| `ids` | (item, byte) | UTF-8, zeros after it |
| `order` | (item,) | the items in the order of their ids |
| `lengths` | (item,) | vectors of each, ascending |
| `scan`, `lead`, `rest`, `steps`, `errors` | (row, ...) | the compressed vectors, see `xmodal.search.quantize.Codes` |
| `gram` | (product,) | float16 products of every pair of vectors of an item |
| `norms` | (row,) | lengths of the vectors, where not all are one |
| `floats` | (row, dim) | the vectors; none in an index that has the encoder make them again |
| `boxes` | (row, 4) | shares of width and height, where known |
| `places` | (item,) | where the item is in its source |
| `metadata` | (byte,) | JSON: a list of values a name, one an item |
"""

from __future__ import annotations

import json
import mmap
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file

from xmodal.data.atomic import written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.search.quantize import Quantizer

TYPES = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64, "F16": np.float16, "F32": np.float32}

ONE = 1e-5
"""How far a length may be from one to be taken for it."""


class Items(NamedTuple):
    """Embedded images or captions, on their way into a segment or out of it."""

    ids: list[str]
    vectors: Float[Tensor, "row dim"]
    """Those of all items, one after the other."""
    lengths: Int[Tensor, " item"]
    boxes: Float[Tensor, "row 4"] | None = None
    places: Int[Tensor, " item"] | None = None
    metadata: dict[str, list[Any]] | None = None

    def sorted(self) -> Items:
        """The same by number of vectors, ascending."""
        return self.take(self.lengths.argsort(stable=True))

    def take(self, items: Int[Tensor, " item"]) -> Items:
        """Some of them."""
        rows = rows_of(self.lengths, items)
        return Items(
            [self.ids[item] for item in items.tolist()],
            self.vectors[rows],
            self.lengths[items],
            None if self.boxes is None else self.boxes[rows],
            None if self.places is None else self.places[items],
            {name: [values[item] for item in items.tolist()] for name, values in (self.metadata or {}).items()},
        )


class Run(NamedTuple):
    """Consecutive items with equally many vectors."""

    length: int
    start: int
    stop: int
    row: int
    """The first vector of the first."""


def joined(blocks: Sequence[Items]) -> Items:
    """Blocks of items as one; boxes only where all have them.

    >>> block = Items(["7"], torch.eye(2), torch.tensor([2]), metadata={"color": ["red"]})
    >>> joined([block, block._replace(ids=["8"])]).metadata
    {'color': ['red', 'red']}
    """
    columns = list(zip(*blocks, strict=True))
    ids, vectors, lengths, boxes, places, metadata = columns
    return Items(
        [name for some in ids for name in some],
        torch.cat(vectors),
        torch.cat(lengths),
        None if any(some is None for some in boxes) else torch.cat(boxes),
        None if any(some is None for some in places) else torch.cat(places),
        {name: [value for some in metadata for value in some[name]] for name in (metadata[0] or {})},
    )


def rows_of(lengths: Int[Tensor, " item"], items: Int[Tensor, " some"]) -> Int[Tensor, " row"]:
    """The rows of some items whose vectors lie one after the other.

    >>> rows_of(torch.tensor([1, 2, 3]), torch.tensor([2, 0]))
    tensor([3, 4, 5, 0])
    """
    lengths = lengths.long()
    starts, some = lengths.cumsum(0) - lengths, lengths[items]
    ends = some.cumsum(0)
    return (starts[items] - (ends - some)).repeat_interleave(some) + torch.arange(int(some.sum()))


def write_segment(
    path: Path,
    items: Items,
    quantizer: Quantizer | None,
    *,
    bits: int = 8,
    gram: bool = True,
    floats: bool = True,
) -> None:
    """Write a segment; the file appears whole.

    Args:
        path: the file.
        items: what to write, in any order.
        quantizer: compresses the vectors; None to keep them alone.
        bits: of the certificate, 8, or 4 for none.
        gram: whether products of the vectors of an item are needed.
        floats: keep the vectors.

    >>> from pathlib import Path
    >>> items = Items(["7", "8"], torch.eye(3), torch.tensor([1, 2]))
    >>> write_segment(Path("some.safetensors"), items, None)
    >>> segment = Segment(Path("some.safetensors"))
    >>> segment.id(1), segment.find("8"), segment.runs
    ('8', 1, [Run(length=1, start=0, stop=1, row=0), Run(length=2, start=1, stop=2, row=1)])
    """
    items = items.sorted()
    arrays: dict[str, np.ndarray] = {"lengths": items.lengths.numpy().astype(np.int32)}
    if items.places is not None:
        arrays["places"] = items.places.numpy().astype(np.int64)
    if items.boxes is not None:
        arrays["boxes"] = items.boxes.numpy().astype(np.float32)
    if quantizer is not None:
        codes = quantizer.encode(items.vectors, bits=bits)
        arrays |= {name: array for name, array in codes._asdict().items() if array is not None}
        norms = items.vectors.norm(dim=1)
        if bool(((norms - 1).abs() > ONE).any()):
            arrays["norms"] = norms.numpy()
        if gram and bits != 4:
            arrays["gram"] = _packed_gram(items.vectors, items.lengths)
    if floats:
        arrays["floats"] = items.vectors.numpy().astype(np.float32, copy=False)
    _save(path, items.ids, items.metadata, arrays)


def merge_segments(path: Path, parts: Sequence[tuple[Segment, Int[Tensor, " item"]]]) -> None:
    """Write some items of several segments as one; nothing is compressed anew.

    >>> from pathlib import Path
    >>> for name in "ab":
    ...     write_segment(Path(name), Items([name, name * 2], torch.eye(2), torch.tensor([1, 1])), None)
    >>> merge_segments(Path("c"), [(Segment(Path("a")), torch.tensor([0, 1])), (Segment(Path("b")), torch.tensor([1]))])
    >>> [Segment(Path("c")).id(item) for item in range(3)]
    ['a', 'aa', 'bb']
    """
    lengths = torch.cat([segment.lengths[items] for segment, items in parts])
    order = lengths.argsort(stable=True)
    ids = [segment.id(item) for segment, items in parts for item in items.tolist()]
    names = {name for segment, _ in parts for name in segment.metadata}
    metadata = {
        name: [
            segment.metadata.get(name, [None] * len(segment))[item]
            for segment, items in parts
            for item in items.tolist()
        ]
        for name in sorted(names)
    }
    arrays = {"lengths": lengths[order].numpy()}
    for name in sorted({name for segment, _ in parts for name in segment.arrays} - set(_OF_IDS) - {"lengths"}):
        counts = _counts(name, lengths)
        together = np.concatenate(
            [segment.column(name)[rows_of(_counts(name, segment.lengths), items).numpy()] for segment, items in parts]
        )
        arrays[name] = together[rows_of(counts, order).numpy()]
    chosen = order.tolist()
    in_order = {name: [values[item] for item in chosen] for name, values in metadata.items()}
    _save(path, [ids[item] for item in chosen], in_order, arrays)


def _save(path: Path, ids: list[str], metadata: dict[str, list[Any]] | None, arrays: dict[str, np.ndarray]) -> None:
    encoded = np.array([name.encode("utf-8", "surrogateescape") for name in ids])
    arrays["ids"] = encoded.view(np.uint8).reshape(len(encoded), -1)
    arrays["order"] = encoded.argsort(kind="stable").astype(np.int32)
    if metadata:
        arrays["metadata"] = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    with written_whole(path, overwrite=False) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


_OF_IDS = ("ids", "order", "metadata")
"""Arrays that are made anew when segments are merged."""


def _counts(name: str, lengths: Int[Tensor, " item"]) -> Int[Tensor, " item"]:
    """How many entries of an array belong to each item."""
    lengths = lengths.long()
    if name == "places":
        return torch.ones_like(lengths)
    return lengths * (lengths - 1) // 2 if name == "gram" else lengths


def _packed_gram(vectors: Float[Tensor, "row dim"], lengths: Int[Tensor, " item"]) -> np.ndarray:
    """The products above the diagonal of every item, one item after the other."""
    parts, row = [], 0
    for length, count in zip(*(each.tolist() for each in lengths.unique_consecutive(return_counts=True)), strict=True):
        some = vectors[row : row + length * count].view(count, length, -1)
        upper = torch.triu_indices(length, length, 1)
        products = (some @ some.transpose(1, 2))[:, upper[0], upper[1]]
        if not bool(products.half().isfinite().all()):
            raise ValueError("vectors are too long for float16 products; let the encoders normalize")
        parts.append(products.half().flatten().numpy())
        row += length * count
    return np.concatenate(parts)


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
        >>> from xmodal.search.segment import Items, Segment, write_segment
        >>> items = Items(["7", "8"], torch.eye(3), torch.tensor([1, 2]))
        >>> write_segment(Path("two.safetensors"), items, None)
        >>> Segment(Path("two.safetensors")).vectors(torch.tensor([1]))[0]
        tensor([[[0., 1., 0.],
                 [0., 0., 1.]]])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            try:
                # Private and writable, so that torch takes what is mapped; nobody writes.
                self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                size = int.from_bytes(self.mapped[:8], "little")
                header = json.loads(self.mapped[8 : 8 + size])
                self.arrays = {
                    name: self._array(8 + size, **about) for name, about in header.items() if name != "__metadata__"
                }
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} is damaged: no segment of an index ({error}). Build the index again."
                ) from error
        self.lengths = torch.from_numpy(self.arrays["lengths"])

    def __len__(self) -> int:
        return len(self.lengths)

    def _array(self, base: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
        count = int(np.prod(shape))
        if base + data_offsets[1] > len(self.mapped) or count * np.dtype(TYPES[dtype]).itemsize != (
            data_offsets[1] - data_offsets[0]
        ):
            raise ValueError("it is shorter than it says")
        if not count:
            return np.zeros(shape, TYPES[dtype])
        return np.frombuffer(self.mapped, TYPES[dtype], count, base + data_offsets[0]).reshape(shape)

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

    def column(self, name: str) -> np.ndarray:
        """An array; lengths of one where those of the vectors were left out, and unknown boxes as no place."""
        if name in self.arrays:
            return self.arrays[name]
        rows = int(self.lengths.sum())
        return {"norms": np.ones(rows, np.float32), "boxes": np.full((rows, 4), np.nan, np.float32)}[name]

    def id(self, item: int) -> str:
        """The id of an item."""
        return self.ids[item].decode("utf-8", "surrogateescape")

    def find(self, name: str) -> int | None:
        """The item of an id; None if it is not here."""
        wanted = np.array(name.encode("utf-8", "surrogateescape"))
        place = int(np.searchsorted(self.ids, wanted, sorter=self.arrays["order"]))
        item = int(self.arrays["order"][place]) if place < len(self) else -1
        return item if item >= 0 and self.ids[item] == wanted else None

    def blocks(self, items: Int[Tensor, " item"], most_rows: int) -> Iterator[tuple[int, Int[Tensor, " some"]]]:
        """Some items, ascending, as blocks of equal length: the length and the items."""
        ends = torch.tensor([run.stop for run in self.runs])
        counts = torch.bincount(torch.searchsorted(ends, items, right=True), minlength=len(ends)).tolist()
        for run, part in zip(self.runs, items.split(counts), strict=True):
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
        run = next(run for run in self.runs if run.length == length)
        each = length * (length - 1) // 2
        before = sum((r.stop - r.start) * r.length * (r.length - 1) // 2 for r in self.runs if r.start < run.start)
        table = self.arrays["gram"][before : before + (run.stop - run.start) * each].reshape(run.stop - run.start, each)
        upper = torch.triu_indices(length, length, 1)
        gram = torch.empty(len(items), length, length)
        packed = torch.from_numpy(table[(items - run.start).numpy()].astype(np.float32))
        gram[:, upper[0], upper[1]] = packed
        gram[:, upper[1], upper[0]] = packed
        gram.diagonal(dim1=1, dim2=2).copy_(self.norms(length, items).square())
        return gram

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

    def items(self, items: Sequence[int] | Tensor) -> Items:
        """Some items as they came, with their vectors."""
        chosen = torch.as_tensor(items, dtype=torch.long)
        rows = self.rows(chosen).numpy()
        arrays = self.arrays
        return Items(
            [self.id(item) for item in chosen.tolist()],
            torch.from_numpy(arrays["floats"][rows]),
            self.lengths[chosen],
            torch.from_numpy(arrays["boxes"][rows]) if "boxes" in arrays else None,
            torch.from_numpy(arrays["places"][chosen.numpy()]) if "places" in arrays else None,
            {name: [values[item] for item in chosen.tolist()] for name, values in self.metadata.items()},
        )


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
