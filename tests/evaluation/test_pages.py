"""Pages of results have the prose of their file and the figures of the program."""

from __future__ import annotations

import pytest

from xmodal.evaluation.pages import fill_page


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(
        "# $title\n\nIt costs $$5.\n\n## Table\n\n${table}s\n\n## Pictures\n\n$pictures\n", encoding="utf-8"
    )
    return path


def test_values_are_filled_in_to_the_letter(template):
    text = fill_page(template, title="ΔR@1", table="| $x | {y} |\n## not a heading of the page", pictures="![a](a.png)")
    assert text == (
        "# ΔR@1\n\nIt costs $5.\n\n## Table\n\n| $x | {y} |\n## not a heading of the pages\n\n"
        "## Pictures\n\n![a](a.png)\n"
    )


def test_an_empty_section_is_left_out(template):
    assert fill_page(template, title="T", table="", pictures="") == "# T\n\nIt costs $5.\n\n## Table\n\ns\n"


def test_a_value_that_is_missing_is_named(template):
    with pytest.raises(KeyError, match=r"page\.md asks for \$pictures; the values given are \['table', 'title'\]"):
        fill_page(template, title="T", table="")
    with pytest.raises(FileNotFoundError, match=r"none\.md"):
        fill_page(template.with_name("none.md"))
