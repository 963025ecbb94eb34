"""Configurations whose parts have all of their options, and what differs between two of them."""

from __future__ import annotations

from functools import reduce
from typing import Any

from xmodal.training.config import RetrievalConfig, RunConfig, TrainConfig, flatten, from_dict, to_dict
from xmodal.training.part import PARTS_OF_MATCHING, PARTS_OF_RETRIEVAL
from xmodal.training.part import Part as Part

PARTS: dict[type[RunConfig], dict[str, Part]] = {TrainConfig: PARTS_OF_MATCHING, RetrievalConfig: PARTS_OF_RETRIEVAL}
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
        holder[last] = part.complete(holder[last], path)
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
