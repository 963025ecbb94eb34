"""Tables of captions as people save them: from a spreadsheet, from Kaggle, or as JSON, under their names of columns."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from xmodal.data.text import parse_json, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

COLUMNS = {
    "image_id": ("image_id", "image", "image_name", "img_id", "img", "filename", "file_name", "image_path"),
    "caption": ("caption", "comment", "sentence", "text", "description", "raw"),
    "caption_id": ("caption_id", "sentid", "sentence_id"),
    "position": ("comment_number", "caption_number"),
    "split": ("split",),
}
"""Our name of a column, and the headings that it goes by; the first that a table has counts."""

DELIMITERS = {",": True, ";": True, "\t": False, "|": False}
"""What separates cells, and whether quotation marks may hold a cell together; else they belong to the caption."""


def rows_of_table(path: Path, encoding: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table: where each is, and its values by our names of columns.

    Args:
        path: a table with a heading, its cells separated by one of `DELIMITERS`; or JSON, one list of objects or an
            object a line.
        encoding: as for `xmodal.data.text.read_text`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is damaged or lacks the image or the caption. The message names it.

    >>> from pathlib import Path
    >>> _ = Path("results.csv").write_text('image_name| comment_number| comment\\n7.jpg| 0| A "dog", running .\\n')
    >>> list(rows_of_table(Path("results.csv")))[0][1]
    {'image_id': '7.jpg', 'caption': 'A "dog", running .', 'position': '0'}
    """
    text = read_text(path, encoding)
    rows = _json_rows(text, path) if text.lstrip()[:1] in ("{", "[") else _delimited_rows(text, path)
    for where, row in rows:
        named = _renamed(row)
        if named.get("caption") is None and "position" in named:
            named |= _without_a_pipe(named["position"])
        missing = [name for name in ("caption", "image_id") if named.get(name) is None]
        if missing:
            known = "; ".join(f"{name} is also called {', '.join(COLUMNS[name][1:])}" for name in missing)
            found = sorted(str(name) for name, value in row.items() if value is not None)
            raise ValueError(f"{where} has no {missing}; it has {found} ({known})")
        yield where, {name: value for name, value in named.items() if value is not None}


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    row = {str(key).strip().lower(): value for key, value in row.items()}
    return {ours: next((row[key] for key in keys if key in row), None) for ours, keys in COLUMNS.items()}


def _without_a_pipe(cell: str | None) -> dict[str, str | None]:
    """The number and the caption of a cell that holds both: a row of Kaggle's Flickr30k lacks the pipe in between."""
    match = re.fullmatch(r"(\d+)\s+(\S.*)", cell or "")
    return {"position": match[1], "caption": match[2]} if match else {"position": cell, "caption": None}


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if text.lstrip().startswith("["):
        rows = enumerate(parse_json(text, str(path)), start=1)
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = ((number, parse_json(line, f"{path}, line {number}")) for number, line in lines if line.strip())
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number} is {row!r:.80}, wanted an object with image_id and caption")
        yield f"{path}, row {number}", row


def _delimited_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # A spreadsheet may say in a first line what separates the cells.
    text = re.sub(r"\A\s*\"?sep=.\"?[\r\n]+", "", text).lstrip()
    delimiter = _delimiter(re.split(r"[\r\n]", text, maxsplit=1)[0])
    try:
        rows = _rows(list(io.StringIO(text, newline="")), delimiter)
        heading = [cell.strip() for cell in next(rows, [])]
        if twice := [name for name, count in Counter(map(str.lower, filter(None, heading))).items() if count > 1]:
            raise ValueError(f"{path} has several columns called {twice[0]!r}; rename or remove all but one")
        # Tables that were put one after the other have a heading each.
        filled = (cells for cells in rows if any(map(str.strip, cells)) and [*map(str.strip, cells)] != heading)
        for number, cells in enumerate(filled, start=1):
            where = f"{path}, row {number}"
            cells = [cell.strip() for cell in _as_many_as(heading, cells, delimiter, where)]
            cells = cells if DELIMITERS[delimiter] else [_unquoted(cell) for cell in cells]
            # A row that is cut off lacks its last cells.
            yield where, {**dict.fromkeys(heading), **dict(zip(heading, cells, strict=False))}
    except csv.Error as error:
        raise ValueError(f"{path}, {error}. Is a quotation mark without its partner?") from error


def _rows(lines: Sequence[str], delimiter: str) -> Iterator[list[str]]:
    """The cells of every row, the heading first.

    A quotation mark behind spaces opens a cell if the row is then no longer than the heading; in a caption with commas
    that nobody quoted, spaces and marks are the caption's.

    Raises:
        csv.Error: a cell is not closed; the message has the line.
    """
    columns, first = 0, 0
    while first < len(lines):
        cells, end = _row(lines, first, delimiter, behind_spaces=not columns)
        if columns and DELIMITERS[delimiter] and any(cell.lstrip(" ").startswith('"') for cell in cells):
            with contextlib.suppress(csv.Error):
                quoted, end_of_quoted = _row(lines, first, delimiter, behind_spaces=True)
                if len(quoted) <= columns:
                    cells, end = quoted, end_of_quoted
        yield cells
        columns, first = columns or len(cells), end


def _row(lines: Sequence[str], first: int, delimiter: str, *, behind_spaces: bool) -> tuple[list[str], int]:
    """The cells of the row that begins at a line, and the line after it."""
    quoted = DELIMITERS[delimiter]
    reader = csv.reader(
        (lines[number] for number in range(first, len(lines))),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=quoted,
        skipinitialspace=behind_spaces,
    )
    try:
        return next(reader, []), first + reader.line_num
    except csv.Error as error:
        raise csv.Error(f"line {first + reader.line_num}: {error}") from error


def _delimiter(heading: str) -> str:
    """What separates the columns of a heading: what gives an image and a caption, else what gives most columns."""

    def columns(delimiter: str) -> tuple[bool, int]:
        cells = next(csv.reader([heading], delimiter=delimiter, skipinitialspace=True), [])
        named = _renamed(dict.fromkeys(cells, True))
        return bool(named["image_id"] and named["caption"]), len(cells)

    return max(DELIMITERS, key=columns)


def _as_many_as(heading: Sequence[str], cells: list[str], delimiter: str, where: str) -> list[str]:
    """The cells of a row; a caption in the last column whose commas were not quoted is one cell again.

    Raises:
        ValueError: there are more cells than columns, and the last column is not the caption.
    """
    extra = len(cells) - len(heading)
    if extra <= 0:
        return cells
    if heading[-1].lower() in COLUMNS["caption"]:
        return [*cells[: len(heading) - 1], delimiter.join(cells[len(heading) - 1 :])]
    if not any(cell.strip() for cell in cells[len(heading) :]):
        return cells[: len(heading)]
    raise ValueError(
        f"{where} has {len(cells)} values for {len(heading)} columns; quote captions that contain {delimiter!r}"
    )


def _unquoted(cell: str) -> str:
    """A cell without the quotation marks that a spreadsheet puts round it; those inside a caption stay."""
    inside = cell[1:-1]
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', ""):
        return inside.replace('""', '"')
    return cell
