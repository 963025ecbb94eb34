"""The parts that a configuration names: where they are in it, what they may be, and all of their options.

An option that is itself a part (the backbone behind a projection, the metric loss of an objective) is declared by the
part that has it, in its attribute `parts`: a registry, or one class where there is no choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xmodal.data.split import SOURCES
from xmodal.encoders.backbone import BACKBONES
from xmodal.heads import HEADS
from xmodal.model import CAPTIONERS, IMAGE_ENCODERS, TEXT_ENCODERS
from xmodal.names import find, storable
from xmodal.objectives import METRIC_OBJECTIVES, OBJECTIVES
from xmodal.schema import check_option, check_plain
from xmodal.signatures import Option, Options, dataclass_of, options_of
from xmodal.spelling import near_miss
from xmodal.training.adversary import ADVERSARIES, Adversary

Registry = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Part:
    """What may stand at one place of a configuration."""

    kind: str
    """As for `xmodal.names.build`."""
    registry: Registry
    """What is known by name."""
    known: frozenset[str] = frozenset()
    """Options that the data and the other parts decide, which need not be given."""
    kept: frozenset[str] = frozenset()
    """Options that stay when another part is chosen."""
    optional: bool = False
    """Whether there may be none."""
    nameless: bool = False
    """Whether there is but one, whose name is not stored."""
    nested: bool = False
    """Whether another part makes it, and gives it what has no default."""
    own: Mapping[str, Option] = field(default_factory=dict)
    """Options that every one of them has, whatever its constructor takes."""
    usual: str | None = None
    """The one that is meant where options are given without a name."""
    needs: tuple[str, str] | None = None
    """Another place, and what the class of the part there must say of itself for this one to be of use."""

    @property
    def only(self) -> str | None:
        """The name that need not be given: the usual one, or the only one, which its place says already."""
        return self.usual or (next(iter(self.registry)) if self.optional and len(self.registry) == 1 else None)

    def name(self, values: Mapping[str, Any]) -> Any:
        """The name that some options give, or leave out because there is but one."""
        return values.get("name", self.only)

    def options(self, name: Any) -> Options:
        """Everything that the part of this name can be told."""
        options = options_of(find(self.kind, self.registry, name))
        return Options({**options.named, **self.own}, options.more)

    def inside(self, name: Any) -> dict[str, Part]:
        """The options of the part of this name that are parts themselves."""
        declared = dict(getattr(find(self.kind, self.registry, name), "parts", {}))
        for option, what in self.options(name).named.items():
            if option not in declared and (group := dataclass_of(what)) is not None:
                declared[option] = group
        takes = self.options(name).named
        optional = {option for option in declared if option in takes and takes[option].default is None}
        return {option: _nested(option, what, self.known, option in optional) for option, what in declared.items()}

    def says(self, name: Any, what: str) -> bool:
        """Whether the class of the part of this name says something of itself; not if there is no such part."""
        return bool(getattr(self._found(name), what, False))

    def is_same(self, name: Any, other: Any) -> bool:
        """Whether two names stand for the same part."""
        return name == other or (self._found(name) is not None and self._found(name) is self._found(other))

    def left(self, values: Mapping[str, Any], name: Any) -> dict[str, Any]:
        """What stays of some options when the part of a name is chosen: all if it is the same, else what all have."""
        if self.is_same(self.name(values), name):
            return dict(values)
        takes = self.options(name).named if self._found(name) is not None else {}
        return {option: value for option, value in values.items() if option in self.kept and option in takes}

    def merged(self, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """Options with some of them changed, in which another name leaves the options of the old part behind."""
        if self.optional and not changes:
            return {}
        name = changes.get("name", self.name(values))
        left = self.left(values, name)
        inside = self.inside(name) if self._found(name) is not None else {}
        both = {option: [options_of_part(one.get(option)) for one in (left, changes)] for option in inside}
        both = {option: pair for option, pair in both.items() if all(isinstance(one, Mapping) for one in pair)}
        return {**left, **changes, **{option: inside[option].merged(*pair) for option, pair in both.items()}}

    def check(self, values: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The options as plain data, if they exist and are of the types that the constructor names.

        What it makes of their values is for the constructor to say, which is not called; of a part that is not known
        here nothing is.

        Raises:
            ValueError: for an option that does not exist, or a value of another type, with its path.
        """
        plain: dict[str, Any] = check_plain(values, path)
        name = self.name(plain)
        if self._found(name) is None:
            return plain
        takes, inside = self.options(name), self.inside(name)
        for option, value in plain.items():
            if option == "name":
                continue
            if option not in takes.named and not takes.more:
                near = near_miss(option, takes.named)
                raise ValueError(f"{path} has no option {option!r}{near}; {name!r} has {', '.join(takes.named)}")
            if option in inside and isinstance(value, Mapping):
                plain[option] = inside[option].check(value, f"{path}.{option}")
            elif option in takes.named and not (value is None and option in self.known):
                check_option(takes.named[option], value, f"{path}.{option}")
        return plain

    def complete(self, values: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The options with all defaults filled in, under a name that any process finds; as plain data.

        Raises:
            ValueError: as for `check` and `xmodal.names.find`.
        """
        values = self.check(values, path)
        if self.optional and not values:
            return {}
        name = self.name(values)
        given = storable(self.kind, self.registry, {**values, "name": name})
        full = {"name": given["name"]}
        for option, what in self.options(name).named.items():
            if option in given or (option not in self.known and _is_plain(what.default)):
                full[option] = given.get(option, what.default)
        full |= given
        for option, part in self.inside(name).items():
            inner = options_of_part(full.get(option))
            if isinstance(inner, Mapping):
                full[option] = part.complete(inner, f"{path}.{option}")
        if self.nameless:
            full.pop("name")
        return _as_lists(full)

    def _found(self, name: Any) -> Callable[..., Any] | None:
        with contextlib.suppress(ValueError):
            return find(self.kind, self.registry, name)
        return None


def options_of_part(value: Any) -> Any:
    """What a configuration says of a part; a bare name stands for that part with its defaults.

    Example:
        >>> from xmodal.training.part import options_of_part
        >>> options_of_part("mean"), options_of_part({"name": "gpo", "temperature": 0.2}), options_of_part(None)
        ({'name': 'mean'}, {'name': 'gpo', 'temperature': 0.2}, None)
    """
    return {"name": value} if isinstance(value, str) else value


def _nested(option: str, what: Registry | Callable[..., Any], known: frozenset[str], optional: bool) -> Part:
    if isinstance(what, Mapping):
        return Part(option, what, known, optional=optional, nested=True)
    return Part(option, {option: what}, known, optional=True, nameless=True, nested=True)


_DIM = frozenset({"dim"})

PARTS_OF_MATCHING: dict[str, Part] = {
    "data.source": Part("image source", SOURCES, frozenset({"path", "image_id"}), optional=True),
    "model.image": Part("image encoder", IMAGE_ENCODERS, frozenset({"input_dim"}), frozenset({"input_dim", "dim"})),
    "model.text": Part("text encoder", TEXT_ENCODERS, frozenset({"dim", "vocabulary_size"}), _DIM),
    "model.head": Part("head", HEADS, _DIM, _DIM),
    "model.captioner": Part(
        "captioner",
        CAPTIONERS,
        frozenset({"dim", "vocabulary_size", "start", "end", "pad"}),
        optional=True,
        needs=("model.head", "has_region_states"),
    ),
    "objective": Part("objective", OBJECTIVES, frozenset({"dim", "steps_per_epoch", "views"})),
    "adversary": Part(
        "adversary",
        ADVERSARIES,
        frozenset({"dim", "pairs"}),
        optional=True,
        own={"learning_rate": options_of(Adversary).named["learning_rate"]},
        usual="addr",
    ),
}
"""The parts of a `TrainConfig` by where they are in it."""

PARTS_OF_RETRIEVAL: dict[str, Part] = {
    "model.backbone": Part("backbone", BACKBONES, frozenset({"input_dim"}), frozenset({"input_dim"})),
    "objective": Part("objective", METRIC_OBJECTIVES, frozenset({"feature_dim", "dim", "classes"})),
}
"""The parts of a `RetrievalConfig` by where they are in it."""


PARTS_BY_TASK = {"matching": PARTS_OF_MATCHING, "retrieval": PARTS_OF_RETRIEVAL}
"""The parts of a configuration by its `task`."""


def at(values: Any, path: str) -> Any:
    """What mappings have at a path; None if nothing.

    >>> at({"model": {"head": {"name": "scan"}}}, "model.head.name")
    'scan'
    """
    for name in path.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def left_over(parts: Mapping[str, Part], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Places of parts that are of no use any more, because the part that they need was replaced by one of another kind.

    >>> before = {"model": {"head": {"name": "vsrn"}, "captioner": {"hidden_dim": 512}}}
    >>> after = {"model": {**before["model"], "head": {"name": "bfan"}}}
    >>> left_over(PARTS_OF_MATCHING, before, after)
    ['model.captioner']
    """
    found = []
    for path, part in parts.items():
        if part.needs is not None and at(after, path):
            place, what = part.needs
            said = [parts[place].says(at(values, f"{place}.name"), what) for values in (before, after)]
            if said == [True, False]:
                found.append(path)
    return found


def _is_plain(value: Any) -> bool:
    """Whether YAML and checkpoints can store a value."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return value is None or type(value) in (bool, int, float, str)


def _as_lists(value: Any) -> Any:
    """A value with lists for tuples, as YAML gives them."""
    if isinstance(value, dict):
        return {key: _as_lists(inner) for key, inner in value.items()}
    return [_as_lists(inner) for inner in value] if isinstance(value, (list, tuple)) else value
