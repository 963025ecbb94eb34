"""Names that people type: build what a name stands for, and answer a wrong one with the nearest that exists."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def build(kind: str, registry: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]) -> Any:
    """Call what `options["name"]` stands for in a registry with the other options.

    Raises:
        ValueError: for a name or an option that does not exist, naming the nearest one that does, and for an option
            that is missing.

    Example:
        >>> from xmodal.heads import HEADS
        >>> build("head", HEADS, {"name": "cosine", "pooling": "max"})
        Cosine(pooling='max')
        >>> build("head", HEADS, {"name": "cosin"})
        Traceback (most recent call last):
        ...
        ValueError: unknown head 'cosin' (did you mean 'cosine'?); known: ...
    """
    arguments = dict(options)
    name = arguments.pop("name", None)
    if name not in registry:
        raise ValueError(f"unknown {kind} {name!r}{near_miss(str(name), registry)}; known: {', '.join(registry)}")
    known = inspect.signature(registry[name]).parameters
    for option in arguments:
        if option not in known:
            raise ValueError(
                f"{kind} {name!r} has no option {option!r}{near_miss(option, known)}; known: {', '.join(known)}"
            )
    missing = [option for option, what in known.items() if what.default is what.empty and option not in arguments]
    if missing:
        raise ValueError(f"{kind} {name!r} needs the option {missing[0]!r}; it has {', '.join(known)}")
    return registry[name](**arguments)


def near_miss(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where something similar exists, else nothing.

    Example:
        >>> from xmodal.names import near_miss
        >>> near_miss("scam", ["scan", "bfan"]), near_miss("bert", ["scan", "bfan"])
        (" (did you mean 'scan'?)", '')
    """
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(lower), n=1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""
