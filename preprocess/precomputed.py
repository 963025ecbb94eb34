"""From records of precomputed features to a region store: what the converters share."""

from __future__ import annotations

import base64
import binascii
import contextlib
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from xmodal.data import RegionStoreWriter
from xmodal.data.image_folder import coco_number

from .image_ids import image_stem, read_image_names
from .layouts import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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

    def writer(self, first: Record) -> RegionStoreWriter:
        """The writer of the store whose first image this is."""
        return RegionStoreWriter(
            self.output,
            dim=self.dim or first.features.shape[1],
            max_regions=self.max_regions or max(36, len(first.features)),
            dtype=self.dtype,
            extractor=self.extractor,
            box_convention="xyxy relative" if first.relative else "xyxy pixels",
            overwrite=self.overwrite,
        )


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


def convert(
    config: StoreConfig, records: Iterable[tuple[str, str, Callable[[], Record]]]
) -> tuple[int, dict[str, str]]:
    """Write the store, record by record; damaged and repeated records are left out, and so are rows that only pad.

    Args:
        config: what to write.
        records: where a record is (file and row), its image's name (empty if it cannot be told), and a function that
            reads it and raises ValueError if it is damaged. It is called only for images that are wanted.

    Returns:
        How many images were written; and of what was left out, where it was and why.

    Raises:
        FileExistsError: the output exists and may not be replaced.
        ValueError: no record is good.

    >>> import numpy as np
    >>> records = [("row 1", "7", lambda: Record(np.ones((2, 3)))), ("row 2", "7", lambda: Record(np.ones((2, 3))))]
    >>> convert(StoreConfig(output=Path("train.h5"), dim=3), records)
    (1, {'row 2': "image '7' came before, in row 1"})
    """
    wanted = config.wanted()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    skipped: dict[str, str] = {}
    seen: dict[str, str] = {}
    padded, padding = 0, 0
    writer, first = None, None
    with contextlib.ExitStack() as stack:
        for where, name, read in records:
            image_id = config.image_id(name)
            if wanted is not None and image_id and image_id not in wanted:
                continue
            try:
                if image_id in seen:
                    raise ValueError(f"image {image_id!r} came before, in {seen[image_id]}")
                whole = read()
                record = _real(whole, image_id)
            except ValueError as error:
                skipped[where] = str(error)
                continue
            if writer is None:
                first, writer = record, stack.enter_context(config.writer(record))
            try:
                _write(writer, image_id, record, like=first)
            except ValueError as error:
                skipped[where] = str(error)
            else:
                seen[image_id] = where
                padding += len(whole.features) - len(record.features)
                padded += len(whole.features) > len(record.features)
        for image_id in wanted or ():
            if image_id not in seen:
                skipped[f"image {image_id}"] = f"named in {config.captions}, but no good record has it"
        if not seen:
            where, why = next(iter(skipped.items()), ("the input", "it names none of the wanted images"))
            raise ValueError(f"{config.output} was not written, for no record is good. {where}: {why}")
    if padded:
        print(f"{padding} all-zero rows that pad {padded} images to the length of others were left out")
    return len(seen), skipped


def _real(record: Record, image_id: str) -> Record:
    try:
        return without_padding(record)
    except ValueError as error:
        raise ValueError(f"image {image_id!r}: {error}") from error


def _write(writer: RegionStoreWriter, image_id: str, record: Record, like: Record | None) -> None:
    """Append one image, if its boxes are in the unit of the first one's."""
    if like is not None and record.relative != like.relative:
        units = {True: "shares of the image", False: "pixels"}
        raise ValueError(f"boxes are in {units[record.relative]}, those of the first image in {units[like.relative]}")
    writer.write(
        image_id,
        record.features,
        record.boxes,
        record.image_size,
        class_id=record.class_id,
        confidence=record.confidence,
    )


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
    boxes = None if boxes is None else _numbers(boxes, "boxes", count)
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
