"""Make a region store of bottom-up-attention TSV files (Anderson et al., CVPR 2018; also LXMERT's with object classes).

A row is an image; arrays are base64 of little-endian numbers. Two layouts are told apart by their number of columns:

     6: image_id image_w image_h num_boxes boxes features
    10: img_id img_h img_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features

Rows are read one at a time. Rows that are damaged or repeat an image are left out and listed, with file and row number,
in OUTPUT.skipped.txt; then the exit status is 1 unless --skip-bad says that this is all right.

    python -m preprocess.bottom_up_tsv --input trainval.tsv test.tsv --output DIR/train.h5 \\
        --captions DIR/captions.jsonl --split train
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import partial
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from xmodal.entry import run_program

from .precomputed import Record, StoreConfig, convert
from .skipped import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYOUTS = {
    len(columns): columns
    for columns in (
        ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
        (
            *("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
            *("num_boxes", "boxes", "features"),
        ),
    )
}
"""Columns by their number. Attributes have no place in a region store and are dropped."""


@dataclass(frozen=True, kw_only=True)
class Config(StoreConfig):
    """Where to read and what to write."""

    input: tuple[Path, ...]
    """TSV files, one or several; the images go into one store."""


def main(config: Config) -> None:
    """Convert, and say what was left out."""
    num_images, skipped = convert(config, _read_rows(config.input, config.dim))
    report(config.output, num_images, skipped, skip_bad=config.skip_bad)


def _read_rows(paths: tuple[Path, ...], dim: int) -> Iterator[tuple[str, str, Callable[[], Record]]]:
    """Every row of some TSV files: where it is, the image's name, and a function that decodes the rest.

    Raises:
        FileNotFoundError: there is no such file.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no TSV file at {path}")
    size = sum(path.stat().st_size for path in paths)
    with tqdm(total=size, unit="B", unit_scale=True, desc="rows", delay=2) as progress:
        for path in paths:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    columns = line.rstrip(b"\r\n").split(b"\t")
                    name = columns[0].decode("utf-8", errors="backslashreplace")
                    yield f"{path}, row {number}", name, partial(_decode_row, columns, dim)
                    progress.update(len(line))


def _decode_row(columns: list[bytes], dim: int) -> Record:
    """The arrays of a row.

    Raises:
        ValueError: the number of columns, a number or the length of an array is wrong.
    """
    if len(columns) not in LAYOUTS:
        raise ValueError(f"{len(columns)} columns, wanted {' or '.join(map(str, LAYOUTS))}; is the row cut off?")
    row = dict(zip(LAYOUTS[len(columns)], columns, strict=True))
    if not row["image_id"]:
        raise ValueError("the image_id is empty")
    count = _integer(row, "num_boxes")
    classified = "objects_id" in row
    return Record(
        features=_array(row, "features", "<f4", (count, dim)),
        boxes=_array(row, "boxes", "<f4", (count, 4)),
        image_size=(_integer(row, "image_w"), _integer(row, "image_h")),
        class_id=_array(row, "objects_id", "<i8", (count,)) if classified else None,
        confidence=_array(row, "objects_conf", "<f4", (count,)) if classified else None,
    )


def _integer(row: dict[str, bytes], column: str) -> int:
    try:
        number = int(row[column])
    except ValueError:
        raise ValueError(f"{column} is {row[column][:20]!r}, wanted a number") from None
    if number < 1:
        raise ValueError(f"{column} is {number}, wanted at least 1")
    return number


def _array(row: dict[str, bytes], column: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A base64 column as an array of the shape that `num_boxes` promises."""
    try:
        data = base64.b64decode(row[column], validate=True)
    except binascii.Error as error:
        raise ValueError(f"{column} is not base64 ({error}); is the row cut off?") from error
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if len(data) != wanted:
        raise ValueError(
            f"{column} holds {len(data)} bytes, wanted {wanted} for {' x '.join(map(str, shape))} numbers; "
            "is num_boxes right, and --dim?"
        )
    return np.frombuffer(data, dtype).reshape(shape)


if __name__ == "__main__":
    run_program(main)
