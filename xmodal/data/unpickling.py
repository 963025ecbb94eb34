"""Pickles of others, read without running code from them.

A pickle is a program that may call anything. `PlainUnpickler` makes numbers, strings, containers and, where they are
wanted, arrays of it; everything else that a file asks for is refused by name.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import pathlib
import pickle
import types
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class Refused(ValueError):
    """A pickle asks for something that plain values do not need.

    >>> str(Refused("os.system"))
    'it asks for os.system, and unpickling that could run code'
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name}, {why_refused(name)}")
        self.name = name


RUNS_CODE = {
    *("os", "posix", "nt", "sys", "subprocess", "shutil", "builtins", "__builtin__", "importlib", "runpy", "pty"),
    *(
        "ctypes",
        "socket",
        "code",
        "codeop",
        "pickle",
        "cPickle",
        "_pickle",
        "commands",
        "types",
        "functools",
        "marshal",
    ),
    *("webbrowser", "multiprocessing", "threading", "asyncio", "tempfile", "pdb", "timeit", "cProfile", "platform"),
}
"""Modules of which a class, too, does things when it is called."""


def why_refused(name: str) -> str:
    """Whether unpickling a name could run code, or is only not understood.

    A class by itself is a kind of value that is not known here; a function is called.

    >>> why_refused("easydict.EasyDict")
    'a class that is not understood here'
    >>> why_refused("subprocess.Popen")
    'and unpickling that could run code'
    """
    module, _, last = name.rpartition(".")
    is_class = last.lstrip("_")[:1].isupper() and module.partition(".")[0] not in RUNS_CODE
    return "a class that is not understood here" if is_class else "and unpickling that could run code"


class PlainUnpickler(pickle.Unpickler):
    """Reads a pickle of plain values, of Python 2 or 3 and of any protocol.

    Args:
        file: the pickle, opened for reading bytes.
        arrays: whether numpy arrays are plain values here; numpy scalars always are.
        classes: names of classes, of any module, whose objects become namespaces of their attributes.
        encoding: what Python 2's byte strings are written in.

    Raises:
        Refused: it asks for anything else. Besides, a damaged pickle raises nearly any exception.

    >>> import io
    >>> pickled = pickle.dumps({"margin": np.float64(0.2), "ids": np.arange(3)})
    >>> PlainUnpickler(io.BytesIO(pickled), arrays=True).load()["ids"]
    array([0, 1, 2])
    >>> PlainUnpickler(io.BytesIO(pickle.dumps(print))).load()
    Traceback (most recent call last):
    ...
    xmodal.data.unpickling.Refused: it asks for builtins.print, and unpickling that could run code
    """

    def __init__(
        self, file: IO[bytes], *, arrays: bool = False, classes: Collection[str] = (), encoding: str = "latin1"
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._known = {**PLAIN, **(ARRAYS if arrays else {})}
        self._classes = classes

    def find_class(self, module: str, name: str) -> Any:
        """What a name in a pickle stands for."""
        if name in self._classes:
            return types.SimpleNamespace
        found = self._known.get(f"{_MOVED.get(module, module)}.{name}")
        if found is None:
            raise Refused(f"{module}.{name}")
        return found


_MOVED = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
    "pathlib._local": "pathlib",
}
"""Modules that Python 2 and numpy 1 called otherwise."""


def path_as_text(*parts: str) -> str:
    """A pickled `pathlib` path as a string; of any system, on any system.

    >>> path_as_text("/", "data", "f30k")
    '/data/f30k'
    """
    return str(pathlib.PurePosixPath(*parts))


def numpy_scalar(dtype: np.dtype, value: bytes | str) -> Any:
    """What `numpy.core.multiarray.scalar` makes, of Python 2's byte strings too.

    >>> numpy_scalar(np.dtype("<i4"), "\\x07\\x00\\x00\\x00")
    np.int32(7)
    """
    return np.frombuffer(value.encode("latin1") if isinstance(value, str) else value, dtype, count=1)[0]


def torch_globals() -> list[Any]:
    """The same plain values for `torch.serialization.safe_globals`, under every name that they have gone by.

    >>> import torch
    >>> with torch.serialization.safe_globals(torch_globals()):
    ...     torch.save({"best_rsum": np.float64(0.5)}, "checkpoint.pt")
    ...     torch.load("checkpoint.pt", weights_only=True)
    {'best_rsum': np.float64(0.5)}
    """
    former = {now: then for then, now in _MOVED.items()}
    named = []
    for name, value in {**PLAIN, **ARRAYS}.items():
        module, _, last = name.rpartition(".")
        named += [(value, f"{each}.{last}") for each in {module, former.get(module, module)}]
    # Their types are asked for, too, when what was made of them gets its state.
    return [*named, argparse.Namespace, np.dtype, np.ndarray, *{type(np.dtype(code)) for code in np.typecodes["All"]}]


def _new_object(kind: Any, _base: Any, _state: Any) -> Any:
    """An object without attributes yet, as protocols 0 and 1 make one."""
    if kind not in (types.SimpleNamespace, argparse.Namespace):
        raise Refused(f"copyreg._reconstructor of {kind!r}")
    return kind()


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes, which protocol 2 keeps as text."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise Refused(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


def _empty_array(*_: Any) -> np.ndarray:
    """An array that is filled in afterwards; of no size, whatever the pickle claims."""
    return np.ndarray((0,), "b")


def _array_of(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


PLAIN: dict[str, Callable[..., Any]] = {
    **{f"builtins.{kind.__name__}": kind for kind in (object, dict, list, set, frozenset, int, float, bool, str)},
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": collections.defaultdict,
    "collections.Counter": collections.Counter,
    "copyreg._reconstructor": _new_object,
    "argparse.Namespace": argparse.Namespace,
    **{f"pathlib.{name}": path_as_text for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath")},
    "pathlib.PureWindowsPath": path_as_text,
    "numpy._core.multiarray.scalar": numpy_scalar,
    "numpy.dtype": np.dtype,
    "_codecs.encode": _encoded,
}
"""What plain values may call."""

ARRAYS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _empty_array,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy._core.numeric._frombuffer": _array_of,
}
"""What arrays call besides."""
