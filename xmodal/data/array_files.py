"""NumPy's files, `.npy` and `.npz`, read without believing them: no code, and no room for what they only claim."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xmodal.data.plain_arrays import plain_dtype, size_of
from xmodal.data.store_checks import check_regular
from xmodal.data.unpickling import Bounded, PlainUnpickler, Refused

if TYPE_CHECKING:
    from collections.abc import Container

LARGEST = 1 << 28
"""Bytes that an array which is read whole may have, if nothing else is said: features of one image have far fewer."""

MOST_COMPRESSED = 200
"""How many bytes of an array a byte of an archive may stand for, beyond the first million."""

FREE_BYTES = 1_000_000


def map_array(path: str | Path) -> np.ndarray:
    """The array of an `.npy` file, left on the disk.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none, was cut off, or holds anything but numbers and text.

    >>> np.save("7.npy", np.ones((2, 4)))
    >>> map_array("7.npy").shape
    (2, 4)
    """
    path = Path(path)
    check_regular(path, "NumPy array file")
    with path.open("rb") as file:
        shape, by_column, dtype, start = _read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds objects, wanted numbers")
    size = size_of(shape, dtype)
    _check_size(shape, size, path.stat().st_size - start)
    if not size:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, "F" if by_column else "C")


def load_array(path: str | Path, largest: int = LARGEST) -> Any:
    """The array of an `.npy` file, or the plain values that `np.save` pickled into an array of one object.

    Args:
        path: the file.
        largest: bytes that an array may have.

    Raises:
        FileNotFoundError: there is no such file.
        Refused: unpickling it would call something.
        ValueError: it is damaged, claims more than it holds, or is too large.

    >>> np.save("7_info.npy", {"bbox": [1, 2, 3, 4]}, allow_pickle=True)
    >>> load_array("7_info.npy")
    {'bbox': [1, 2, 3, 4]}
    """
    path = Path(path)
    check_regular(path, "NumPy array file")
    with path.open("rb") as file:
        return _read_array(file, path.stat().st_size, largest)


def load_arrays(path: str | Path, names: Container[str], largest: int = LARGEST) -> dict[str, Any]:
    """Those arrays of an `.npz` file that have certain names; nothing else in it is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, claims more than it holds, or is too large.

    >>> np.savez("7.npz", x=np.ones(2), bbox=np.zeros(4))
    >>> load_arrays("7.npz", {"x"})
    {'x': array([1., 1.])}
    """
    path = Path(path)
    check_regular(path, "NumPy archive")
    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        for name, member in members.items():
            if name not in names:
                continue
            if member.file_size > min(largest, FREE_BYTES + MOST_COMPRESSED * member.compress_size):
                raise ValueError(
                    f"{name} has {member.file_size} bytes, packed into {member.compress_size}; of an image at most "
                    f"{largest} are read, and {MOST_COMPRESSED} for one"
                )
            data = archive.read(member)
            found[name] = _read_array(io.BytesIO(data), len(data), largest)
    return found


def _read_array(file: Any, size: int, largest: int) -> Any:
    """An array, or the values of one of objects, of an open file of so many bytes."""
    shape, by_column, dtype, start = _read_header(file)
    if dtype.hasobject:
        try:
            saved = PlainUnpickler(file, arrays=True).load()
        except Refused as error:
            raise ValueError(f"it wants to call {error.name}, {error.why}") from None
        return saved.item() if isinstance(saved, np.ndarray) and saved.size == 1 else saved
    claimed = size_of(shape, dtype)
    _check_size(shape, claimed, size - start)
    if claimed > largest:
        raise ValueError(f"it has {claimed} bytes, at most {largest} are read")
    return np.frombuffer(file.read(claimed), dtype).reshape(shape, order="F" if by_column else "C")


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether columns come first, dtype, and where the numbers begin."""
    bounded: Any = Bounded(file)
    version = np.lib.format.read_magic(bounded)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read(bounded)
    return shape, by_column, dtype if dtype == np.dtype(object) else plain_dtype(dtype), file.tell()


def _check_size(shape: tuple[int, ...], claimed: int, there: int) -> None:
    if claimed > there:
        raise ValueError(f"it claims {' x '.join(map(str, shape))} numbers of {claimed} bytes and holds {there} bytes")
