"""Make a region store of bottom-up-attention TSV files (Anderson et al., CVPR 2018) and of those that came after them.

A row is an image; arrays are base64 of little-endian numbers. Layouts are told apart by their number of columns, or by
a heading:

     6: image_id image_w image_h num_boxes boxes features
     7: image_id image_w image_h num_boxes boxes features cls_prob (ViLBERT)
     8: image_id image_h image_w num_boxes boxes features cls_prob classes (VL-BERT), or
        image_id image_w image_h num_boxes boxes features classes attributes
    10: img_id img_h img_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features (LXMERT)
     2: image_id and JSON, {"num_boxes", "features"} or {"objects": [{"rect", "conf", "feature"}, ...]} (VinVL)

Rows are read one at a time. All-zero rows at the end of an image are padding. Rows that are damaged or repeat an image
are left out and listed, with file and row number, in OUTPUT.skipped.txt; then the exit status is 1 unless --skip-bad
says that this is all right.

    python -m preprocess.bottom_up_tsv --input trainval.tsv test.tsv --output DIR/train.h5 \\
        --captions DIR/captions.jsonl --split train
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import partial
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from xmodal.data.text import parse_json
from xmodal.entry import run_program

from .layouts import HEADINGS, TSV_COLUMNS
from .precomputed import Record, StoreConfig, convert, decoded, most_probable, record_of
from .skipped import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True, kw_only=True)
class Config(StoreConfig):
    """Where to read and what to write."""

    input: tuple[Path, ...]
    """TSV files, one or several; the images go into one store."""


def main(config: Config) -> None:
    """Convert, and say what was left out."""
    num_images, skipped = convert(config, read_rows(config.input, config.dim))
    report(config.output, num_images, skipped, skip_bad=config.skip_bad)


def read_rows(
    paths: Sequence[Path], dim: int | None = None, layout: str | None = None
) -> Iterator[tuple[str, str, Callable[[], Record]]]:
    """Every row of some TSV files: where it is, the image's name, and a function that decodes the rest.

    Args:
        paths: the files; a first row of names of columns is a heading, and says which they are.
        dim: length of a feature vector, if it is known.
        layout: a name in `TSV_COLUMNS`; without, each row's number of columns tells.

    Raises:
        FileNotFoundError: there is no such file.

    >>> import base64
    >>> from pathlib import Path
    >>> _ = Path("a.tsv").write_text(f"7\\t9\\t9\\t1\\t{'A' * 22}==\\t{base64.b64encode(b'1234').decode()}\\n")
    >>> [(name, read().features.shape) for _, name, read in read_rows([Path("a.tsv")])]
    [('7', (1, 1))]
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no TSV file at {path}")
    size = sum(path.stat().st_size for path in paths)
    with tqdm(total=size, unit="B", unit_scale=True, desc="rows", delay=2) as progress:
        for path in paths:
            heading = None if layout is None else TSV_COLUMNS[layout]
            empty: list[int] = []
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    progress.update(len(line))
                    if not line.strip():
                        empty.append(number)
                        continue
                    # Empty lines are damage, but not those at the end of a file.
                    while empty:
                        yield f"{path}, row {empty.pop(0)}", "", partial(_decode_row, [b""], dim, heading)
                    cells = line.rstrip(b"\r\n").split(b"\t")
                    if number == 1:
                        cells[0] = cells[0].removeprefix(b"\xef\xbb\xbf")
                        if names := _heading(cells):
                            heading = names
                            continue
                    name = cells[0].decode("utf-8", errors="backslashreplace")
                    if heading is not None and "image_id" in heading[: len(cells)]:
                        name = cells[heading.index("image_id")].decode("utf-8", errors="backslashreplace")
                    yield f"{path}, row {number}", name, partial(_decode_row, cells, dim, heading)


def _heading(cells: Sequence[bytes]) -> tuple[str, ...] | None:
    """The names of columns in a file's first row, if that is what it holds."""
    names = [cell.decode("utf-8", errors="replace").strip().lower() for cell in cells]
    known = {*(name for columns in TSV_COLUMNS.values() for name in columns), *HEADINGS}
    is_heading = len(names) > 1 and known.issuperset(names)
    return tuple(HEADINGS.get(name, name) for name in names) if is_heading else None


def _decode_row(cells: Sequence[bytes], dim: int | None, heading: tuple[str, ...] | None) -> Record:
    """The arrays of a row.

    Raises:
        ValueError: the number of columns, a number or the length of an array is wrong.
    """
    fitting = [heading] if heading else [columns for columns in TSV_COLUMNS.values() if len(columns) == len(cells)]
    if not fitting or len(fitting[0]) != len(cells):
        known = sorted({len(columns) for columns in ([heading] if heading else TSV_COLUMNS.values())})
        wanted = " or ".join(filter(None, [", ".join(map(str, known[:-1])), str(known[-1])]))
        raise ValueError(f"{len(cells)} columns, wanted {wanted}; is the row cut off?")
    if not cells[fitting[0].index("image_id") if "image_id" in fitting[0] else 0]:
        raise ValueError("the image_id is empty")
    for columns in fitting[:-1]:
        # Of two layouts with as many columns, the one whose column of probabilities has more than a class a region,
        # which takes 8 bytes at most; a box takes 16.
        row = dict(zip(columns, cells, strict=True))
        if "cls_prob" in row and 4 * len(row["cls_prob"]) > 3 * len(row["boxes"]):
            return _decode(row, dim)
    return _decode(dict(zip(fitting[-1], cells, strict=True)), dim)


def _decode(row: dict[str, bytes], dim: int | None) -> Record:
    """The arrays of a row whose columns have names."""
    if "json" in row:
        return _decode_json(row["json"], dim)
    missing = {"num_boxes", "features"} - row.keys()
    if missing:
        raise ValueError(f"the heading lacks {sorted(missing)}")
    count = _integer(row, "num_boxes")
    class_id, confidence = None, None
    if "objects_id" in row:
        class_id = _array(row, "objects_id", "<i8", (count,))
        confidence = _array(row, "objects_conf", "<f4", (count,))
    elif "cls_prob" in row:
        class_id, confidence = most_probable(_array(row, "cls_prob", "<f4", (count, None)))
    return Record(
        features=_array(row, "features", "<f4", (count, dim)),
        boxes=_array(row, "boxes", "<f4", (count, 4)) if "boxes" in row else None,
        image_size=(_integer(row, "image_w"), _integer(row, "image_h"))
        if {"image_w", "image_h"} <= row.keys()
        else None,
        class_id=class_id,
        confidence=confidence,
    )


def _decode_json(text: bytes, dim: int | None) -> Record:
    """VinVL's second column.

    Raises:
        ValueError: it is no JSON, or has neither features nor objects with features.
    """
    values = parse_json(text.decode("utf-8", errors="replace"), "the second column")
    if isinstance(values, dict) and "features" in values:
        return record_of(values, dim)
    if not isinstance(values, dict) or not isinstance(values.get("objects"), list) or not values["objects"]:
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"the second column has {found}, wanted num_boxes and features, or objects")
    try:
        features = [decoded(region["feature"], "feature") for region in values["objects"]]
        joined: dict[str, Any] = {
            **{key: value for key, value in values.items() if key.startswith("image_")},
            "features": np.stack(features),
            "boxes": [region["rect"] for region in values["objects"]],
        }
        confidence = [float(region["conf"]) for region in values["objects"] if "conf" in region]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"an object lacks its rect or feature, or has another kind of it: {error!r}") from error
    record = record_of(joined, dim)
    return record._replace(confidence=np.array(confidence)) if len(confidence) == len(features) else record


def _integer(row: dict[str, bytes], column: str) -> int:
    try:
        number = int(row[column])
    except ValueError:
        raise ValueError(f"{column} is {row[column][:20]!r}, wanted a number") from None
    if number < 1:
        raise ValueError(f"{column} is {number}, wanted at least 1")
    return number


def _array(row: dict[str, bytes], column: str, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """A base64 column as an array of the shape that `num_boxes` promises; a length that is None is read off it."""
    try:
        data = base64.b64decode(row[column], validate=True)
    except binascii.Error as error:
        raise ValueError(f"{column} is not base64 ({error}); is the row cut off?") from error
    size = np.dtype(dtype).itemsize
    if shape[-1] is None:
        shape = (*shape[:-1], max(1, len(data) // (size * (shape[0] or 1))))
    wanted = int(np.prod(shape)) * size  # type: ignore[arg-type]
    if len(data) != wanted:
        raise ValueError(
            f"{column} holds {len(data)} bytes, wanted {wanted} for {' x '.join(map(str, shape))} numbers; "
            "is num_boxes right, and --dim?"
        )
    return np.frombuffer(data, dtype).reshape(shape)


if __name__ == "__main__":
    run_program(main)
