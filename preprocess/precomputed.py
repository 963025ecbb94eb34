"""From records of precomputed features to a region store: what the converters share."""

from __future__ import annotations

import base64
import binascii
import collections
import contextlib
from dataclasses import dataclass, fields
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from xmodal.data.atomic import locked, refuse_inputs
from xmodal.data.image_folder import coco_number

from .image_ids import image_stem, read_image_names
from .layouts import KEYS
from .parts import PartFiles, folder_of_parts, refuse_made, remove_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping

    Source = tuple[str, str, Callable[[], "Record"]]

RECORDS_A_PART = 2000
"""Images that a kill costs at the most: large sets must not have more parts than a process may have open files."""

HARMLESS = ("skip_bad", "overwrite")
"""Options that do not decide about the contents of a store."""

USUAL_DIM = 2048
"""Length of a bottom-up feature: an array that is that high, and otherwise wide, is transposed."""


class Record(NamedTuple):
    """One image; boxes are x1 y1 x2 y2 in its pixels, or if `relative` in shares of its width and height."""

    features: np.ndarray
    boxes: np.ndarray | None = None
    image_size: tuple[int, int] | None = None
    class_id: np.ndarray | None = None
    confidence: np.ndarray | None = None
    relative: bool = False


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What every converter writes."""

    output: Path
    """The region store to write (HDF5)."""
    captions: Path | None = None
    """Take only the images named here: a captions file, or Karpathy's or COCO's JSON."""
    split: str | None = None
    """With --captions: take only the images of this split."""
    coco_ids: bool = False
    """Name the image of COCO_val2014_000000391895 by its COCO id, 391895, as Karpathy's captions do."""
    dim: int | None = None
    """Length of a feature vector; by default that of the first image."""
    max_regions: int | None = None
    """The most regions an image has; adaptive bottom-up features have up to 100. By default 36, or as many as the first
    image has."""
    dtype: Literal["float16", "float32"] = "float32"
    """How features are stored; float16 halves the file."""
    extractor: str = "bottom-up attention"
    """What made the features."""
    skip_bad: bool = False
    """Count it as success when damaged or repeated records were left out."""
    overwrite: bool = False
    """Replace the output if it exists."""

    def wanted(self) -> dict[str, None] | None:
        """The images to take, in order; None for all.

        Raises:
            ValueError: --split without --captions, or the captions name no image of the split.
        """
        if self.captions is not None:
            return dict.fromkeys(read_image_names(self.captions, self.split))
        if self.split is not None:
            raise ValueError(f"--split {self.split} needs --captions: features by themselves belong to no split")
        return None

    def image_id(self, name: str) -> str:
        """What the store calls an image."""
        return coco_number(image_stem(name)) if self.coco_ids else image_stem(name)

    def like(self, first: Record) -> dict[str, Any]:
        """What the first good image decides about the store; all others must fit."""
        writer = {
            "dim": self.dim or first.features.shape[1],
            "max_regions": self.max_regions or max(36, len(first.features)),
            "dtype": self.dtype,
            "extractor": self.extractor,
            "box_convention": "xyxy relative" if first.relative else "xyxy pixels",
        }
        return {"writer": writer, "columns": _columns(first)}

    def settings(self) -> dict[str, Any]:
        """What decides about the contents, and what tells changed inputs from unchanged ones."""
        paths = self._paths()
        plain = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in {*paths, "output", *HARMLESS}
        }
        return {**plain, **{name: stamps(value) for name, value in paths.items()}}

    def inputs(self) -> list[Path]:
        """Every file that is read."""
        return files_of(path for paths in self._paths().values() for path in paths)

    def _paths(self) -> dict[str, tuple[Path, ...]]:
        """The options that name what is read, and what they name."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "output"}
        return {
            name: (value,) if isinstance(value, Path) else value
            for name, value in values.items()
            if isinstance(value, (Path, tuple))
        }


def files_of(paths: Iterable[Path]) -> list[Path]:
    """Files, and the arrays and databases in folders.

    >>> Path("7.npy").touch()
    >>> [path.name for path in files_of([Path("."), Path("a.tsv")])]
    ['7.npy', 'a.tsv']
    """
    files = []
    for path in paths:
        files += sorted(path.rglob("*.np[yz]")) or sorted(path.glob("*.mdb")) if path.is_dir() else [path]
    return files


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Names, sizes and times of files, and of the arrays and databases in folders.

    >>> Path("7.npy").touch()
    >>> [(name, size) for name, size, _ in stamps([Path(".")])]
    [('7.npy', 0)]
    """
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files_of(paths) if file.exists()]


def num_real(features: np.ndarray) -> int:
    """How many rows an image has before the all-zero rows at its end, which pad it to the length of others.

    Zero rows before the last real one stay.

    >>> num_real(np.array([[1, 2], [0, 0], [3, 4], [0, 0], [0, 0]]))
    3
    """
    rows = np.flatnonzero(features.any(axis=1))
    return int(rows[-1]) + 1 if len(rows) else 0


def without_padding(record: Record) -> Record:
    """A record without the all-zero rows at its end, and what belongs to them.

    Raises:
        ValueError: every row is zero, or boxes and the like are neither as many as all rows nor as the real ones.

    >>> padded = Record(np.array([[1.0, 2.0], [0.0, 0.0]]), boxes=np.array([[0, 0, 5, 5], [0, 0, 0, 0]]))
    >>> without_padding(padded)[:2]
    (array([[1., 2.]]), array([[0, 0, 5, 5]]))
    """
    if record.features.ndim != 2:
        raise ValueError(f"features have shape {record.features.shape}, wanted (region, dim)")
    count = num_real(record.features)
    if not count:
        raise ValueError(f"all {len(record.features)} regions are zeros, so the image has no features")
    columns = {"boxes": record.boxes, "class_id": record.class_id, "confidence": record.confidence}
    for name, column in columns.items():
        if column is None:
            continue
        # Boxes, too, may be padded, to a length of their own.
        is_padded = len(column) >= count and not column[count:].any()
        if len(column) != len(record.features) and not is_padded:
            raise ValueError(f"the numbers of regions differ: {{{name!r}: {len(column)}, 'features': {count}}}")
        columns[name] = column[:count]
    return record._replace(features=record.features[:count], **columns)


def convert(config: StoreConfig, records: Iterable[Source]) -> tuple[int, dict[str, str]]:
    """Write the store, record by record; damaged and repeated records are left out, and so are rows that only pad.

    Whoever is killed goes on where it was by the same call: what was read is kept in parts, see `preprocess.parts`.

    Args:
        config: what to write.
        records: where a record is (file and row), its image's name (empty if it cannot be told), and a function that
            reads it and raises ValueError if it is damaged. It is called only for images that are wanted.

    Returns:
        How many images were written; and of what was left out, where it was and why.

    Raises:
        FileExistsError: the output exists and may not be replaced.
        BlockingIOError: another process is writing it.
        ValueError: no record is good, parts of other inputs or options are there, or the output is an input.

    >>> import numpy as np
    >>> records = [("row 1", "7", lambda: Record(np.ones((2, 3)))), ("row 2", "7", lambda: Record(np.ones((2, 3))))]
    >>> convert(StoreConfig(output=Path("train.h5"), dim=3), records)
    (1, {'row 2': "image '7' came before, in row 1"})
    """
    refuse_made(config.output, overwrite=config.overwrite)
    refuse_inputs(config.output, config.inputs())
    wanted = config.wanted()
    with locked(folder_of_parts(config.output)):
        parts = PartFiles(config.output, config.settings())
        try:
            number, done = _convert_parts(config, wanted, parts, iter(records))
        except (ValueError, FileNotFoundError, ImportError):  # of the inputs, which must change before this goes on
            remove_parts(config.output)
            raise
        seen, skipped = done.seen, dict(done.skipped)
        for image_id in wanted or ():
            if image_id not in seen:
                skipped[f"image {image_id}"] = f"named in {config.captions}, but no good record has it"
        if not seen:
            remove_parts(config.output)
            where, why = next(iter(skipped.items()), ("the input", "it names none of the wanted images"))
            raise ValueError(f"{config.output} was not written, for no record is good. {where}: {why}")
        parts.put_together(number, (done.like or {})["writer"], "auto", skipped, overwrite=config.overwrite)
    if done.padded:
        print(f"{done.padding} all-zero rows that pad {done.padded} images to the length of others were left out")
    return len(seen), skipped


class Converted(NamedTuple):
    """What came of some records.

    >>> Converted(seen={"7": "row 1"}).and_then(Converted(seen={"8": "row 2"}, padded=1)).seen
    {'7': 'row 1', '8': 'row 2'}
    """

    seen: Mapping[str, str] = MappingProxyType({})
    """The images that were written, and where each was."""
    skipped: Mapping[str, str] = MappingProxyType({})
    """What was left out: where it was, and why."""
    padded: int = 0
    """How many images had rows that only pad."""
    padding: int = 0
    """How many such rows."""
    like: dict[str, Any] | None = None
    """What the first image decided, see `StoreConfig.like`; None before there was one."""

    def and_then(self, later: Converted) -> Converted:
        """Both together."""
        return Converted(
            {**self.seen, **later.seen},
            {**self.skipped, **later.skipped},
            self.padded + later.padded,
            self.padding + later.padding,
            self.like or later.like,
        )


def _convert_parts(
    config: StoreConfig, wanted: Container[str] | None, parts: PartFiles, records: Iterator[Source]
) -> tuple[int, Converted]:
    """Write the parts that are not done: how many there are, and what came of all of them."""
    number, done = 0, Converted()
    while (first := next(records, None)) is not None:
        part = chain([first], islice(records, RECORDS_A_PART - 1))
        note = parts.note(number)
        if note is None:
            made = _convert_part(config, wanted, parts, number, part, done)
            parts.finish(number, made._asdict())
        else:
            made = Converted(**note)
            collections.deque(part, maxlen=0)  # what is read already
        done = done.and_then(made)
        number += 1
    return number, done


def _convert_part(
    config: StoreConfig,
    wanted: Container[str] | None,
    parts: PartFiles,
    number: int,
    records: Iterable[Source],
    before: Converted,
) -> Converted:
    """Write one part: what came of its records."""
    seen: dict[str, str] = {}
    skipped: dict[str, str] = {}
    padded, padding, like = 0, 0, before.like
    with contextlib.ExitStack() as stack:
        writer = None
        for where, name, read in records:
            image_id = config.image_id(name)
            if wanted is not None and image_id and image_id not in wanted:
                continue
            try:
                if earlier := seen.get(image_id, before.seen.get(image_id)):
                    raise ValueError(f"image {image_id!r} came before, in {earlier}")
                whole = read()
                record = _real(whole, image_id)
                decided = like or config.like(record)
                _check_like(record, decided)
                if writer is None:  # a bad image decides nothing, and a part without a good one has no store
                    unopened = parts.writer(number, decided["writer"])
                    unopened.checked(**_columns_of(image_id, record))
                    writer = stack.enter_context(unopened)
                writer.write(**_columns_of(image_id, record))
                like = decided
            except ValueError as error:
                skipped[where] = str(error)
            else:
                seen[image_id] = where
                padding += len(whole.features) - len(record.features)
                padded += len(whole.features) > len(record.features)
    return Converted(seen, skipped, padded, padding, like)


def _real(record: Record, image_id: str) -> Record:
    try:
        return without_padding(record)
    except ValueError as error:
        raise ValueError(f"image {image_id!r}: {error}") from error


def _columns(record: Record) -> list[str]:
    return [name for name in ("boxes", "image_size", "class_id", "confidence") if getattr(record, name) is not None]


def _check_like(record: Record, like: Mapping[str, Any]) -> None:
    """Refuse an image that has other values than the first one, or boxes in another unit."""
    dim = like["writer"]["dim"]
    if record.features.shape[1] != dim:
        raise ValueError(f"features have shape {record.features.shape}, wanted (region, {dim})")
    if _columns(record) != like["columns"]:
        raise ValueError(
            f"it comes with {_columns(record) or 'features only'}, the first image with "
            f"{like['columns'] or 'features only'}"
        )
    units = {"xyxy relative": "shares of the image", "xyxy pixels": "pixels"}
    unit = like["writer"]["box_convention"]
    if record.relative != (unit == "xyxy relative"):
        raise ValueError(
            f"boxes are in {units['xyxy relative' if record.relative else 'xyxy pixels']}, those of the "
            f"first image in {units[unit]}"
        )


def _columns_of(image_id: str, record: Record) -> dict[str, Any]:
    """An image as a writer takes it."""
    values = record._asdict()
    return {"image_id": image_id, **{name: value for name, value in values.items() if name != "relative"}}


def record_of(values: Mapping[str, Any], dim: int | None = None) -> Record:
    """The record of an image's values, under any of the names in `KEYS`.

    Features are (region, dim), or (dim, region), or a grid of (dim, height, width) or (height, width, dim), whose cells
    are regions with boxes. Text is base64 of little-endian float32.

    Args:
        values: the values by their keys; nothing else than what is named in `KEYS` is looked up.
        dim: length of a feature vector, if it is known.

    Raises:
        ValueError: there are no features, or the values do not go together.

    >>> grid = np.arange(6.0).reshape(3, 1, 2)
    >>> record = record_of({"feat": grid, "num_boxes": 2}, dim=3)
    >>> record.features.tolist(), record.boxes.tolist(), record.relative
    ([[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]], [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]], True)
    """
    named = {ours: values[key] for ours, keys in KEYS.items() for key in reversed(keys) if key in values}
    if "features" not in named:
        raise ValueError(f"no array called {' or '.join(KEYS['features'])}; there are {sorted(map(str, values))[:20]}")
    count = _integer(named["count"], "count") if "count" in named else None
    features = _numbers(named["features"], "features", count)
    boxes, relative = named.get("boxes"), False
    if boxes is None and "relative_boxes" in named:
        boxes, relative = named["relative_boxes"], True
    if boxes is not None:
        boxes = _numbers(boxes, "boxes", count)
        boxes = _rows(boxes, count or boxes.size // 4)
    features = _rows(features, count if boxes is None else len(boxes))
    features, cells = _as_rows(features, dim, count if boxes is None else len(boxes))
    if boxes is None and cells is not None:
        boxes, relative = cells, True
    _check_counts(features, boxes, count)
    class_id, confidence = None, None
    if "probabilities" in named:
        class_id, confidence = most_probable(_numbers(named["probabilities"], "cls_prob", count))
    size = (_integer(named["width"], "width"), _integer(named["height"], "height")) if _has_size(named) else None
    if boxes is not None and boxes.ndim == 2:
        boxes = boxes[:, :4]
    return Record(features, boxes, size, class_id, confidence, relative)


def most_probable(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class of each region and how sure it is.

    >>> most_probable(np.array([[0.25, 0.75], [1.0, 0.0]]))
    (array([1, 0]), array([0.75, 1.  ]))
    """
    if probabilities.ndim != 2 or not probabilities.shape[1]:
        raise ValueError(f"cls_prob has shape {probabilities.shape}, wanted (region, class)")
    return probabilities.argmax(axis=1), probabilities.max(axis=1)


def decoded(text: bytes | str, column: str) -> np.ndarray:
    """The numbers of base64 text.

    Raises:
        ValueError: it is no base64 of float32 numbers.

    >>> decoded(base64.b64encode(np.float32([1, 2]).tobytes()), "features")
    array([1., 2.], dtype=float32)
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{column} is not base64 ({error}); is the row cut off?") from error
    if len(data) % 4:
        raise ValueError(f"{column} holds {len(data)} bytes, wanted float32 numbers of 4 bytes each")
    return np.frombuffer(data, "<f4")


def _numbers(value: Any, name: str, count: int | None) -> np.ndarray:
    """A value as an array of numbers, with a row a region if it was text."""
    if isinstance(value, (bytes, str)):
        flat = decoded(value, name)
        if not count or len(flat) % count:
            raise ValueError(f"{name} holds {len(flat)} numbers, which num_boxes = {count} does not divide")
        return flat.reshape(count, -1)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is no array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} is an array of {array.dtype}, wanted numbers")
    return array


def _rows(array: np.ndarray, count: int | None) -> np.ndarray:
    """An array with a row a region, if it was flat as what is of any length is in some HDF5 files."""
    return array.reshape(count, -1) if array.ndim == 1 and count and array.size % count == 0 else array


def _integer(value: Any, name: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is {str(value)[:20]!r}, wanted a number") from error
    if number < 1:
        raise ValueError(f"{name} is {number}, wanted at least 1")
    return number


def _has_size(named: Mapping[str, Any]) -> bool:
    return {"width", "height"} <= named.keys()


def _as_rows(features: np.ndarray, dim: int | None, count: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Features with a row a region; and if they were a grid, the boxes of its cells in shares of the image."""
    while features.ndim > 2 and features.shape[0] == 1:  # a batch of one
        features = features[0]
    if features.ndim == 3:
        return _cells(features, dim)
    if features.ndim == 2:
        rows, columns = features.shape
        is_transposed = rows == dim if dim else count == columns if count else rows == USUAL_DIM
        already = columns == dim if dim else count == rows if count else columns == USUAL_DIM
        if is_transposed and not already:
            features = features.T
    return features, None


def _cells(grid: np.ndarray, dim: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The cells of a grid, row by row, and their boxes.

    Raises:
        ValueError: it cannot be told which of its axes are height and width.
    """
    first, last = (grid.shape[axis] == dim if dim else grid.shape[axis] == max(grid.shape) for axis in (0, 2))
    if first == last:
        raise ValueError(
            f"features have shape {grid.shape}, wanted (dim, height, width) or (height, width, dim); give --dim"
        )
    grid = np.moveaxis(grid, 0, 2) if first else grid
    height, width, _ = grid.shape
    y, x = (axis.reshape(-1) for axis in np.mgrid[:height, :width])
    boxes = np.stack([x / width, y / height, (x + 1) / width, (y + 1) / height], axis=1)
    return grid.reshape(height * width, -1), boxes.astype(np.float32)


def _check_counts(features: np.ndarray, boxes: np.ndarray | None, count: int | None) -> None:
    """Whether the numbers of regions agree, padding apart.

    Raises:
        ValueError: they do not; the message has them all.
    """
    if features.ndim != 2:
        return  # told later, with the shape
    counts = {} if count is None else {"count": count}
    counts |= {} if boxes is None else {"boxes": len(boxes)}
    real = num_real(features)
    padded_boxes = boxes is not None and boxes.ndim == 2 and len(boxes) > real and not boxes[real:].any()
    fits = {name: each in (len(features), real) or (name == "boxes" and padded_boxes) for name, each in counts.items()}
    if not all(fits.values()):
        raise ValueError(f"the numbers of regions differ: {counts | {'features': len(features)}}")
