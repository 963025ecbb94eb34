"""Recipes: where those are that come with xmodal (inside the package when installed, else in scripts/recipes), and what
the file of a recipe says on top of its base.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal.spelling import near_miss
from xmodal.training.part import PARTS_BY_TASK, Part, at, left_over
from xmodal.training.read_yaml import read_yaml_file

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_CHAIN = 16
"""Recipes that may be each other's bases."""


def recipe_folder() -> Path:
    """Where the recipes are.

    >>> (recipe_folder() / "scan_t2i_lse_f30k.yaml").is_file()
    True
    """
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "scripts" / "recipes"


def known_recipes() -> dict[str, Path]:
    """The recipes that come with xmodal by name, which is the path in their folder without ending; ablations last.

    >>> known = known_recipes()
    >>> known["scan_t2i_lse_f30k"].name, list(known)[-1].split("/")[0]
    ('scan_t2i_lse_f30k.yaml', 'ablations')
    """
    paths = sorted(recipe_folder().rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(recipe_folder()).with_suffix("").as_posix(): path for path in paths}


def find_recipe(name: str | Path, beside: str | Path = "") -> Path:
    """The file of a recipe that is given by its path or, where there is no such file, by its name.

    Args:
        name: a path, or a name of `known_recipes`.
        beside: the folder that a path starts at.

    Raises:
        FileNotFoundError: there is neither; the nearest name is told.
        ValueError: what is there is no file.

    >>> find_recipe("scan_t2i_lse_f30k").name
    'scan_t2i_lse_f30k.yaml'
    >>> _ = Path("scan_t2i_lse_f30k").write_text("epochs: 5")
    >>> find_recipe("scan_t2i_lse_f30k")
    PosixPath('scan_t2i_lse_f30k')
    """
    path = Path(beside) / name
    if path.is_file():
        return path
    known, own = known_recipes(), Path(name).as_posix().removesuffix(".yaml")
    if own in known:
        return known[own]
    if path.exists():
        what = "a folder" if path.is_dir() else "no regular file"
        raise ValueError(f"recipe {path} is {what}, wanted a YAML file")
    there_is = "`xmodal recipes` lists what there is" if Path(name).suffix else f"known: {', '.join(known)}"
    raise FileNotFoundError(f"recipe {path} does not exist, nor is it known by name{near_miss(own, known)}; {there_is}")


def describe_recipe(path: Path) -> str:
    """What a recipe trains: the first sentence of the comment that it begins with.

    >>> describe_recipe(find_recipe("scan_t2i_lse_f30k"))
    'SCAN t-i LSE on Flickr30k with the published settings (Lee et al., ECCV 2018).'
    """
    comment = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
    text = " ".join(line.removeprefix("#").strip() for line in (comment[0] if comment else "").splitlines())
    sentence = re.match(r".*?\.(?=\s|$)", text)
    return sentence[0] if sentence else text


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe on top of those of its base; a part that it replaces takes its options along.

    So does a part that the recipe does not mention, if it is of no use to one that the recipe chooses: VSRN's captioner
    when the head becomes another.

    Raises:
        FileNotFoundError: its base is not there.
        ValueError: it is no mapping in YAML, or has too many bases.

    >>> _ = Path("mine.yaml").write_text("base: vsrn_f30k\\nmodel: {head: {name: bfan}}\\nepochs: 5")
    >>> values = read_recipe(Path("mine.yaml"))
    >>> values["model"]["head"], values["model"]["captioner"], values["batch_size"], values["epochs"]
    ({'name': 'bfan'}, {}, 128, 5)
    """
    *chain, merged = _with_bases(path)
    task = next((values["task"] for values in (*chain, merged) if "task" in values), "matching")
    parts = PARTS_BY_TASK.get(task if isinstance(task, str) else "", {})
    for values in reversed(chain):
        merged = _on_top(merged, values, parts)
    return merged


def _with_bases(path: Path) -> list[dict[str, Any]]:
    """What a recipe, its base, the base of that and so on say by themselves."""
    chain, resolved = [], {path.resolve(): path}
    while True:
        values = _read_file(path)
        base = values.pop("base", None)
        chain.append(values)
        if base is None:
            return chain
        path = _find_base(base, path)
        if path.resolve() in resolved:
            raise ValueError(f"recipe {resolved[path.resolve()]} is a base of itself")
        resolved[path.resolve()] = path
        if len(resolved) > LONGEST_CHAIN:
            first = next(iter(resolved.values()))
            raise ValueError(f"recipe {first} has more than {LONGEST_CHAIN - 1} bases, one the other's; join some")


def _find_base(base: Any, path: Path) -> Path:
    if not isinstance(base, str) or not base:
        raise ValueError(f"recipe {path}: base is {base!r}; wanted the path or the name of a recipe")
    try:
        return find_recipe(base, beside=path.parent)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"recipe {path}, base: {error}") from error


def _read_file(path: Path) -> dict[str, Any]:
    """What the file of a recipe says by itself."""
    values = read_yaml_file(path, "recipe")
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} must be a mapping of options, got {str(values)[:80]!r}")
    _check_names(values, path)
    return values


def _check_names(values: dict[Any, Any], path: Path) -> None:
    """Refuse option names that YAML 1.1 does not take for text."""
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(
                f"recipe {path}: the option name {name!r} is no text; YAML takes a bare on, off, yes or no for a truth "
                'value, so put it in quotes: "on"'
            )
        if isinstance(value, dict):
            _check_names(value, path)


def _on_top(base: dict[str, Any], changes: dict[str, Any], parts: Mapping[str, Part]) -> dict[str, Any]:
    """The values of a base with the changes of a recipe."""
    merged = _merged(base, changes, parts)
    for path in left_over(parts, base, merged):
        if at(changes, path) is None:
            outer, _, last = path.rpartition(".")
            merged = _merged(merged, {outer: {last: {}}}, parts)
    return merged


def _merged(
    base: dict[str, Any], changes: dict[str, Any], parts: Mapping[str, Part], above: str = ""
) -> dict[str, Any]:
    """A mapping with some values changed; mappings inside it are merged alike, parts as they say."""
    merged = {**base, **changes}
    for key in base.keys() & changes.keys():
        if isinstance(base[key], dict) and isinstance(changes[key], dict):
            part = parts.get(f"{above}{key}")
            if part is None:
                merged[key] = _merged(base[key], changes[key], parts, f"{above}{key}.")
            else:
                merged[key] = part.merged(base[key], changes[key])
    return merged
