"""What stands for numpy's types and arrays in a pickle: numbers and text, of sizes that are there.

A dtype in a pickle may have fields that are objects, and then the bytes of an array are addresses that whoever wrote
the file chose. So neither `numpy.dtype` nor `numpy.ndarray` is let in, only what stands for them here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

PLAIN_KINDS = "biufSU"
"""Kinds of dtypes that are nothing but bytes: truth values, integers, floating point numbers and text."""

OF_OBJECTS = ("O", "O4", "O8", "|O")
"""Names of the dtype of objects. `np.save` pickles a dict as an array of one of them."""

LARGEST_ITEM = 1 << 16
"""Bytes of a number or text: the dtype of a text says how long it is."""


def plain_dtype(code: Any) -> np.dtype:
    """The dtype of numbers or text that a code or another dtype says.

    Raises:
        ValueError: it has fields or shapes, or is of objects or anything else that is neither number nor text.

    >>> plain_dtype("<f4")
    dtype('float32')
    >>> plain_dtype("O8")
    Traceback (most recent call last):
    ...
    ValueError: it holds values of type 'O8'; wanted numbers or text
    """
    if isinstance(code, (str, np.dtype)):
        try:
            dtype = np.dtype(code)
        except (TypeError, ValueError, SyntaxError) as error:
            raise ValueError(f"it holds values of type {str(code)[:80]!r}, which is none") from error
        flat = dtype.names is None and dtype.subdtype is None
        if flat and dtype.kind in PLAIN_KINDS and dtype.itemsize <= LARGEST_ITEM:
            return dtype
    raise ValueError(f"it holds values of type {str(code)[:80]!r}; wanted numbers or text")


def size_of(shape: Any, dtype: np.dtype) -> int:
    """The bytes of an array, in whole numbers that do not overflow.

    Raises:
        ValueError: the shape is no tuple of sizes.

    >>> size_of((2, 3), np.dtype("f4"))
    24
    """
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"it has an array of shape {str(shape)[:80]}; wanted whole numbers from 0")
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


class PlainType:
    """Stands for `numpy.dtype` in a pickle; that of objects only for arrays whose values come as a list.

    Args:
        code: its name of the dtype.

    >>> PlainType("f8", False, True).dtype
    dtype('float64')
    """

    def __init__(self, code: Any, *_: Any) -> None:
        self.of_objects = code in OF_OBJECTS
        self.dtype = np.dtype(object) if self.of_objects else plain_dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Take the order of bytes; the rest of what a dtype keeps must be as in plain ones."""
        if not isinstance(state, tuple) or len(state) < 5 or any(each is not None for each in state[2:5]):
            raise ValueError("it holds values with fields or shapes; wanted numbers or text")
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"it has the order of bytes {str(state[1])[:20]!r}, which is none")
        if not self.of_objects:
            self.dtype = self.dtype.newbyteorder(state[1])


class PlainArray(np.ndarray):
    """Stands for `numpy.ndarray` in a pickle: it is filled with bytes that are there.

    >>> array = empty_array()
    >>> array.__setstate__((1, (2,), PlainType("u1"), False, b"\\x01\\x02"))
    >>> array.tolist()
    [1, 2]
    """

    def __setstate__(self, state: Any) -> None:
        """Shape, dtype, whether columns come first, and bytes, as arrays are pickled."""
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], PlainType):
            raise ValueError("it has an array without a shape, a type of numbers and bytes")
        _, shape, kind, by_column, data = state
        if kind.of_objects:
            if not isinstance(data, list) or len(data) * kind.dtype.itemsize != size_of(shape, kind.dtype):
                raise ValueError(f"it has an array of objects of shape {shape} without a list of as many")
            super().__setstate__((1, shape, kind.dtype, bool(by_column), data))  # type: ignore[arg-type]
        else:
            numbers = _whole(data, shape, kind.dtype)
            super().__setstate__((1, shape, kind.dtype, bool(by_column), numbers))  # type: ignore[arg-type]


def empty_array(*_: Any) -> PlainArray:
    """An array that is filled in afterwards; of no size, whatever the pickle claims.

    >>> empty_array("numpy.ndarray", (1000000,), "b").shape
    (0,)
    """
    return np.ndarray((0,), "b").view(PlainArray)


def array_of(buffer: Any, kind: PlainType, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """What `numpy.core.numeric._frombuffer` makes.

    >>> array_of(b"\\x01\\x02", PlainType("u1"), (2, 1), "C").tolist()
    [[1], [2]]
    """
    return np.frombuffer(_whole(buffer, shape, kind.dtype), kind.dtype).reshape(shape, order=order)


def numpy_scalar(kind: PlainType, value: bytes | str) -> Any:
    """What `numpy.core.multiarray.scalar` makes, of Python 2's byte strings too.

    >>> numpy_scalar(PlainType("<i4"), "\\x07\\x00\\x00\\x00")
    np.int32(7)
    """
    return np.frombuffer(_whole(value, (), kind.dtype), kind.dtype, count=1)[0]


def _whole(data: Any, shape: Any, dtype: np.dtype) -> bytes:
    """The bytes of an array, if there are as many as it claims; those of Python 2 come as text."""
    data = data.encode("latin1") if isinstance(data, str) else data
    if dtype.hasobject or not isinstance(data, (bytes, bytearray)) or len(data) != size_of(shape, dtype):
        found = f"{len(data)} bytes" if isinstance(data, (bytes, bytearray)) else f"a {type(data).__name__}"
        raise ValueError(f"it has {dtype} numbers of shape {shape} and {found} of them")
    return bytes(data)
