"""`xmodal recipes`."""

from __future__ import annotations

from dataclasses import dataclass

from xmodal.training.config import load_recipe
from xmodal.training.recipes import describe_recipe, known_recipes


@dataclass(frozen=True)
class Recipes:
    """List the recipes that `xmodal train --recipe NAME` takes, and what each trains."""


def recipes(_config: Recipes) -> None:
    """Print names and first sentences, by what is trained; ablations last."""
    groups: dict[str, list[str]] = {}
    known = known_recipes()
    width = max(map(len, known))
    for name, path in known.items():
        group = name.rpartition("/")[0] or load_recipe(path).task
        groups.setdefault(group, []).append(f"  {name:{width}}  {describe_recipe(path)}")
    for group, lines in groups.items():
        print(f"{group}:", *lines, sep="\n")
