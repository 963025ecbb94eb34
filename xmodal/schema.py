"""Values of a known type: what a field or an option is annotated with decides what it takes, its range included.

Ranges stand beside the type, `Annotated[int, Interval(ge=1)]`. Values come from YAML, from the command line or from
Python; nothing is guessed: `"3"` and `true` are no numbers. Only what YAML has no word for is taken as it writes it: a
path as text, a tuple as a list.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Len, Lt, MinLen
from pydantic import BeforeValidator, ConfigDict, Strict, TypeAdapter, ValidationError

from xmodal.signatures import annotation_of
from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from xmodal.signatures import Option

LARGEST = 10**9
"""The largest whole number that counts anything."""

DEEPEST = 64
"""How deep lists and mappings may be nested."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a value should be, in words of its own."""

    text: str


Count = Annotated[int, Interval(ge=1, le=LARGEST)]
CountOrNone = Annotated[int, Interval(ge=0, le=LARGEST)]
"""A count, or 0 where that has a meaning of its own."""
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, lt=1), Wanted("a share below 1, 0 for nothing")]
Name = Annotated[str, Len(1)]


def checked(kind: Any, value: Any, path: str) -> Any:
    """A value as its type takes it: a path for text, a tuple for a list.

    Args:
        kind: the type, with its range.
        value: what was given.
        path: where, for messages.

    Raises:
        ValueError: the value is of another type or out of range.

    Example:
        >>> from xmodal.schema import Share, checked
        >>> checked(tuple[int, ...], [1, 2], "recall_at"), checked(Path, "runs/scan", "output").name
        ((1, 2), 'scan')
        >>> checked(Share, 1.5, "data.drop_regions")
        Traceback (most recent call last):
        ...
        ValueError: data.drop_regions is 1.5; wanted a share below 1, 0 for nothing
    """
    if _is_dataclass(kind):
        if isinstance(value, kind):
            return value
        raise _refusal(kind, value, path)
    try:
        return _adapter(kind, finite=True).validate_python(value)
    except ValidationError as error:
        raise _innermost(kind, value, path, error) from None


def check_fields(config: Any) -> None:
    """Make sure that the fields of a frozen dataclass have values as annotated; what YAML has no word for is turned.

    Raises:
        ValueError: for the first field with a value that it does not take.

    Example:
        >>> from dataclasses import dataclass
        >>> from xmodal.schema import Count, check_fields
        >>> @dataclass(frozen=True)
        ... class Run:
        ...     output: Path
        ...     epochs: Count = 30
        ...     __post_init__ = check_fields
        >>> Run("runs/mine").output.name
        'mine'
        >>> Run("runs/mine", epochs=0)
        Traceback (most recent call last):
        ...
        ValueError: epochs is 0; wanted a whole number from 1 to 1000000000
    """
    for name, kind in _fields(type(config)).items():
        object.__setattr__(config, name, checked(kind, getattr(config, name), name))


def check_option(option: Option, value: Any, path: str) -> None:
    """Make sure that an option of a part has a value of the type that its constructor names.

    What the annotation does not tell, or nothing can read, is for the constructor to say. A number must be finite
    unless the default is not.

    Raises:
        ValueError: the value is of another type.

    Example:
        >>> from xmodal.heads import SCAN
        >>> from xmodal.schema import check_option
        >>> from xmodal.signatures import options_of
        >>> check_option(options_of(SCAN).named["temperature"], "hot", "model.head.temperature")
        Traceback (most recent call last):
        ...
        ValueError: model.head.temperature is 'hot'; wanted a finite number above 0
    """
    kind = annotation_of(option)
    if kind in (inspect.Parameter.empty, Any) or value is option.default or (value is None and option.default is None):
        return
    finite = not (isinstance(option.default, float) and not math.isfinite(option.default))
    try:
        _adapter(kind, finite=finite).validate_python(value)
    except ValidationError as error:
        raise _innermost(kind, value, path, error) from None
    except Exception:  # an annotation that says nothing about values, such as a Protocol
        return


def check_plain(value: Any, path: str, depth: int = 0) -> Any:
    """A value that YAML and checkpoints can store: numbers, text, lists and mappings; paths become text.

    Raises:
        ValueError: it is something else, or nested too deeply.

    Example:
        >>> from xmodal.schema import check_plain
        >>> check_plain({"folder": Path("photos"), "sizes": (1, 2)}, "data.source")
        {'folder': 'photos', 'sizes': (1, 2)}
        >>> check_plain({"levels": [{3}]}, "model.image")
        Traceback (most recent call last):
        ...
        ValueError: model.image.levels[0] is {3}; wanted a number, text, true, false, null, or a list or mapping of ...
    """
    if depth > DEEPEST:
        raise ValueError(f"{path[:60]}... is nested more than {DEEPEST} deep")
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):
        if value.bit_length() < 64:
            return value
        raise ValueError(f"{path} is {_shown(value)}; wanted a whole number of at most 64 bits")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        inner = (check_plain(one, f"{path}[{number}]", depth + 1) for number, one in enumerate(value))
        return tuple(inner) if isinstance(value, tuple) else list(inner)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: check_plain(one, f"{path}.{key}", depth + 1) for key, one in value.items()}
    raise ValueError(
        f"{path} is {_shown(value)}; wanted a number, text, true, false, null, or a list or mapping of these"
    )


def describe(kind: Any) -> str:
    """What a type takes, in words.

    Example:
        >>> from xmodal.schema import Count, describe
        >>> describe(int | None), describe(Literal["adam", "adamw"]), describe(tuple[Count, ...])[:24]
        ('a whole number or null', 'adam or adamw', 'a list, each item a whol')
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _described_range(inner[0], inner[1:])
    if origin is Literal:
        return _either([str(one) for one in inner])
    if origin in (Union, types.UnionType):
        return _either(list(dict.fromkeys(map(describe, inner))))
    if origin in (list, tuple, set, frozenset, Sequence, collections.abc.Iterable) and inner:
        every = inner[0] if origin is not tuple or inner[-1] is Ellipsis else None
        return f"a list, each item {describe(every)}" if every else f"a list of {', '.join(map(describe, inner))}"
    if origin in (dict, Mapping) and inner[1:] and inner[1] is not Any:
        return f"a mapping, each value {describe(inner[1])}"
    if _is_dataclass(kind):
        return "a mapping of options"
    return _WORDS.get(origin or kind, getattr(kind, "__qualname__", str(kind)))


_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
    list: "a list",
    tuple: "a list",
    set: "a list",
    Sequence: "a list",
    dict: "a mapping",
    Mapping: "a mapping",
}


def _described_range(kind: Any, metadata: tuple[Any, ...]) -> str:
    words, limits = describe(kind), {}
    for one in metadata:
        for limit in one if isinstance(one, GroupedMetadata) else [one]:
            if isinstance(limit, Wanted):
                return limit.text
            if isinstance(limit, MinLen):
                words = f"{words} that is not empty"
            limits |= {
                name: getattr(limit, name)
                for name in _LIMITS
                if isinstance(limit, (Ge, Gt, Le, Lt)) and hasattr(limit, name)
            }
    if {"ge", "le"} <= limits.keys():
        return f"{words} from {limits['ge']} to {limits['le']}"
    return " ".join([words, " and ".join(f"{_LIMITS[name]} {limit}" for name, limit in limits.items())]).strip()


_LIMITS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _adapter(kind: Any, *, finite: bool) -> TypeAdapter[Any]:
    with contextlib.suppress(TypeError):  # annotations need not be hashable
        return _made_adapter(kind, finite)
    return _made_adapter.__wrapped__(kind, finite)


@functools.lru_cache(maxsize=1024)
def _made_adapter(kind: Any, finite: bool) -> TypeAdapter[Any]:
    config = ConfigDict(strict=True, allow_inf_nan=not finite, arbitrary_types_allowed=True)
    return TypeAdapter(_as_written(kind), config=config)


def _as_written(kind: Any) -> Any:
    """A type that also takes what YAML writes in its place."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Path:
        return Annotated[Path, BeforeValidator(_path)]
    if kind in (list, tuple, set):
        return Annotated[kind, Strict(False)]
    if _is_dataclass(kind):  # its own fields are checked when it is made
        return Mapping | kind
    if origin is Annotated:
        return Annotated[(_as_written(inner[0]), *inner[1:])]  # type: ignore[return-value]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_as_written, inner))]  # noqa: UP007  # made at run time
    if origin in (list, tuple, set):
        made: Any = origin
        return Annotated[made[tuple(map(_as_written, inner))], Strict(False)]
    return kind


def _path(value: Any) -> Any:
    """Text as a path; that of no letters would be the folder where the program runs."""
    return Path(value) if isinstance(value, str) and value and "\0" not in value else value


def _innermost(kind: Any, value: Any, path: str, error: ValidationError) -> ValueError:
    """The refusal of the innermost value that is known to be wrong."""
    steps = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
    if steps and steps[-1] == "[key]":
        return ValueError(f"{path} has the key {_shown(steps[-2])}; wanted names")
    for step in steps:
        inside = _inside(kind)
        if inside is Any or not isinstance(value, (list, tuple, Mapping)):
            break
        if step not in (value if isinstance(value, Mapping) else range(len(value))):
            break
        path = f"{path}.{step}" if isinstance(value, Mapping) else f"{path}[{step}]"
        kind, value = inside, value[step]  # type: ignore[index]  # a place in what it is
    return _refusal(kind, value, path)


def _inside(kind: Any) -> Any:
    """The type of every value in a list or a mapping; Any where that depends."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _inside(inner[0])
    if origin in (dict, Mapping):
        return inner[1]
    if origin in (list, Sequence) or (origin is tuple and inner[-1] is Ellipsis):
        return inner[0]
    return Any


def _refusal(kind: Any, value: Any, path: str) -> ValueError:
    names = [one for one in get_args(kind) if isinstance(one, str)] if get_origin(kind) is Literal else []
    near = near_miss(value, names) if isinstance(value, str) else ""
    return ValueError(f"{path} is {_shown(value)}{near}; wanted {describe(kind)}")


def _shown(value: Any) -> str:
    """A value as Python writes it, if that is not too long."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = repr(str(value) if isinstance(value, Path) else value)
    except (ValueError, RecursionError):  # numbers of too many digits inside, lists in themselves
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_dataclass(kind: Any) -> bool:
    return inspect.isclass(kind) and dataclasses.is_dataclass(kind)
