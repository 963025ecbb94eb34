"""A run from the command line: every option of the parts that are chosen, with types, defaults and help.

A configuration keeps a part as a plain mapping. Here each mapping becomes, for the time of reading the arguments, a
dataclass made of the signature of the part that is chosen, which tyro turns into options.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import keyword
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro
import yaml
from tyro.constructors import PrimitiveConstructorSpec

from xmodal.arguments import read_arguments
from xmodal.signatures import Option, annotation_of
from xmodal.spelling import near_miss
from xmodal.training.config import to_dict
from xmodal.training.part import at, left_over, options_of_part
from xmodal.training.parts import PARTS
from xmodal.training.read_yaml import read_yaml, write_yaml

if TYPE_CHECKING:
    from xmodal.training.config import RunConfig
    from xmodal.training.part import Part

SIMPLE = (bool, int, float, str, Path, type(None))
"""Types that tyro reads as they are; every other value is written as YAML."""


def parse(config: RunConfig, arguments: Sequence[str], *, prog: str, description: str) -> Any:
    """The configuration with what the arguments change.

    Raises:
        ValueError: for a part or an option that does not exist, with the nearest one that does, or a value that cannot
            be.
        SystemExit: after printing the help.

    Example:
        >>> from xmodal.training.command_line import parse
        >>> from xmodal.training.config import TrainConfig
        >>> about = {"prog": "xmodal train", "description": "Train."}
        >>> parse(TrainConfig(), ["--model.head.name", "bfan", "--model.head.focal=equal"], **about).model.head
        {'name': 'bfan', 'focal': 'equal', 'temperature': 20.0}
        >>> parse(TrainConfig(), ["--model.head.focal", "equal"], **about)
        Traceback (most recent call last):
        ...
        ValueError: unknown option --model.head.focal (did you mean '--model.head.name'?); known: --model.head.name, ...
    """
    given = _given(arguments)
    groups = {path: _group(part, _at(config, path), given, path) for path, part in PARTS[type(config)].items()}
    default = _with_groups(config, groups)
    arguments = _named(arguments, [flag for path, group in groups.items() for flag in _parts_inside(group, path)])
    kind = type(default)
    if not {"-h", "--help"} & set(arguments):
        _check_flags(default, arguments, prog)
        _check_paths(config, given)
    parsed = read_arguments(kind, arguments, prog=prog, description=description, default=default)
    return _without_left_over(config, _without_groups(config, parsed, groups), given, prog)


def _check_paths(config: Any, given: Mapping[str, str], above: str = "") -> None:
    """Refuse an empty path, which would be the folder where the program runs."""
    for name, kind in get_type_hints(type(config)).items():
        path = f"{above}{name}"
        if kind in (Path, Path | None) and given.get(path) == "":
            raise ValueError(f"{path} is ''; wanted a path")
        if dataclasses.is_dataclass(kind):
            _check_paths(getattr(config, name), given, f"{path}.")


def _without_left_over(old: RunConfig, new: RunConfig, given: Mapping[str, str], prog: str) -> Any:
    """A configuration without the parts that the old one has for a part that was replaced, which is told."""
    for path in left_over(PARTS[type(new)], to_dict(old), to_dict(new)):
        if not any(flag.startswith(f"{path}.") for flag in given):
            outer, _, last = path.rpartition(".")
            new = dataclasses.replace(new, **{outer: dataclasses.replace(getattr(new, outer), **{last: {}})})
            chosen = at(to_dict(new), "model.head.name")
            print(f"{prog}: {path} is left out, which is of no use to the head {chosen}", file=sys.stderr)
    return new


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """What follows each option, which is named by its path: `model.head.lse_scale`."""
    found = {}
    for number, argument in enumerate(arguments):
        if argument.startswith("--"):
            flag, is_joined, value = argument[2:].partition("=")
            following = arguments[number + 1] if number + 1 < len(arguments) else ""
            found[flag.replace("-", "_")] = value if is_joined else following
    return found


def _named(arguments: Sequence[str], parts: Sequence[str]) -> list[str]:
    """The arguments with `--model.head.pooling gpo` written out as `--model.head.pooling.name gpo`."""
    return [
        re.sub(r"^([^=]*)", r"\1.name", argument)
        if argument.startswith("--") and argument[2:].partition("=")[0].replace("-", "_") in parts
        else argument
        for argument in arguments
    ]


def _parts_inside(group: _Group, path: str) -> Iterator[str]:
    """The paths of the parts inside a part that are chosen by name."""
    for option, inner in group.inside.items():
        if not inner.nameless:
            yield f"{path}.{option}"
        yield from _parts_inside(inner, f"{path}.{option}")


@dataclass(frozen=True)
class _Group:
    """The options of one part, as tyro takes them."""

    kind: type
    """Dataclass of the options."""
    inside: dict[str, _Group]
    """Options that are parts themselves."""
    unstated: frozenset[str]
    """Options that are left out of the configuration as long as they are None."""
    absent: bool
    """Whether the configuration has no such part, and no argument asks for one."""
    nameless: bool


def _group(part: Part, values: Any, given: Mapping[str, str], path: str) -> _Group:
    """The options of the part that a configuration and the arguments choose for one place."""
    stated = not dataclasses.is_dataclass(values)
    values = dict(values or {}) if stated else {e.name: getattr(values, e.name) for e in dataclasses.fields(values)}
    asked = {flag.removeprefix(f"{path}."): value for flag, value in given.items() if flag.startswith(f"{path}.")}
    if part.nested and not part.nameless and path in given:
        asked["name"] = given[path]
    name = asked.get("name", values.get("name"))
    absent = part.optional and (name == "None" or not ((stated and values) or asked))
    name = part.only if name is None else name
    if name is None or (part.optional and name == "None"):
        default = None if part.optional else tyro.MISSING
        return _Group(_only_name(part, default), {}, frozenset(), absent=part.optional, nameless=False)
    options = part.options(name)
    if "name" in asked:
        values = part.left(values, name)
    named = {key: option for key, option in options.named.items() if _is_shown(part, key, option, values, asked)}
    beyond = [*values, *(asked if options.more else ())]
    named |= {key: _ANYTHING for key in map(_outermost, beyond) if key not in named and _can_be_field(key)}
    named.pop("name", None)
    parts = part.inside(name)
    inside = {
        key: _group(part, options_of_part(values.get(key, _part_default(named[key]))), given, f"{path}.{key}")
        for key, part in parts.items()
        if key in named
    }
    unstated = frozenset(part.known - values.keys())
    help_texts = option_help(part, name)
    fields: list[Any] = [] if part.nameless else [_name_field(part, None if absent else name)]
    for key, option in named.items():
        if key in inside:
            fields.append((key, inside[key].kind, field(default_factory=inside[key].kind)))
        else:
            text = help_texts.get(key, "") + (" Known from the data and the other parts." if key in unstated else "")
            fields.append(_field(key, option, values, key in unstated, text.strip()))
    kind = make_dataclass(f"Options of {part.kind} {name}", fields, kw_only=True, frozen=True)
    return _Group(kind, inside, unstated, absent, part.nameless)


def _part_default(option: Option) -> Any:
    default = option.default
    return default if dataclasses.is_dataclass(default) or isinstance(default, (str, Mapping)) else None


_ANYTHING = Option(Any, inspect.Parameter.empty, required=False, owner=None)


def _outermost(path: str) -> str:
    return path.partition(".")[0]


def _can_be_field(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def _is_shown(part: Part, key: str, option: Option, values: Mapping[str, Any], asked: Mapping[str, str]) -> bool:
    """What has no default in a part inside another is given by that one, unless it is a part or is stated."""
    if not part.nested or key in values or key in asked or key in part.inside(part.name(values) or asked.get("name")):
        return True
    return option.default is not inspect.Parameter.empty


def _only_name(part: Part, name: Any) -> type:
    return make_dataclass(f"Options of {part.kind}", [_name_field(part, name)], kw_only=True, frozen=True)


def _name_field(part: Part, name: Any) -> Any:
    text = f"Which {part.kind}: {', '.join(part.registry)}, an entry point, or a class of your own."
    text += " None for none." if part.optional else ""
    kind = Union[str, None] if part.optional else str  # noqa: UP007  # made at run time
    return ("name", Annotated[kind, tyro.conf.arg(help=text, metavar="NAME|MODULE:CLASS")], field(default=name))


def _field(key: str, option: Option, values: Mapping[str, Any], is_unstated: bool, text: str) -> Any:
    """A field of a dataclass for one option."""
    default = values.get(key, option.default)
    if is_unstated and key not in values:
        default = None
    if default is inspect.Parameter.empty:
        default = tyro.MISSING if option.required else None
    kind = _type(option, default)
    if kind is None:
        kind = Annotated[Any, _YAML]
    elif isinstance(default, (list, tuple)):
        default = tuple(default)
    kind = Annotated[kind, tyro.conf.arg(help=text)]
    return (
        key,
        kind,
        field(default_factory=lambda: default) if isinstance(default, (dict, set)) else field(default=default),
    )


def _type(option: Option, default: Any) -> Any:
    """The annotation as tyro takes it; None where it says too little, or not what the default is."""
    kind = _readable(annotation_of(option))
    if kind is None and type(default) in SIMPLE[:4]:
        kind = type(default) if option.annotation is inspect.Parameter.empty else None
    if kind is None or default is tyro.MISSING:
        return kind
    if default is None and type(None) not in get_args(kind):
        return Union[kind, None]  # noqa: UP007  # made at run time
    return kind if _fits(default, kind) else None


def _readable(kind: Any) -> Any:
    """A type that tyro reads and that becomes plain data, or None."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _readable(inner[0])
    if kind in SIMPLE or origin is Literal:
        return kind
    if kind in (list, tuple, Sequence, set):
        return None
    if origin in (Union, types.UnionType):
        readable = [_readable(one) for one in inner]
        several = [one for one in readable if get_origin(one) is tuple]
        if None in readable or (several and len(readable) > 2):
            return None
        return Union[tuple(readable)]  # noqa: UP007  # made at run time
    if origin in (list, Sequence, collections.abc.Iterable):
        one = _readable(inner[0])
        return None if one is None or get_origin(one) is tuple else tuple[one, ...]
    if origin is tuple:
        readable = tuple(one if one is Ellipsis else _readable(one) for one in inner)
        return None if None in readable or not inner else tuple[readable]
    return None


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type that `_readable` gave."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        wanted = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(wanted) == len(value) and all(map(_fits, value, wanted))
    return type(value) is kind or (kind is float and type(value) is int) or (kind is Path and isinstance(value, Path))


def _read_yaml(words: list[str]) -> Any:
    try:
        return read_yaml(words[0])
    except yaml.YAMLError as error:
        raise ValueError(f"{words[0]!r} is no YAML: {' '.join(str(error).split())}") from error


_YAML = PrimitiveConstructorSpec(
    nargs=1,
    metavar="YAML",
    instance_from_str=_read_yaml,
    is_instance=lambda _: True,
    str_from_instance=lambda value: [write_yaml(value, default_flow_style=True).removesuffix("...\n").strip()],
)


def option_help(part: Part, name: Any) -> dict[str, str]:
    """What the docstrings of a part say of its options.

    Those are its own, that of the class that an option is inherited from, and those of the functions that these refer
    to in backquotes: a head takes the arguments of its function.

    Example:
        >>> from xmodal.training.command_line import option_help
        >>> from xmodal.training.config import TrainConfig
        >>> from xmodal.training.parts import PARTS
        >>> option_help(PARTS[TrainConfig]["model.text"], "gru")["layers"]
        'Number of GRU layers.'
    """
    owners = {id(option.owner): option.owner for option in part.options(name).named.values()}.values()
    documented = [(owner, getattr(owner, "__init__", None)) for owner in owners]
    own = [what for pair in documented for what in pair]
    referred = [
        function
        for owner in owners
        for word in re.findall(r"`(\w+)`", inspect.getdoc(owner) or "")
        if inspect.isfunction(function := vars(sys.modules.get(owner.__module__, sys)).get(word))
    ]
    texts: dict[str, str] = {}
    for what in (*own, *referred):
        for parameter in docstring_parser.parse(inspect.getdoc(what) or "").params:
            sentence = " ".join((parameter.description or "").split())
            texts.setdefault(parameter.arg_name, sentence[:1].upper() + sentence[1:])
    return texts


def _at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _with_groups(config: Any, groups: Mapping[str, _Group], above: str = "") -> Any:
    """The configuration with dataclasses in the place of the mappings, of a class derived from its own."""
    changed, tables = {}, []
    for entry in dataclasses.fields(config):
        path, value = f"{above}{entry.name}", getattr(config, entry.name)
        if path in groups:
            changed[entry.name] = groups[path].kind()
        elif dataclasses.is_dataclass(value):
            changed[entry.name] = _with_groups(value, groups, f"{path}.")
        elif isinstance(value, dict):  # written as one value: tyro would take every entry for an option of its own
            tables.append((entry.name, Annotated[dict, _YAML], field(default_factory=dict)))
    made = [(name, type(value), field(default=value)) for name, value in changed.items()] + tables
    kind = make_dataclass(type(config).__name__, made, bases=(type(config),), frozen=True)
    values = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
    return kind(**{**values, **changed})


def _without_groups(config: Any, parsed: Any, groups: Mapping[str, _Group], above: str = "") -> Any:
    """The inverse: a configuration of the class of the given one, with plain mappings."""
    values = {}
    for entry in dataclasses.fields(config):
        path, value = f"{above}{entry.name}", getattr(parsed, entry.name)
        if path in groups:
            value = _plain(groups[path], value) or {}
        elif dataclasses.is_dataclass(value):
            value = _without_groups(getattr(config, entry.name), value, groups, f"{path}.")
        values[entry.name] = value
    return type(config)(**values)


def _plain(group: _Group, options: Any) -> dict[str, Any] | None:
    """What a part keeps in the configuration."""
    if group.absent:
        return None
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(options):
        value = getattr(options, entry.name)
        if entry.name in group.inside:
            value = _plain(group.inside[entry.name], value)
            if value is None:
                continue
        elif entry.name in group.unstated and value is None:
            continue
        values[entry.name] = list(value) if isinstance(value, tuple) else value
    return values


def _check_flags(config: Any, arguments: Sequence[str], prog: str) -> None:
    """Refuse an option that does not exist, with the nearest one that does and those beside it."""
    known = _flags(config)
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            place = flag.rpartition(".")[0]
            beside = [other for other in known if place and other.rpartition(".")[0] == place]
            near = near_miss(flag, beside) or near_miss(flag, known)
            there = f"; known: {', '.join(beside)}" if beside else ""
            raise ValueError(f"unknown option {argument.partition('=')[0]}{near}{there}; see {prog} --help")


def _flags(config: Any, above: str = "--") -> list[str]:
    """The options of a dataclass, as they are typed."""
    flags = []
    for name, value in ((entry.name, getattr(config, entry.name)) for entry in dataclasses.fields(config)):
        flag = f"{above}{name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            flags += _flags(value, f"{flag}.")
        flags += [flag, f"{above}no-{name.replace('_', '-')}"] if isinstance(value, bool) else [flag]
    return flags
