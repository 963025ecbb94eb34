"""Read region features of an lmdb database, image by image, without running code from it.

The database is mapped into the memory of a process of its own: where it is damaged, reading it ends that process.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from xmodal.data.array_files import LARGEST
from xmodal.data.unpickling import PlainUnpickler

from .apart import command, how_it_died, limit
from .precomputed import Record, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LENGTHS = struct.Struct("<QQ")
"""What comes before a key and its value on the way from one process to the other."""

LARGEST_ENTRY = 2 * LARGEST
"""Bytes of an entry: features and all else, perhaps in base64."""

NOT_IMAGES = {b"keys", b"__keys__", b"__len__"}
"""Entries that list the others."""


def read_lmdb(path: Path, dim: int | None = None) -> Iterator[tuple[str, str, Callable[[], Record]]]:
    """Every image of a database: where it is, its name, and a function that reads it.

    An entry is a pickled dict with features, boxes, image_w, image_h and num_boxes or other names in `KEYS`; arrays may
    be base64. The image's name is its image_id, or else the key.

    Raises:
        FileNotFoundError: there is no such database.
        ImportError: the package lmdb is not installed.
        ValueError: it is damaged.

    >>> import lmdb, pickle
    >>> import numpy as np
    >>> with lmdb.open("features.lmdb") as database, database.begin(write=True) as transaction:
    ...     _ = transaction.put(b"7", pickle.dumps({"features": np.ones((2, 3)), "image_id": "7"}))
    >>> [(name, read().features.shape) for _, name, read in read_lmdb(Path("features.lmdb"))]
    [('7', (2, 3))]
    """
    if not path.exists():
        raise FileNotFoundError(f"no lmdb database at {path}")
    if find_spec("lmdb") is None:
        raise ImportError("an lmdb database needs the package lmdb: pip install 'xmodal[lmdb]'")
    for key, value in _entries(path):
        name = key.decode("utf-8", errors="backslashreplace")
        yield f"{path}, key {name}", name, partial(_record, value, dim)


def _entries(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values, as the process of its own sends them.

    Raises:
        ValueError: the database is damaged.
    """
    apart = command(f"{__package__}.lmdb_features", str(path.absolute()))
    with subprocess.Popen(**apart, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            while len(head := child.stdout.read(LENGTHS.size)) == LENGTHS.size:
                lengths = LENGTHS.unpack(head)
                if sum(lengths) > LARGEST_ENTRY:
                    raise ValueError(f"{path} has an entry of {sum(lengths)} bytes; it is damaged. Copy it again.")
                key, value = (child.stdout.read(length) for length in lengths)
                if (len(key), len(value)) != lengths:
                    break
                yield key, value
        except BaseException:
            child.kill()
            raise
        said = child.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        if child.wait():
            told = said[0] if child.returncode > 0 and said else how_it_died(child.returncode)
            raise ValueError(f"{path} is no lmdb database, or is damaged ({told}). Copy it again.")


def _send(path: str) -> None:
    """Write all entries but those that list the others to the standard output, their lengths before them."""
    import lmdb

    with (
        lmdb.open(path, subdir=Path(path).is_dir(), readonly=True, lock=False, readahead=False) as database,
        database.begin() as transaction,
    ):
        for key, value in transaction.cursor():
            if key not in NOT_IMAGES:
                sys.stdout.buffer.write(LENGTHS.pack(len(key), len(value)) + key + value)


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


if __name__ == "__main__":
    limit()
    _send(sys.argv[1])
