"""Pages of results: prose in a Markdown file beside the program, figures filled in by it."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template


def fill_page(template: str | Path, **values: object) -> str:
    """The text of a page; sections (`## `) of which nothing but the heading is left are left out.

    Args:
        template: a Markdown file with `$name` or `${name}` where a value belongs, and `$$` for a dollar.
        **values: a value for every name in the file.

    Raises:
        FileNotFoundError: the template is not there.
        KeyError: it asks for a value that is not given.

    >>> sections = ["# Results", "$table", "## Pictures", "$pictures", "## Again", "make $it"]
    >>> _ = Path("page.md").write_text("\\n\\n".join(sections))
    >>> print(fill_page("page.md", table="| a |", pictures="", it="demo"))
    # Results
    <BLANKLINE>
    | a |
    <BLANKLINE>
    ## Again
    <BLANKLINE>
    make demo
    <BLANKLINE>
    """
    sections = re.split(r"^(?=## )", Path(template).read_text(encoding="utf-8"), flags=re.MULTILINE)
    try:
        filled = [Template(section).substitute(values) for section in sections]
    except KeyError as error:
        raise KeyError(f"{template} asks for ${error.args[0]}; the values given are {sorted(values)}") from None
    kept = [section for section in filled if not section.startswith("## ") or "\n" in section.strip()]
    return "".join(kept).rstrip() + "\n"
