"""A folder as a server of vectors: no server at all, but exact, and on whatever disk it is."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from xmodal.schema import Count, CountOrNone, check_fields
from xmodal.search.engines.server import Near, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

TABLE = "items.json"
VECTORS = "vectors.f32"


class Folder:
    """Vectors in files of a folder, mapped into memory; products with all of them are computed.

    Args:
        path: the folder; collections are folders in it.

    Example:
        >>> import torch
        >>> from xmodal.search.engines.folder import Folder
        >>> server = Folder("disk")
        >>> server.create("photos", dim=2, id_bytes=8)
        >>> server.insert("photos", 0, ["7", "8"], torch.eye(2)[:, None], torch.ones(2, 1, dtype=torch.bool))
        >>> server.finish("photos")
        >>> server.nearest("photos", torch.tensor([[0.0, 2.0]]), 1)
        [[Near(id='8', item=1, places=1, product=2.0)]]
    """

    exact = True

    def __init__(self, path: str) -> None:
        self.path, self.address = Path(path), f"folder {path}"
        self._open: dict[str, tuple[list[str], Tensor, Tensor]] = {}

    def create(self, collection: str, dim: int, id_bytes: int) -> None:  # noqa: D102
        with self._telling():
            (self.path / collection).mkdir(parents=True)
            (self.path / collection / TABLE).write_text(json.dumps({"dim": dim, "ids": [], "lengths": []}))

    def insert(  # noqa: D102
        self,
        collection: str,
        first: int,
        ids: Sequence[str],
        vectors: Float[Tensor, "item place dim"],
        mask: Bool[Tensor, "item place"],
    ) -> None:
        with self._telling():
            table = json.loads((self.path / collection / TABLE).read_text())
            table["ids"] += ids
            table["lengths"] += mask.sum(dim=1).tolist()
            with (self.path / collection / VECTORS).open("ab") as file:
                file.write(vectors[mask].float().numpy().tobytes())
            (self.path / collection / TABLE).write_text(json.dumps(table))

    def finish(self, collection: str) -> None:
        """Nothing is left to be done."""

    def count(self, collection: str) -> int:  # noqa: D102
        return len(self._mapped(collection)[2])

    def nearest(self, collection: str, asked: Float[Tensor, "asked dim"], count: int) -> list[list[Near]]:  # noqa: D102
        ids, lengths, rows = self._mapped(collection)
        owner = torch.arange(len(lengths)).repeat_interleave(lengths)
        best = (asked @ rows.T).topk(min(count, len(rows)), dim=1)
        if not bool(best.values.isfinite().all()):  # NaN comes first
            raise Unavailable(self.address, f"{self.path / collection} holds vectors that are no numbers")
        return [
            [
                Near(ids[item], item, int(lengths[item]), product)
                for item, product in zip(owner[places].tolist(), products.tolist(), strict=True)
            ]
            for products, places in zip(best.values, best.indices, strict=True)
        ]

    def vectors(self, collection: str, items: Sequence[Near]) -> list[Float[Tensor, "place dim"]]:  # noqa: D102
        _, lengths, rows = self._mapped(collection)
        starts = lengths.cumsum(0) - lengths
        return [rows[starts[each.item] : starts[each.item] + each.places].clone() for each in items]

    def drop(self, collection: str) -> None:  # noqa: D102
        self._open.pop(collection, None)
        with self._telling(), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path / collection)

    def close(self) -> None:  # noqa: D102
        self._open.clear()

    def _mapped(self, collection: str) -> tuple[list[str], Tensor, Tensor]:
        """Ids, lengths and vectors; the folder is looked at each time, as one that is gone must not answer."""
        with self._telling():
            (self.path / collection / TABLE).stat()
            if collection not in self._open:
                self._open[collection] = _read(self.path / collection)
            return self._open[collection]

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError) as error:
            raise Unavailable(self.address, str(error)) from error


@dataclass(frozen=True)
class _Table:
    """What is kept of items beside their vectors."""

    dim: Count
    ids: list[str]
    lengths: list[CountOrNone]

    __post_init__ = check_fields


def _read(folder: Path) -> tuple[list[str], Tensor, Tensor]:
    """Ids, lengths and vectors.

    Raises:
        OSError: a file is not there, or cannot be mapped.
        ValueError: a file is damaged.
    """
    try:
        values = json.loads((folder / TABLE).read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it holds no mapping")
        table = _Table(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / TABLE} is damaged: {error}") from error
    # Private and writable, so that torch takes what is mapped; nobody writes.
    rows = np.memmap(folder / VECTORS, np.float32, mode="c")
    if len(table.ids) != len(table.lengths) or sum(table.lengths) * table.dim != len(rows):
        raise ValueError(
            f"{folder} is damaged: {len(table.ids)} ids and {sum(table.lengths)} vectors of {len(table.lengths)} items "
            f"in {TABLE}, {len(rows) / table.dim:g} vectors in {VECTORS}"
        )
    return table.ids, torch.tensor(table.lengths, dtype=torch.long), torch.from_numpy(rows).view(-1, table.dim)
