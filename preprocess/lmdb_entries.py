"""The entries of an lmdb database, read in a process of their own.

The database is mapped into memory: where it is damaged, reading it ends the process that reads.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .apart import command, how_it_died, limit

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTHS = struct.Struct("<QQ")
"""What comes before a key and its value on the way from one process to the other."""

LARGEST_ENTRY = 1 << 29
"""Bytes of an entry: features and all else, perhaps in base64."""

NOT_IMAGES = {b"keys", b"__keys__", b"__len__"}
"""Entries that list the others."""


def read_entries(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values, as the process of its own sends them, less the entries that list others.

    Raises:
        ValueError: the database is damaged.

    >>> import lmdb
    >>> with lmdb.open("some.lmdb") as database, database.begin(write=True) as transaction:
    ...     _ = transaction.put(b"7", b"seven")
    >>> list(read_entries(Path("some.lmdb")))
    [(b'7', b'seven')]
    """
    apart = command(f"{__package__}.lmdb_entries", str(path.absolute()))
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


if __name__ == "__main__":
    limit()
    _send(sys.argv[1])
