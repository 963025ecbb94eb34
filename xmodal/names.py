"""Names that people type: build what a name stands for, and answer a wrong one with the nearest that exists.

A part has one of three kinds of names: one of a registry of ours (`scan`), `package.module:Class` for a class of
anybody else, or the name of an entry point that an installed package declares (in the groups of `KINDS`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from xmodal.schema import check_option
from xmodal.signatures import call, dataclass_of, options_of
from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Kind:
    """What a class that is not ours must be to serve as a part, and the entry points by which packages offer some."""

    base: str = "torch.nn:Module"
    """The class that it must be derived from."""
    group: str | None = None
    """Group of entry points; None for none."""
    members: tuple[str, ...] = ()
    """What it must define besides."""


KINDS = {
    "image encoder": Kind(group="xmodal.encoders"),
    "text encoder": Kind("xmodal.encoders.base:TextEncoder", "xmodal.encoders"),
    "head": Kind("xmodal.heads:Head", "xmodal.heads"),
    "objective": Kind(group="xmodal.objectives"),
    "adversary": Kind("xmodal.objectives.addr:DomainObjective", "xmodal.adversaries"),
    "captioner": Kind("xmodal.objectives:Captioner", "xmodal.captioners"),
    "backbone": Kind(group="xmodal.backbones"),
    "pooling": Kind("xmodal.heads.pooling:Pooler"),
    "caption_pooling": Kind("xmodal.heads.pooling:Pooler"),
    "image source": Kind("builtins:object", "xmodal.sources", members=("__len__", "batch", "sizes")),
    "extractor": Kind("builtins:object", "xmodal.extractors", members=("name", "__call__")),
    "vector server": Kind("builtins:object", "xmodal.servers", members=("nearest", "vectors", "insert")),
}
"""The kinds of parts; a kind that is not here needs a Module and has no entry points."""

_DOTTED = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")


def build(
    kind: str,
    registry: Mapping[str, Callable[..., Any]],
    options: Mapping[str, Any],
    known: Mapping[str, Any] | None = None,
) -> Any:
    """Call what `options["name"]` stands for with the other options.

    Args:
        kind: what is built, for messages and as a key of `KINDS`.
        registry: parts by their names.
        options: the name and the options.
        known: sizes that the surroundings know (`dim`, `vocabulary_size`, ...); those that the part takes are filled
            in.

    Raises:
        ValueError: for a name or an option that does not exist, naming the nearest one that does, for an option that is
            missing, of another type than its annotation says, or a stated size that differs from the known one.

    Example:
        >>> from xmodal.heads import HEADS
        >>> from xmodal.names import build
        >>> build("head", HEADS, {"name": "bfan", "focal": "equal"})
        BFAN(focal='equal', temperature=20.0)
        >>> build("head", HEADS, {"name": "xmodal.heads.bfan:BFAN"})
        BFAN(focal='prob', temperature=20.0)
        >>> build("head", HEADS, {"name": "vsrn", "layers": 1}, known={"dim": 8, "vocabulary_size": 100}).dim
        8
        >>> build("head", HEADS, {"name": "cosin"})
        Traceback (most recent call last):
        ...
        ValueError: unknown head 'cosin' (did you mean 'cosine'?); known: ...
    """
    name = options.get("name")
    part = find(kind, registry, name)
    takes = options_of(part)
    arguments = fill(kind, registry, options, known or {})
    arguments.pop("name")
    beyond = [option for option in arguments if option not in takes.named]
    if beyond and not takes.more:
        near = near_miss(beyond[0], takes.named)
        raise ValueError(f"{kind} {name!r} has no option {beyond[0]!r}{near}; known: {', '.join(takes.named)}")
    for option, value in options.items():
        if option in takes.named and option not in (known or {}):
            check_option(takes.named[option], value, f"{kind} {name!r}: {option}")
    missing = [option for option, what in takes.named.items() if what.required and option not in arguments]
    if missing:
        raise ValueError(f"{kind} {name!r} needs the option {missing[0]!r}; it has {', '.join(takes.named)}")
    for option, what in takes.named.items():
        group = dataclass_of(what)
        if group is not None and isinstance(arguments.get(option), Mapping):
            arguments[option] = build(option, {option: group}, {"name": option, **arguments[option]})
    for option, parts in getattr(part, "parts", {}).items():
        inner = {"name": given} if isinstance(given := arguments.get(option), str) else given
        if isinstance(inner, Mapping) and ":" in str(inner.get("name")):  # ours are known to the part itself
            arguments[option] = {**inner, "name": find(option, parts, inner["name"])}
    try:
        return call(part, arguments)
    except TypeError as error:  # a value of a wrong type, say
        raise ValueError(f"{kind} {name!r} cannot be made with the options {arguments}: {error}") from error


def find(kind: str, registry: Mapping[str, Callable[..., Any]], name: Any) -> Callable[..., Any]:
    """What a name stands for: an entry of the registry, a class by its dotted name, or an entry point.

    Raises:
        ValueError: nothing has this name, the module behind it cannot be imported, or what is found there is no class
            of this kind.

    Example:
        >>> from xmodal.heads import HEADS
        >>> from xmodal.names import find
        >>> find("head", HEADS, "scan") is find("head", HEADS, "xmodal.heads:SCAN")
        True
        >>> find("head", HEADS, "os:system")
        Traceback (most recent call last):
        ...
        ValueError: head 'os:system' is a builtin_function_or_method, not a class derived from xmodal.heads.base.Head
    """
    offered: dict[str, metadata.EntryPoint] = {}
    if isinstance(name, str):
        if name in registry:
            return registry[name]
        if ":" in name:
            return _dotted(kind, name, f"{kind} {name!r}")
        offered = _entry_points(kind)
        if name in offered:
            value = offered[name].value.split("[")[0].strip()
            return _dotted(kind, value, f"{kind} {name!r} (entry point {value})")
    names = [*registry, *offered]
    near = near_miss(name, names) if isinstance(name, str) else ""
    hint = "; name a class of your own package.module:Class" if isinstance(name, str) and "." in name else ""
    raise ValueError(f"unknown {kind} {name!r}{near}; known: {', '.join(names)}{hint}")


def fill(
    kind: str, registry: Mapping[str, Callable[..., Any]], options: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """The options with every known size filled in that the named part takes; a stated None counts as left out.

    Raises:
        ValueError: a stated size differs from the known one, and as for `find`.

    Example:
        >>> from xmodal.heads import HEADS
        >>> from xmodal.names import fill
        >>> fill("head", HEADS, {"name": "vsrn"}, {"dim": 8}), fill("head", HEADS, {"name": "scan"}, {"dim": 8})
        ({'name': 'vsrn', 'dim': 8}, {'name': 'scan'})
        >>> fill("head", HEADS, {"name": "vsrn", "dim": 4}, {"dim": 8})
        Traceback (most recent call last):
        ...
        ValueError: head 'vsrn': dim is stated as 4, but it is 8 here; leave it out, or change what it comes from
    """
    filled = dict(options)
    takes = options_of(find(kind, registry, options.get("name"))).named
    for size, value in known.items():
        stated = options.get(size)
        if stated is not None and stated != value:
            raise ValueError(
                f"{kind} {options['name']!r}: {size} is stated as {stated!r}, but it is {value!r} here; "
                "leave it out, or change what it comes from"
            )
        if size in takes:
            filled[size] = value
    return filled


def storable(kind: str, registry: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under the name by which any other process finds the same part.

    That is a name of ours for a part of ours, and `package.module:Class` for every other, even where a name was put
    into the registry by hand.

    Warns:
        UserWarning: no other process can find it, as with a class that a script or a notebook defines.

    Example:
        >>> from fractions import Fraction
        >>> from xmodal.heads import HEADS
        >>> from xmodal.names import storable
        >>> storable("head", {**HEADS, "mine": Fraction}, {"name": "mine", "steps": 3})
        {'name': 'fractions:Fraction', 'steps': 3}
        >>> storable("head", HEADS, {"name": "xmodal.heads:SCAN"})
        {'name': 'scan'}
    """
    name = options.get("name")
    part = find(kind, registry, name)
    ours = [key for key, value in registry.items() if value is part]
    if ours and part.__module__.partition(".")[0] == "xmodal":
        return {**options, "name": name if name in ours else ours[0]}
    where = f"{part.__module__}:{part.__qualname__}" if inspect.isclass(part) else ""
    if where and part.__module__ == "__main__":
        warnings.warn(f"{kind} {name!r} is stored as {where!r}. {_NOT_ELSEWHERE}", stacklevel=2)
    elif not (_DOTTED.fullmatch(where) and _leads_to(where, part)):
        warnings.warn(f"{kind} {name!r} is no class that can be imported. {_NOT_ELSEWHERE}", stacklevel=2)
        return dict(options)
    return {**options, "name": where}


_NOT_ELSEWHERE = (
    "Another process cannot load it: put the class at the top of a file of its own, import it from there, and name it "
    "file:Class."
)


def _entry_points(kind: str) -> dict[str, metadata.EntryPoint]:
    group = KINDS.get(kind, Kind()).group
    return {entry.name: entry for entry in metadata.entry_points(group=group)} if group else {}


def _dotted(kind: str, name: str, what: str) -> Any:
    """The class behind `package.module:Class`, if it is one of this kind."""
    match = _DOTTED.fullmatch(name)
    if match is None:
        raise ValueError(f"{what} must be named package.module:Class, such as my_heads:Mine")
    module = _import(match[1], what)
    needed = KINDS.get(kind, Kind())
    base = _lookup(importlib.import_module(needed.base.partition(":")[0]), needed.base.partition(":")[2])
    found = _lookup(module, match[2])
    if found is None:
        fitting = [key for key, value in vars(module).items() if _is_part(value, base, needed) and value is not base]
        there = f"; it has {', '.join(fitting)}" if fitting else ""
        note = f". {_NOT_ELSEWHERE}" if match[1] == "__main__" else ""
        file = getattr(module, "__file__", None) or "built in"
        near = near_miss(match[2], [*fitting, *vars(module)])
        raise ValueError(f"{what}: module {match[1]!r} ({file}) has no {match[2]!r}{near}{there}{note}")
    if not _is_part(found, base, needed):
        is_what = (
            f"a class derived from {', '.join(_path(parent) for parent in found.__bases__)}"
            if inspect.isclass(found)
            else f"a {type(found).__name__}"
        )
        wanted = f"a class derived from {_path(base)}" if base is not object else "a class"
        members = f" with {' and '.join(needed.members)}" if needed.members else ""
        raise ValueError(f"{what} is {is_what}, not {wanted}{members}")
    return found


def _is_part(found: Any, base: type, kind: Kind) -> bool:
    return (
        inspect.isclass(found)
        and issubclass(found, base)
        and all(any(member in vars(parent) for parent in found.__mro__) for member in kind.members)
    )


def _path(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _lookup(module: Any, path: str) -> Any:
    return functools.reduce(lambda found, part: getattr(found, part, None), path.split("."), module)


def _leads_to(where: str, part: Any) -> bool:
    module, _, path = where.partition(":")
    return module in sys.modules and _lookup(sys.modules[module], path) is part


def _import(module: str, what: str) -> Any:
    """Import a module; say apart that it is not there and that it fails."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{what}: module {module!r} needs a module that is not there: {error}") from error
        parent = sys.modules.get(error.name.rpartition(".")[0])
        modules = pkgutil.iter_modules(getattr(parent, "__path__", None))
        beside = [found.name for found in modules if not found.name.startswith("_")]
        near = near_miss(error.name.rpartition(".")[2], beside)
        raise ValueError(
            f"{what}: there is no module {error.name!r}{near}, neither installed nor on sys.path"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what}: importing module {module!r} failed: {type(error).__name__}: {error}") from error
