"""Functions are short enough to be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("xmodal", "preprocess", "scripts")
LONGEST = 40
"""Lines of a function, from below its signature and docstring to its end."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_function_is_long(folder):
    long = []
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                lines = int(node.end_lineno or 0) - body[0].lineno + 1
                if lines > LONGEST:
                    long.append(f"{file.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)
