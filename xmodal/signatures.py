"""What a part can be told: the options in the signature of its constructor, with their types and defaults."""

from __future__ import annotations

import builtins
import collections.abc
import dataclasses
import functools
import inspect
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass(frozen=True)
class Option:
    """What a constructor says of one of its options."""

    annotation: Any
    """As written, which may be text; `inspect.Parameter.empty` where there is none."""
    default: Any
    """`inspect.Parameter.empty` where there is none."""
    required: bool
    """Whether it cannot be left out."""
    owner: Any
    """The class or function that has it, whose module explains the annotation and whose docstring explains the rest."""


class Options(NamedTuple):
    """The options of a part."""

    named: dict[str, Option]
    """Those in its signature; where that ends in `**options`, also those of the classes it is derived from."""
    more: bool
    """Whether it takes others as well."""


def options_of(part: Callable[..., Any]) -> Options:
    """The options of a class, a function or anything that can be called.

    Example:
        >>> from xmodal.heads import SCAN
        >>> from xmodal.signatures import options_of
        >>> class Slow(SCAN):
        ...     def __init__(self, rounds: int, **options):
        ...         super().__init__(**options)
        >>> options = options_of(Slow)
        >>> options.named["rounds"].required, options.named["temperature"].default, options.more
        (True, 9.0, True)
    """
    named: dict[str, Option] = {}
    for number, (owner, parameters) in enumerate(_signatures(part)):
        for option, what in parameters.items():
            # What is inherited may be given by the derived class itself.
            required = number == 0 and what.default is what.empty
            default = _made_default(owner, option, what.default)
            named.setdefault(option, Option(what.annotation, default, required, owner))
    return Options(named, _is_open(part))


def annotation_of(option: Option) -> Any:
    """The annotation of an option as a type, also where it is text that names what only type checkers import.

    `Any` where it cannot be known.

    Example:
        >>> from xmodal.encoders.backbone import MLP
        >>> from xmodal.signatures import annotation_of, options_of
        >>> annotation_of(options_of(MLP).named["hidden"]).__args__
        (<class 'int'>,)
    """
    if not isinstance(option.annotation, str):
        return option.annotation
    owner = inspect.unwrap(option.owner.func if isinstance(option.owner, functools.partial) else option.owner)
    written_in = getattr(owner.__init__ if inspect.isclass(owner) else owner, "__globals__", {})
    module = vars(sys.modules.get(getattr(owner, "__module__", ""), builtins))
    known = {**vars(collections.abc), **vars(typing), "Path": Path, **module, **written_in}
    try:
        return eval(option.annotation, known)  # as typing.get_type_hints does, but for one annotation alone
    except Exception:  # whatever it is, no type can be read from it
        return Any


def dataclass_of(option: Option) -> type | None:
    """The dataclass that an option takes, whose fields are then options by themselves; None if it takes none.

    Example:
        >>> from dataclasses import dataclass
        >>> from xmodal.signatures import dataclass_of, options_of
        >>> @dataclass
        ... class Steps:
        ...     number: int = 3
        >>> def head(steps: Steps | None = None, dim: int = 3): ...
        >>> [dataclass_of(option) is Steps for option in options_of(head).named.values()]
        [True, False]
    """
    kind = annotation_of(option)
    return next((one for one in (kind, *typing.get_args(kind)) if _is_dataclass(one)), None)


def call(part: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Call a part with options by name, and those that it takes by position only by position.

    Example:
        >>> from xmodal.signatures import call
        >>> call(complex, {"real": 1.0, "imag": 2.0})
        (1+2j)
    """
    by_name, parameters = dict(options), _parameters(part)
    positional = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]
    by_position = [by_name.pop(parameter.name, parameter.default) for parameter in positional]
    return part(*by_position, **by_name)


def _made_default(owner: Any, option: str, default: Any) -> Any:
    """The default of an option; for the field of a dataclass, what its factory makes."""
    fields = {entry.name: entry for entry in dataclasses.fields(owner)} if _is_dataclass(owner) else {}
    factory = fields[option].default_factory if option in fields else dataclasses.MISSING
    return default if factory is dataclasses.MISSING else factory()


def _is_dataclass(owner: Any) -> bool:
    return inspect.isclass(owner) and dataclasses.is_dataclass(owner)


def _signatures(part: Any) -> Iterator[tuple[Any, dict[str, inspect.Parameter]]]:
    """The named parameters of a constructor, then, as long as one takes `**options`, of those it inherits from."""
    yield part, _named_parameters(part)
    if not (inspect.isclass(part) and _is_open(part)):
        return
    for parent in part.__mro__[1:]:
        if "__init__" in vars(parent):
            if parent is object or parent.__module__.partition(".")[0] == "torch":
                return
            yield parent, _named_parameters(parent)
            if not _is_open(parent):
                return


def _parameters(part: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(part).parameters.values())
    except (TypeError, ValueError):  # something built in that does not say
        return [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]


def _named_parameters(part: Any) -> dict[str, inspect.Parameter]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {parameter.name: parameter for parameter in _parameters(part) if parameter.kind not in variable}


def _is_open(part: Any) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in _parameters(part))
