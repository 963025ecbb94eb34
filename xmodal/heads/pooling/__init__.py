"""Poolers: what makes one vector of the items of a set, by name, for either side of any head that pools."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from xmodal.heads.pooling.base import Max, Mean, Pooler, max_pool, mean_pool
from xmodal.heads.pooling.esa import ESA, esa_pool
from xmodal.heads.pooling.gpo import GPO, gpo_pool
from xmodal.heads.pooling.self_attention import SelfAttention, self_attention_pool

POOLERS: dict[str, type[Pooler]] = {
    "mean": Mean,
    "max": Max,
    "gpo": GPO,
    "esa": ESA,
    "self_attention": SelfAttention,
}
"""Poolers by the name that a configuration uses."""

__all__ = [
    "ESA",
    "GPO",
    "POOLERS",
    "Max",
    "Mean",
    "Pooler",
    "SelfAttention",
    "esa_pool",
    "gpo_pool",
    "make_pooler",
    "max_pool",
    "mean_pool",
    "self_attention_pool",
]


def make_pooler(pooling: str | Mapping[str, Any], dim: int | None = None) -> Pooler:
    """The pooler that a head's option asks for, by its name alone or as `{"name": ..., option: value, ...}`.

    Args:
        pooling: a name of `POOLERS`, or a class derived from `Pooler` in its place, with options or without.
        dim: dim of the items, for poolers that need it.

    Raises:
        ValueError: for a name or an option that does not exist, with those that do, or a `dim` that is missing.

    Example:
        >>> from xmodal.heads.pooling import make_pooler
        >>> make_pooler("max"), make_pooler({"name": "gpo", "temperature": 0.2})
        (Max(), GPO(temperature=0.2))
        >>> make_pooler("sum")
        Traceback (most recent call last):
        ...
        ValueError: pooling must be one of mean, max, gpo, esa, self_attention; got 'sum'
    """
    options: dict[str, Any] = dict(pooling) if isinstance(pooling, Mapping) else {"name": pooling}
    name = options.pop("name", None)
    kind: Any = name if inspect.isclass(name) else POOLERS.get(str(name))
    if kind is None:
        raise ValueError(f"pooling must be one of {', '.join(POOLERS)}; got {name!r}")
    takes = [
        p.name for p in inspect.signature(kind).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    for option in options:
        if option not in takes:
            raise ValueError(f"pooling {name!r} has no option {option!r}; known: {', '.join(takes) or 'none'}")
    if "dim" in takes:
        stated = options.setdefault("dim", dim)
        if stated is None:
            raise ValueError(f"pooling {name!r} needs the dim of the items: give the head dim=...")
        if dim not in (None, stated):
            raise ValueError(f"pooling {name!r}: dim is stated as {stated}, but it is {dim} here; leave it out")
    return kind(**options)
