"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
"""Errors of a full disk, a limit on file sizes and a quota, which not every library reports with the file's name."""


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`: synced to disk and renamed to it on a clean exit, removed after an exception.

    Whoever is killed in between leaves `path` as it was. The folder is made if it is not there.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; the message names it.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with written_whole(folder / "note.txt") as temporary:
    ...     _ = temporary.write_text("hello")
    >>> [file.name for file in folder.iterdir()]
    ['note.txt']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise type(error)(
            f"cannot write {path}: its folder is not writable ({error.strerror}). Choose another output folder."
        ) from error
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if number := _no_room(error):
            raise OSError(number, f"{os.strerror(number)}: no room to write {path}") from error
        raise


def _no_room(error: BaseException) -> int | None:
    """The number of an error that says that the disk is full."""
    if isinstance(error, OSError):
        return error.errno if error.errno in NO_ROOM else None
    # When a full disk is noticed while a file is closed, h5py raises a RuntimeError with the number in its text.
    return next((number for number in NO_ROOM if f"errno = {number}," in str(error)), None)


def _sync(path: Path) -> None:
    """Wait until what was written to a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
