"""What an import may load, and which way the arrows between the rooms of the package point."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import xmodal

PACKAGE = Path(__file__).parents[1] / "xmodal"

ORDER = [
    "heads",
    "objectives",
    "encoders",
    "scoring",
    "pretrained",
    "embedder",
    "given",
    "model",
    "export",
    "figures",
    "evaluation",
    "arguments",
    "training",
    "search",
    "entry",
    "prepare",
    "commands",
    "cli",
    "__main__",
    "__init__",
]
"""A room may import the rooms before it, and those beside; heads and objectives nothing but themselves and
most of what is beside."""

BESIDE = ["masks", "cache", "compiled", "numerics", "products", "inference"]
"""Files that all rooms share."""

NAMES = ["spelling", "signatures", "schema", "names"]
"""What a name stands for and what it takes, beside the rooms; each may import those before it."""


def importable_from(room: str) -> set[str]:
    """The rooms that a room may import."""
    if room in ("masks", "cache", "inference"):
        return {room}
    if room in ("compiled", "products"):
        return {room, "cache"}
    if room == "numerics":
        return {room, "masks"}
    if room in ("heads", "objectives"):
        return {room, *BESIDE} - {"inference"}
    if room in NAMES:
        return set(NAMES[: NAMES.index(room) + 1])
    if room == "data":
        return {room, *NAMES}
    return {*ORDER[: ORDER.index(room) + 1], "data", *NAMES, *BESIDE}


def rooms_imported_by(file: Path) -> set[str]:
    """The rooms of xmodal that a file imports, at its top or inside a function."""
    modules = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write it out from xmodal"
            modules += [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "xmodal" else []
            modules += [node.module]
    return {name.split(".")[1] for name in modules if name.startswith("xmodal.")}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_arrows_point_one_way(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    forbidden = rooms_imported_by(file) - importable_from(room)
    assert not forbidden, f"xmodal.{room} may not import {', '.join(sorted(forbidden))}"


IMPORTS = """
import json, sys
import torch
before = set(sys.modules)
import xmodal, xmodal.heads, xmodal.objectives
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture(scope="module")
def fresh_import():
    """The modules that a new interpreter loads when it imports the packages after torch."""
    return json.loads(subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=True).stdout)


def test_nothing_beyond_torch_is_loaded(fresh_import):
    roots = {name.split(".")[0] for name in fresh_import}
    assert roots - set(sys.stdlib_module_names) == {"xmodal"}


def test_nothing_but_heads_and_objectives_is_loaded(fresh_import):
    """What makes an import slow is what it loads; how long that takes depends on the machine and what else it does."""
    rooms = {name.split(".")[1] for name in fresh_import if name.startswith("xmodal.")}
    assert rooms == {"heads", "objectives", "masks", "cache", "compiled", "numerics", "products"}
    files = [file for room in ("heads", "objectives") for file in (PACKAGE / room).rglob("*.py")]
    assert len(fresh_import) <= len(files) + 6, "beside them only xmodal itself and what its rooms share"


def test_names_that_are_loaded_later_complete():
    assert set(xmodal.__all__) <= set(dir(xmodal))
