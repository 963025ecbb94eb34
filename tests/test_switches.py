"""What a part can do, it says: nobody asks for the type of a head, an encoder or a source outside of its own file."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from torch import nn
from torch.utils.data import Dataset

import xmodal.data
import xmodal.encoders
import xmodal.heads
from xmodal.encoders.extractors import EXTRACTORS
from xmodal.heads import HEADS
from xmodal.model import IMAGE_ENCODERS, TEXT_ENCODERS

ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("xmodal", "preprocess", "scripts") for file in (ROOT / folder).rglob("*.py"))

SUBJECTS = {"head", "heads", "encoder", "tower", "source", "store", "backbone", "extractor", "tokenizer"}
"""Words in the names of variables that hold parts."""

VALUES = {"str", "int", "float", "bool", "dict", "list", "tuple", "Path", "Mapping", "Sequence", "Tensor", "None"}
"""Types of options and data: a name, a path or a dict in place of a part may be told from it."""


def part_classes() -> dict[str, Path]:
    """Heads, encoders, extractors, sources of data and their protocols, and the files that they are defined in."""
    found = {}
    for package in (xmodal.heads, xmodal.encoders, xmodal.data):
        for entry in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(entry.name)
            for name, kind in inspect.getmembers(module, inspect.isclass):
                is_part = (
                    issubclass(kind, nn.Module)
                    or getattr(kind, "_is_protocol", False)
                    or issubclass(kind, Dataset)
                    or hasattr(kind, "batch")
                )
                if kind.__module__ == entry.name and is_part and not issubclass(kind, (tuple, dict, list)):
                    found[name] = Path(inspect.getfile(kind)).relative_to(ROOT)
    return found


PARTS = part_classes()
NAMES = {*HEADS, *IMAGE_ENCODERS, *TEXT_ENCODERS, *EXTRACTORS}


def names_in(node: ast.AST) -> set[str]:
    """The last names of all names in an expression: `Linear` of `nn.Linear`."""
    return {
        getattr(part, "attr", None) or getattr(part, "id", "")
        for part in ast.walk(node)
        if isinstance(part, (ast.Name, ast.Attribute))
    }


def is_part(node: ast.expr) -> bool:
    """Whether an expression is called like a part: `self.text_encoder`, `head`."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return bool(SUBJECTS & set(name.strip("_").split("_")))


def asks_for_type(node: ast.AST, file: Path) -> bool:
    """Whether a piece of code asks what a part is instead of what it can do."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        question, arguments = node.func.id, node.args
        if question in ("isinstance", "issubclass"):
            kinds = names_in(arguments[1])
            return any(PARTS.get(kind, file) != file for kind in kinds) or (
                is_part(arguments[0]) and not kinds <= VALUES
            )
        if question in ("hasattr", "getattr"):
            return is_part(arguments[0]) and isinstance(arguments[1], ast.Constant)
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        types = [side.args[0] for side in sides if isinstance(side, ast.Call) and names_in(side.func) == {"type"}]
        named = [side for side in sides if "'name'" in ast.unparse(side)]
        words = {part.value for side in sides for part in ast.walk(side) if isinstance(part, ast.Constant)}
        return any(is_part(one) for one in types) or bool(named and words & NAMES)
    return False


def questions(file: Path) -> set[tuple[str, str]]:
    """What a file asks about the types of parts that are not its own."""
    place = file.relative_to(ROOT)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {(str(place), ast.unparse(node)) for node in ast.walk(tree) if asks_for_type(node, place)}


def test_parts_are_found():
    assert {"SCAN", "VSRN", "GRUEncoder", "RegionProjection", "RegionStore", "LabelledFeatures"} <= PARTS.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nobody_asks_for_the_type_of_a_part(file):
    if file.relative_to(ROOT) not in PARTS.values():  # a part may ask its own parts
        assert not questions(file)


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(head, SCAN)",
        "issubclass(kind, (str, heads.BFAN))",
        "hasattr(matcher.head, 'reason')",
        "getattr(self.text_encoder, 'tokenizer', None)",
        "type(head) in FAST_PATHS",
        "type(self.source) is type(other)",
        "text['name'] == 'gru'",
        "options.get('name') in ('bert', 'gru')",
        "isinstance(extractor, nn.Module)",
    ],
)
def test_questions_are_seen(code):
    (expression,) = ast.parse(code).body
    assert any(asks_for_type(node, Path("xmodal/new.py")) for node in ast.walk(expression))


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(head.comparison, InnerProduct)",
        "isinstance(extractor, str)",
        "getattr(store, name)",
        "type(head).__name__",
    ],
)
def test_other_questions_are_not(code):
    (expression,) = ast.parse(code).body
    assert not any(asks_for_type(node, Path("xmodal/new.py")) for node in ast.walk(expression))
