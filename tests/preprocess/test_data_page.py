"""The page of what is read names tests that are there, and every layout."""

from __future__ import annotations

import re
from pathlib import Path

from preprocess.layouts import layout_names

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_test_on_the_page_is_there():
    """A name without a file is one of the file that was named last, or else of a file that the text above names."""
    defined = {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
    }
    named = set(re.findall(r"::(test_\w+)", PAGE))
    assert len(named) > 40
    assert named <= defined
    for path, name in re.findall(r"`([\w/]+\.py)(?:::(test_\w+))?", PAGE):
        place = TESTS / path if path.startswith(("data/", "preprocess/test", "test_")) else TESTS.parent / path
        assert place.exists(), path
        assert not name or f"def {name}(" in place.read_text("utf-8"), name


def test_every_layout_is_on_the_page():
    assert {name for name in layout_names() if f"| `{name}` |" not in PAGE} == set()
