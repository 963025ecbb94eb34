"""The recipes that come with xmodal, and where they are: inside the package when installed, else in scripts/recipes."""

from __future__ import annotations

import re
from pathlib import Path

from xmodal.names import near_miss


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
        ValueError: a folder is there.

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
    if path.is_dir():
        raise ValueError(f"recipe {path} is a folder, wanted a YAML file")
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
