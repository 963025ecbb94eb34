"""The page of what is read names tests that are there, and every layout."""

from __future__ import annotations

import re
from pathlib import Path

from preprocess.layouts import layout_names
from xmodal.data.images import HEIC_SUFFIXES, IMAGE_SUFFIXES

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


def rows_of_tables() -> list[tuple[str, list[str]]]:
    """The section and the cells of every row below a heading."""
    rows, section = [], ""
    for before, line in zip(["", *PAGE.splitlines()], PAGE.splitlines(), strict=False):
        section = line if line.startswith("## ") else section
        if line.startswith("|") and before.startswith("|") and not line.startswith("|---"):
            rows.append((section, [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]))
    return rows


def test_every_row_names_its_test():
    rows = rows_of_tables()
    assert len(rows) > 60
    for section, cells in rows:
        assert re.search(r"`[\w/]*(::test_|test_\w+\.py)", cells[-1]), (section, cells)


def test_every_kind_of_file_has_its_section():
    sections = {section.removeprefix("## ") for section, _ in rows_of_tables()}
    assert sections == {
        "Region features",
        "Captions",
        "Vocabularies and checkpoints",
        "Photographs",
        "Labelled data sets",
    }


def test_every_extension_of_a_photograph_is_on_the_page():
    told = " ".join(PAGE[PAGE.index("## Photographs") :].lower().split())
    assert {suffix for suffix in IMAGE_SUFFIXES | HEIC_SUFFIXES if suffix.lstrip(".") not in told} == set()


def test_every_layout_is_on_the_page():
    assert {name for name in layout_names() if f"| `{name}` |" not in PAGE} == set()
