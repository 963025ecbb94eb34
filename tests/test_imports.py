"""What an import may load, and which way the arrows between the rooms of the package point."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "xmodal"

ORDER = [
    "heads",
    "objectives",
    "encoders",
    "scoring",
    "pretrained",
    "embedder",
    "model",
    "evaluation",
    "training",
    "search",
    "entry",
    "prepare",
    "cli",
    "__main__",
    "__init__",
]
"""A room may import the rooms before it, and those beside; heads and objectives nothing but themselves and numerics.

The ranks of `xmodal.evaluation.ranks` are counted without anything else of the package: they stand beside as well.
"""


def importable_from(room: str) -> set[str]:
    """The rooms that a room may import."""
    if room in ("numerics", "inference"):
        return {room}
    if room in ("heads", "objectives"):
        return {room, "numerics"}
    if room in ("data", "names"):
        return {room, "names"}
    return {*ORDER[: ORDER.index(room) + 1], "data", "names", "numerics", "inference", "ranks"}


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
    modules = [name.replace("evaluation.ranks", "ranks") for name in modules]
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
    """What a new interpreter prints when it imports torch and then the packages, with the time of every import."""
    command = [sys.executable, "-X", "importtime", "-c", IMPORTS]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_nothing_beyond_torch_is_loaded(fresh_import):
    roots = {name.split(".")[0] for name in json.loads(fresh_import.stdout)}
    assert roots - set(sys.stdlib_module_names) == {"xmodal"}


def test_importing_takes_less_than_a_fifth_of_a_second_beyond_torch(fresh_import):
    """Counted as the time spent in xmodal's own modules, which other load on the machine hardly disturbs."""
    rows = [line.removeprefix("import time:").split("|") for line in fresh_import.stderr.splitlines()]
    microseconds = sum(int(row[0]) for row in rows if len(row) == 3 and row[2].strip().startswith("xmodal"))
    assert 0 < microseconds < 200_000
