"""The parts that a configuration names: where they are in it, what they may be, and all of their options.

An option that is itself a part (the backbone behind a projection, the metric loss of an objective) is declared by the
part that has it, in its attribute `parts`: a registry, or one class where there is no choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from xmodal.data.split import SOURCES
from xmodal.encoders.backbone import BACKBONES
from xmodal.heads import HEADS
from xmodal.model import CAPTIONERS, IMAGE_ENCODERS, TEXT_ENCODERS
from xmodal.names import Option, Options, dataclass_of, find, options_of, storable
from xmodal.objectives import METRIC_OBJECTIVES, OBJECTIVES
from xmodal.training.adversary import ADVERSARIES, Adversary
from xmodal.training.config import RetrievalConfig, RunConfig, TrainConfig, flatten, from_dict, to_dict

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

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The options with all defaults filled in, under a name that any process finds; as plain data.

        Raises:
            ValueError: for what is no mapping, and as for `xmodal.names.find`.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{self.kind} must be a mapping with a name and options, got {values!r}")
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
                full[option] = part.complete(inner)
        if self.nameless:
            full.pop("name")
        return _as_lists(full)


def options_of_part(value: Any) -> Any:
    """What a configuration says of a part; a bare name stands for that part with its defaults.

    Example:
        >>> from xmodal.training.parts import options_of_part
        >>> options_of_part("mean"), options_of_part({"name": "gpo", "temperature": 0.2}), options_of_part(None)
        ({'name': 'mean'}, {'name': 'gpo', 'temperature': 0.2}, None)
    """
    return {"name": value} if isinstance(value, str) else value


def _nested(option: str, what: Registry | Callable[..., Any], known: frozenset[str], optional: bool) -> Part:
    if isinstance(what, Mapping):
        return Part(option, what, known, optional=optional, nested=True)
    return Part(option, {option: what}, known, optional=True, nameless=True, nested=True)


_DIM = frozenset({"dim"})

PARTS: dict[type[RunConfig], dict[str, Part]] = {
    TrainConfig: {
        "data.source": Part("image source", SOURCES, frozenset({"path", "image_id"}), optional=True),
        "model.image": Part("image encoder", IMAGE_ENCODERS, frozenset({"input_dim"}), frozenset({"input_dim", "dim"})),
        "model.text": Part("text encoder", TEXT_ENCODERS, frozenset({"dim", "vocabulary_size"}), _DIM),
        "model.head": Part("head", HEADS, _DIM, _DIM),
        "model.captioner": Part(
            "captioner",
            CAPTIONERS,
            frozenset({"dim", "vocabulary_size", "start", "end", "pad"}),
            optional=True,
        ),
        "objective": Part("objective", OBJECTIVES, _DIM),
        "adversary": Part(
            "adversary",
            ADVERSARIES,
            frozenset({"dim", "pairs"}),
            optional=True,
            own={"learning_rate": options_of(Adversary).named["learning_rate"]},
            usual="addr",
        ),
    },
    RetrievalConfig: {
        "model.backbone": Part("backbone", BACKBONES, frozenset({"input_dim"}), frozenset({"input_dim"})),
        "objective": Part("objective", METRIC_OBJECTIVES, frozenset({"feature_dim", "dim", "classes"})),
    },
}
"""The parts of a configuration by where they are in it."""


def completed(config: RunConfig) -> Any:
    """A configuration in which every part has all of its options, under a name that any process finds.

    Raises:
        ValueError: for a name that does not exist, with the nearest one that does.

    Example:
        >>> from xmodal.training.config import ModelConfig, TrainConfig
        >>> from xmodal.training.parts import completed
        >>> completed(TrainConfig(model=ModelConfig(head={"name": "xmodal.heads:BFAN"}))).model.head
        {'name': 'bfan', 'focal': 'prob', 'temperature': 20.0}
    """
    values = to_dict(config)
    for path, part in PARTS[type(config)].items():
        *outer, last = path.split(".")
        holder = reduce(dict.__getitem__, outer, values)
        holder[last] = part.complete(holder[last])
    return from_dict(type(config), values)


def changes(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """What differs between two configurations of one kind, by the path of the option: the old value and the new.

    A default that is written out is no difference, nor is a size that one of the two leaves to the data.

    Example:
        >>> from xmodal.training.config import ModelConfig, TrainConfig
        >>> from xmodal.training.parts import changes
        >>> old = TrainConfig(model=ModelConfig(head={"name": "vsrn", "dim": 1024}))
        >>> changes(old, TrainConfig(epochs=3, model=ModelConfig(head={"name": "vsrn", "norm": "l2"})))
        {'epochs': (30, 3)}
    """
    before, after = (flatten(to_dict(completed(config))) for config in (old, new))
    sizes = {f"{path}.{size}" for path, part in PARTS[type(new)].items() for size in part.known}
    pairs = {path: (before.get(path), after.get(path)) for path in {**before, **after}}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1] and not (path in sizes and None in pair)}


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
