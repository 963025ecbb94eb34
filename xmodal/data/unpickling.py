"""Pickles of others, read without running code from them.

A pickle is a program that may call anything. `PlainUnpickler` makes numbers, strings, containers and, where they are
wanted, arrays of it; everything else that a file asks for is refused by name. Without calling anything a few bytes can
still ask for hours or for gigabytes (values that hold each other many times over, sizes that are claimed), so every
step is counted, and a pickle has as many as its length justifies.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import pathlib
import pickle
import types
from typing import IO, TYPE_CHECKING, Any, ClassVar

from xmodal.data.plain_arrays import PlainArray, PlainType, array_of, empty_array, numpy_scalar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable


class Refused(ValueError):
    """A pickle asks for something that plain values do not need.

    >>> str(Refused("os.system"))
    'it asks for os.system, and unpickling that could run code'
    """

    def __init__(self, name: str) -> None:
        self.name, self.why = name, why_refused(name)
        super().__init__(f"it asks for {name}, {self.why}")


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


VALUES = {"datetime", "decimal", "fractions", "uuid"}
"""Modules of nothing but kinds of values, whose names are small letters in part."""


def why_refused(name: str) -> str:
    """Whether unpickling a name could run code, or is only not understood.

    A class by itself is a kind of value that is not known here; a function is called.

    >>> why_refused("easydict.EasyDict")
    'a class that is not understood here'
    >>> why_refused("subprocess.Popen")
    'and unpickling that could run code'
    """
    module, _, last = name.rpartition(".")
    package = module.partition(".")[0]
    is_class = package in VALUES or (last.lstrip("_")[:1].isupper() and package not in RUNS_CODE)
    return "a class that is not understood here" if is_class else "and unpickling that could run code"


DEEPEST = 100
"""How deep values may be nested: Python itself overflows its stack where it hashes or prints what is deeper."""

FREE_STEPS = 500_000
"""Steps that any pickle may take. A step is an operation, a value that is looked at, or 16 bytes of text."""

STEPS_A_BYTE = 2
"""Steps for every byte of a pickle besides: a list of small numbers takes them."""

LONGEST = 10_000_000
"""Bytes for which there are steps: arrays are longer, but need none."""

LARGEST_NUMBER = 64
"""Bits of whole numbers inside of others. Python's hashes of larger ones can be chosen to be all the same."""


class Bounded:
    """A file that never makes room for more bytes than it has, whatever it is asked for.

    Args:
        file: anything that can be read and sought, from where it stands on.

    >>> import io
    >>> Bounded(io.BytesIO(b"abc")).read(10**12)
    Traceback (most recent call last):
    ...
    ValueError: it ends within the next 1000000000000 bytes; it was cut off, or claims what it does not hold
    """

    def __init__(self, file: Any) -> None:
        here = file.tell()
        self.size = file.seek(0, 2) or file.tell()
        file.seek(here)
        self.size -= here
        self._file, self._end = file, here + self.size

    def read(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            ValueError: there are not.
        """
        if size > self._end - self._file.tell():
            raise ValueError(f"it ends within the next {size} bytes; it was cut off, or claims what it does not hold")
        return self._file.read(size)

    def readline(self) -> bytes:
        """The bytes until a newline."""
        return self._file.readline()


class PlainUnpickler(pickle._Unpickler):  # the one in Python: the one in C cannot be asked to count
    """Reads a pickle of plain values, of Python 2 or 3 and of any protocol.

    Args:
        file: the pickle, opened for reading bytes.
        arrays: whether numpy arrays are plain values here; numpy scalars always are.
        classes: names of classes, of any module, whose objects become namespaces of their attributes.
        encoding: what Python 2's byte strings are written in.

    Raises:
        Refused: it asks for anything else. Besides, a damaged pickle raises nearly any exception.
        ValueError: its values are nested too deeply, or take more steps than its length justifies.

    >>> import io
    >>> import numpy as np
    >>> pickled = pickle.dumps({"margin": np.float64(0.2), "ids": np.arange(3)})
    >>> PlainUnpickler(io.BytesIO(pickled), arrays=True).load()["ids"].tolist()
    [0, 1, 2]
    >>> PlainUnpickler(io.BytesIO(pickle.dumps(print))).load()
    Traceback (most recent call last):
    ...
    xmodal.data.unpickling.Refused: it asks for builtins.print, and unpickling that could run code
    """

    dispatch: ClassVar[dict[int, Any]]
    stack: list[Any]

    def __init__(
        self, file: IO[bytes] | Any, *, arrays: bool = False, classes: Collection[str] = (), encoding: str = "latin1"
    ) -> None:
        bounded = Bounded(file)
        super().__init__(bounded, encoding=encoding)  # type: ignore[arg-type]
        self._known = {**PLAIN, **(ARRAYS if arrays else {})}
        self._classes = classes
        self._steps = FREE_STEPS + STEPS_A_BYTE * min(bounded.size, LONGEST)

    def load(self) -> Any:
        """The values.

        Raises:
            ValueError: see the class.
        """
        try:
            value = super().load()
        except KeyError as error:
            raise ValueError(f"it has the operation {error}, which there is not") from error
        self._look_at(value)
        return value

    def find_class(self, module: str, name: str) -> Any:
        """What a name in a pickle stands for."""
        if name in self._classes:
            return types.SimpleNamespace
        found = self._known.get(f"{_MOVED.get(module, module)}.{name}")
        if found is None:
            raise Refused(f"{module}.{name}")
        return found

    def _spend(self, steps: int = 1) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise ValueError("its values hold each other so often that unpacking them would not end")

    def _look_at(self, value: Any) -> None:
        """Count every value inside of another one, as often as it is there."""
        levels = [iter((value,))]
        while levels:
            for inner in levels[-1]:
                self._spend(1 + len(inner) // 16 if isinstance(inner, (str, bytes, bytearray)) else 1)
                if isinstance(inner, int) and inner.bit_length() > LARGEST_NUMBER and len(levels) > 1:
                    raise ValueError(f"it holds a whole number of {inner.bit_length()} bits")
                contents = _contents(inner)
                if contents:
                    levels.append(iter(contents))
                    break
            else:
                levels.pop()
            if len(levels) > DEEPEST:
                raise ValueError(f"its values are nested more than {DEEPEST} deep")

    def _check_keys(self, keys: Iterable[Any]) -> None:
        """Refuse keys that take long to hash."""
        for key in keys:
            if not isinstance(key, str):
                self._look_at((key,))

    # What follows are pickle's operations. Each is counted, and what it goes through is looked at before.

    def _tuple(self, load: Callable[[Any], None]) -> None:
        load(self)
        self._look_at(self.stack[-1])

    def _call(self, load: Callable[[Any], None]) -> None:
        self._look_at(self.stack[-2:])  # the arguments, by position or by name
        load(self)

    def _call_with_items(self, load: Callable[[Any], None]) -> None:
        self._look_at(self.stack)
        load(self)

    def _set_item(self, load: Callable[[Any], None]) -> None:
        self._check_keys(self.stack[-2:-1])
        load(self)

    def _set_items(self, load: Callable[[Any], None]) -> None:
        self._check_keys(self.stack[::2])
        load(self)

    def _add_items(self, load: Callable[[Any], None]) -> None:
        self._check_keys(self.stack)
        load(self)

    def _bytes(self, load: Callable[[Any], None]) -> None:
        """Bytes that can be changed, for which pickle itself makes room before it looks whether they are there."""
        size = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        self.append(bytearray(self.read(size)))  # type: ignore[attr-defined]

    def _build(self, load: Callable[[Any], None]) -> None:
        """Give an object its attributes: never a class or a function, which belong to the whole process."""
        state = self.stack.pop()
        made = self.stack[-1]
        self._look_at(state)
        if isinstance(made, (PlainType, PlainArray)):
            made.__setstate__(state)
        elif type(made) in (types.SimpleNamespace, argparse.Namespace) and _is_named(state):
            vars(made).update(state)
        elif not (
            isinstance(made, collections.OrderedDict)
            and _is_named(state)
            and (state is made or {*state} <= {"_metadata"})  # a dict of addict gives itself for its attributes
        ):
            raise ValueError(f"it changes a {type(made).__name__}, which has no attributes")


def _is_named(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(name, str) for name in state)


def _contents(value: Any) -> Collection[Any]:
    """The values inside of a value."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (tuple, list, set, frozenset)):
        return value
    if isinstance(value, PlainArray) and value.dtype.hasobject:
        return value.ravel().tolist()
    return list(vars(value).values()) if isinstance(value, (types.SimpleNamespace, argparse.Namespace)) else ()


def _counted(load: Callable[[Any], None], special: Callable[[Any, Callable[[Any], None]], None] | None) -> Any:
    def counted(unpickler: PlainUnpickler) -> None:
        unpickler._spend()
        load(unpickler) if special is None else special(unpickler, load)

    return counted


_SPECIAL = {
    **dict.fromkeys((pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3), PlainUnpickler._tuple),
    **dict.fromkeys((pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX), PlainUnpickler._call),
    **dict.fromkeys((pickle.INST, pickle.OBJ), PlainUnpickler._call_with_items),
    pickle.SETITEM: PlainUnpickler._set_item,
    **dict.fromkeys((pickle.SETITEMS, pickle.DICT), PlainUnpickler._set_items),
    **dict.fromkeys((pickle.ADDITEMS, pickle.FROZENSET), PlainUnpickler._add_items),
    pickle.BYTEARRAY8: PlainUnpickler._bytes,
    pickle.BUILD: PlainUnpickler._build,
}
PlainUnpickler.dispatch = {
    code: _counted(load, _SPECIAL.get(bytes([code]))) for code, load in pickle._Unpickler.dispatch.items()
}


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


def torch_globals() -> list[Any]:
    """The same plain values for `torch.serialization.safe_globals`, under every name that they have gone by.

    >>> import numpy as np
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
    return [*named, argparse.Namespace, PlainType, PlainArray]


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


def _no_bytes() -> bytes:
    """What protocols 0 to 2 call for bytes of which there are none."""
    return b""


PLAIN: dict[str, Callable[..., Any]] = {
    **{f"builtins.{kind.__name__}": kind for kind in (object, dict, list, set, frozenset, int, float, bool, str)},
    "builtins.bytes": _no_bytes,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": collections.defaultdict,
    "collections.Counter": collections.Counter,
    "copyreg._reconstructor": _new_object,
    "argparse.Namespace": argparse.Namespace,
    "addict.addict.Dict": collections.OrderedDict,  # what ADAPT keeps its options in
    "types.SimpleNamespace": argparse.Namespace,
    **{f"pathlib.{name}": path_as_text for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath")},
    "pathlib.PureWindowsPath": path_as_text,
    "numpy._core.multiarray.scalar": numpy_scalar,
    "numpy.dtype": PlainType,
    "_codecs.encode": _encoded,
}
"""What plain values may call."""

ARRAYS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": empty_array,
    "numpy._core.multiarray._reconstruct": empty_array,
    "numpy._core.numeric._frombuffer": array_of,
}
"""What arrays call besides."""
