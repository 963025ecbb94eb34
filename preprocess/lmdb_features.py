"""Read region features of an lmdb database, image by image, without running code from it."""

from __future__ import annotations

import io
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from xmodal.data.store_checks import check_regular
from xmodal.data.unpickling import PlainUnpickler

from .lmdb_entries import read_entries
from .precomputed import Record, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def read_lmdb(path: Path, dim: int | None = None) -> Iterator[tuple[str, str, Callable[[], Record]]]:
    """Every image of a database: where it is, its name, and a function that reads it.

    An entry is a pickled dict with features, boxes, image_w, image_h and num_boxes or other names in `KEYS`; arrays may
    be base64. The image's name is the key, as in the databases of others; an image_id inside is not looked at.

    Raises:
        FileNotFoundError: there is no such database.
        ImportError: the package lmdb is not installed.
        ValueError: it is damaged.

    >>> import lmdb, pickle
    >>> import numpy as np
    >>> from pathlib import Path
    >>> with lmdb.open("features.lmdb") as database, database.begin(write=True) as transaction:
    ...     _ = transaction.put(b"7", pickle.dumps({"features": np.ones((2, 3)), "image_id": "7"}))
    >>> [(name, read().features.shape) for _, name, read in read_lmdb(Path("features.lmdb"))]
    [('7', (2, 3))]
    """
    check_regular(path / "data.mdb" if path.is_dir() else path, "lmdb database")
    if find_spec("lmdb") is None:
        raise ImportError("an lmdb database needs the package lmdb: pip install 'xmodal[lmdb]'")
    for key, value in read_entries(path):
        name = key.decode("utf-8", errors="backslashreplace")
        yield f"{path}, key {name}", name, partial(_record, value, dim)


def _record(value: bytes, dim: int | None) -> Record:
    """The record of one entry.

    Raises:
        ValueError: it is damaged, would run code, or has no features.
    """
    try:
        values = PlainUnpickler(io.BytesIO(value), arrays=True).load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"not a pickled dict of numbers ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"holds a {type(values).__name__}, wanted a dict with features")
    return record_of(values, dim)
