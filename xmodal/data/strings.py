"""One string where several are wanted, which Python would take letter by letter."""

from __future__ import annotations

from typing import Any


def refuse_string(name: str, value: Any, wanted: str) -> None:
    """Make sure that a sequence of strings is not a single one.

    Args:
        name: of the argument.
        value: of the argument.
        wanted: what it should be, in the plural: `ids`, `sentences`.

    Raises:
        ValueError: it is a string or bytes.

    >>> refuse_string("ids", ["12"], "ids")
    >>> refuse_string("ids", "12", "ids")
    Traceback (most recent call last):
    ...
    ValueError: ids is the string '12'; wanted a list of ids, ['12'] for one of them
    """
    if isinstance(value, (str, bytes)):
        shown = repr(value) if len(value) <= 80 else f"{value[:77]!r}..."
        raise ValueError(f"{name} is the string {shown}; wanted a list of {wanted}, [{shown}] for one of them")
