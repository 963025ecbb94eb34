"""Segments as they are written: items compressed block by block, or taken over from other segments."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file

from xmodal.data.atomic import written_whole
from xmodal.search.bound import nearest_direction
from xmodal.search.segment import id_bytes, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.search.cells import Cells
    from xmodal.search.quantize import Quantizer
    from xmodal.search.segment import Segment

ONE = 1e-5
"""How far a length may be from one to be taken for it."""

MADE_ANEW = {"ids", "order", "metadata", "lengths", "postings", "posting_ends"}
"""Arrays of a segment that are not taken over as they are."""


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


class Draft(NamedTuple):
    """Some items as a segment keeps them."""

    ids: list[str]
    lengths: Int[Tensor, " item"]
    arrays: dict[str, np.ndarray]
    """Those of the table in `xmodal.search.segment` that have entries of their own for every item."""
    metadata: dict[str, list[Any]]


def draft(items: Items, quantizer: Quantizer | None, *, bits: int = 8, gram: bool = True, floats: bool = True) -> Draft:
    """Compress items.

    Args:
        items: in any order.
        quantizer: compresses the vectors; None to keep them alone.
        bits: of the certificate, 8, or 4 for none.
        gram: whether products of the vectors of an item are needed.
        floats: keep the vectors.

    >>> sorted(draft(Items(["7", "8"], torch.eye(3), torch.tensor([1, 2])), None).arrays)
    ['floats']
    """
    items = items.sorted()
    arrays: dict[str, np.ndarray] = {}
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
            arrays["gram"], arrays["reach"] = _grams(items.vectors, items.lengths)
    if floats:
        arrays["floats"] = items.vectors.numpy().astype(np.float32, copy=False)
    return Draft(items.ids, items.lengths, arrays, items.metadata or {})


def kept(segment: Segment, items: Int[Tensor, " item"]) -> Draft:
    """Some items of a segment, for another one; nothing is compressed anew.

    >>> from pathlib import Path
    >>> from xmodal.search.segment import Segment
    >>> write_segment(Path("a"), [draft(Items(["7", "8"], torch.eye(3), torch.tensor([1, 2])), None)])
    >>> kept(Segment(Path("a")), torch.tensor([1])).ids
    ['8']
    """
    arrays = {
        name: array[rows_of(_counts(name, segment.lengths), items).numpy()]
        for name, array in segment.arrays.items()
        if name not in MADE_ANEW
    }
    metadata = {name: [values[item] for item in items.tolist()] for name, values in segment.metadata.items()}
    return Draft([segment.id(item) for item in items.tolist()], segment.lengths[items], arrays, metadata)


def write_segment(path: Path, drafts: Sequence[Draft], cells: Cells | None = None) -> None:
    """Write a segment of items that were compressed in parts; the file appears whole.

    Args:
        path: the file.
        drafts: the parts; their arrays are taken out of them, so that nothing is held twice.
        cells: where vectors are looked up by, if they are.

    >>> from pathlib import Path
    >>> from xmodal.search.segment import Segment
    >>> parts = [Items([name, name * 2], torch.eye(3), torch.tensor([1, 2])) for name in ("a", "b")]
    >>> write_segment(Path("both.safetensors"), [draft(part, None) for part in parts])
    >>> segment = Segment(Path("both.safetensors"))
    >>> [segment.id(item) for item in range(4)], segment.find("bb"), segment.runs[1]
    (['a', 'b', 'aa', 'bb'], 3, Run(length=2, start=2, stop=4, row=2))
    """
    lengths = torch.cat([each.lengths for each in drafts])
    order = lengths.argsort(stable=True)
    in_order = bool((order == torch.arange(len(order))).all())
    arrays: dict[str, np.ndarray] = {"lengths": lengths[order].numpy().astype(np.int32)}
    for name in sorted({name for each in drafts for name in each.arrays}):
        together = np.concatenate([_column(each, name) for each in drafts])
        for each in drafts:
            each.arrays.pop(name, None)
        arrays[name] = together if in_order else together[rows_of(_counts(name, lengths), order).numpy()]
    ids = np.array([id_bytes(name) for each in drafts for name in each.ids])[order.numpy()]
    arrays["ids"] = ids.view(np.uint8).reshape(len(ids), -1)
    arrays["order"] = ids.argsort(kind="stable").astype(np.int32)
    if names := sorted({name for each in drafts for name in each.metadata}):
        metadata = {
            name: [value for each in drafts for value in each.metadata.get(name, [None] * len(each.ids))]
            for name in names
        }
        chosen = order.tolist()
        text = json.dumps({name: [values[item] for item in chosen] for name, values in metadata.items()})
        arrays["metadata"] = np.frombuffer(text.encode(), np.uint8)
    if cells is not None:
        arrays |= cells.postings(arrays["scan"], lengths[order])
    with written_whole(path, overwrite=False) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


def _column(draft: Draft, name: str) -> np.ndarray:
    """An array; what a part does not have: lengths of one, unknown boxes as no place, and tails of the whole length."""
    if name in draft.arrays:
        return draft.arrays[name]
    rows = int(draft.lengths.sum())
    return {
        "norms": np.ones(rows, np.float32),
        "boxes": np.full((rows, 4), np.nan, np.float32),
        "tails": np.full((rows, 2), 255, np.uint8),
    }[name]


def _counts(name: str, lengths: Int[Tensor, " item"]) -> Int[Tensor, " item"]:
    """How many entries of an array belong to each item."""
    lengths = lengths.long()
    if name == "places":
        return torch.ones_like(lengths)
    return lengths * (lengths - 1) // 2 if name == "gram" else lengths


def _grams(vectors: Float[Tensor, "row dim"], lengths: Int[Tensor, " item"]) -> tuple[np.ndarray, np.ndarray]:
    """The products above the diagonal of every item, one item after the other, and the reach of every vector."""
    parts, reaches, row = [], [], 0
    for length, count in zip(*(each.tolist() for each in lengths.unique_consecutive(return_counts=True)), strict=True):
        some = vectors[row : row + length * count].view(count, length, -1)
        upper = torch.triu_indices(length, length, 1)
        gram = some @ some.transpose(1, 2)
        products = gram[:, upper[0], upper[1]].half()
        if not bool(products.isfinite().all()):
            raise ValueError("vectors are too long for float16 products; let the encoders normalize")
        parts.append(products.flatten().numpy())
        cosines = nearest_direction(gram) / some.norm(dim=2).clamp_min(1e-30)
        reaches.append((255 * cosines - 0.02).floor().clamp(0, 255).to(torch.uint8).flatten().numpy())
        row += length * count
    return np.concatenate(parts), np.concatenate(reaches)
