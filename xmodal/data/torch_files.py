"""torch's files of tensors and plain values, read without running code and without believing what they claim.

`torch.load(weights_only=True)` calls nothing that is not known, but it makes whatever tensor a file asks for: of
storages that are not there, or of gigabytes that are all the same few bytes. So a file is gone through first, with
stand-ins for its tensors.
"""

from __future__ import annotations

import collections
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.data.store_checks import check_regular
from xmodal.data.unpickling import Bounded, PlainUnpickler, torch_globals

if TYPE_CHECKING:
    from collections.abc import Callable

ZIP_MAGIC = b"PK\x03\x04"

LEGACY_PICKLES = 3
"""What comes before the values in a file of before torch 1.6: a magic number, a version, sizes of types."""


def load_torch(path: str | Path) -> Any:
    """Tensors, on the CPU, and plain values of a file that `torch.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        Refused: it asks for anything else.
        Exception: it is damaged, or claims tensors that it does not hold: what is damaged can fail in any way.

    >>> torch.save({"weight": torch.ones(2)}, "model.pt")
    >>> load_torch("model.pt")
    {'weight': tensor([1., 1.])}
    """
    path = Path(path)
    check_regular(path, "file of torch")
    _check(path)
    with torch.serialization.safe_globals(torch_globals()):
        return torch.load(path, map_location="cpu", weights_only=True)


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict that a file of torch holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, would run code or holds something else; the message names it.

    >>> torch.save({"weight": torch.ones(2)}, "weights.pth")
    >>> load_weights("weights.pth")
    {'weight': tensor([1., 1.])}
    """
    try:
        weights = load_torch(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # what is damaged can fail in any way
        raise ValueError(f"{path} cannot be read as weights: {error}. Download it again.") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds a {type(weights).__name__}; wanted a state dict of tensors")
    return weights


def _check(path: Path) -> None:
    """Go through a file as torch would, making nothing.

    Raises:
        Exception: see `load_torch`.
    """
    with path.open("rb") as file:
        is_archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC  # as torch tells it
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path.stat().st_size)
        return
    with path.open("rb") as file:
        bounded: Any = Bounded(file)
        for _ in range(LEGACY_PICKLES):
            PlainUnpickler(file).load()
        unpickler = _TensorUnpickler(file, lambda _: bounded.size)
        unpickler.load()
        if sum(unpickler.storages.values()) > bounded.size:
            raise ValueError(f"it claims {sum(unpickler.storages.values())} bytes of tensors and has {bounded.size}")


def _check_archive(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"its record {packed[0]} is compressed, which torch's are not")
    if sum(member.file_size for member in members) > size or len({m.filename for m in members}) < len(members):
        raise ValueError("its records overlap, or hold more than the file")
    pickles = [member for member in members if member.filename.endswith("data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive without torch's record data.pkl")
    damaged = archive.testzip()  # torch writes checksums and does not look at them
    if damaged is not None:
        raise ValueError(f"the checksum of its record {damaged} is wrong")
    folder = pickles[0].filename.removesuffix("data.pkl")
    sizes = {member.filename: member.file_size for member in members}
    with archive.open(pickles[0]) as file:
        _TensorUnpickler(file, lambda key: sizes.get(f"{folder}data/{key}", 0)).load()


class _Storage(NamedTuple):
    """Stands for a storage: how many numbers it has."""

    numbers: int


class _Tensor(NamedTuple):
    """Stands for a tensor."""

    numbers: int


class _TensorUnpickler(PlainUnpickler):
    """Reads what a file says about its tensors, and refuses those that are larger than what is stored of them.

    Args:
        file: the pickle, opened for reading bytes.
        stored: how many bytes there are of a storage.
    """

    def __init__(self, file: Any, stored: Callable[[str], int]) -> None:
        super().__init__(file, arrays=True, encoding="utf-8")
        self._known = {**self._known, **_TENSORS}
        self._stored = stored
        self.storages: dict[str, int] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, if as much as it claims is there."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _Type):
            raise ValueError("it names a storage in a way that torch does not")
        _, kind, key, _, numbers = pid[:5]
        if type(numbers) is not int or numbers < 0 or not isinstance(key, str):
            raise ValueError(f"it claims a storage of {str(numbers)[:20]} numbers")
        claimed, there = numbers * kind.itemsize, self._stored(key)
        if claimed > there:
            raise ValueError(f"it claims {claimed} bytes of the storage {key[:40]!r} and has {there}")
        self.storages[key] = max(claimed, self.storages.get(key, 0))
        return _Storage(numbers)


class _Type(NamedTuple):
    """Stands for a class of storages, or for a dtype."""

    itemsize: int


def _tensor(storage: Any, start: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """What stands for a tensor whose numbers are all stored, each for itself."""
    whole = all(
        isinstance(sizes, tuple) and all(type(s) is int and s >= 0 for s in sizes) for sizes in (shape, strides)
    )
    if not (isinstance(storage, _Storage) and whole and len(shape) == len(strides) and type(start) is int):
        raise ValueError("it describes a tensor in a way that torch does not")
    numbers, last = 1, start
    for size, stride in zip(shape, strides, strict=True):
        numbers *= size
        last += (size - 1) * stride
    if numbers and (start < 0 or last >= storage.numbers or numbers > storage.numbers):
        raise ValueError(
            f"it claims a tensor of shape {shape}, more than the {storage.numbers} numbers it is stored in"
        )
    return _Tensor(numbers)


def _parameter(tensor: Any, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise ValueError("it has a parameter that is no tensor")
    return tensor


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    return tuple(sizes)


_STORAGES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
}  # fmt: skip
_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8]
_DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8]

_TENSORS: dict[str, Any] = {
    **{f"torch.{name}Storage": _Type(size) for name, size in _STORAGES.items()},
    **{f"torch.cuda.{name}Storage": _Type(size) for name, size in _STORAGES.items()},
    **{str(dtype): _Type(dtype.itemsize) for dtype in _DTYPES},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "torch.device": lambda *names: ":".join(map(str, names)),
    "collections.OrderedDict": collections.OrderedDict,
}
"""What stands for what tensors are made of."""
