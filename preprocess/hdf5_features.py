"""Read region features of other projects' HDF5 files, image by image."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from xmodal.data.array_files import LARGEST
from xmodal.data.store_checks import problems_named
from xmodal.data.store_file import FORMAT
from xmodal.data.text import parse_json, read_lines, read_text, suffix_of
from xmodal.data.unpickling import PlainUnpickler

from .layouts import HDF5, KEYS
from .precomputed import Record, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


def read_hdf5(
    path: Path, layout: str | None = None, ids: Path | None = None, dim: int | None = None
) -> Iterator[tuple[str, str, Callable[[], Record]]]:
    """Every image of an HDF5 file: where it is, its name, and a function that reads it.

    Args:
        path: the file.
        layout: a name in `HDF5`; without, the keys tell.
        ids: the file of the images' ids, for files that do not hold them; without, NAME_imgid2idx.pkl beside NAME.hdf5.
        dim: length of a feature vector, if it is known.

    Raises:
        FileNotFoundError: there is no such file, or none with its ids.
        ValueError: it is damaged, its keys are those of no layout or of several, or ids and rows do not go together.

    >>> import h5py
    >>> from pathlib import Path
    >>> with h5py.File("coco_detections.hdf5", "w") as file:
    ...     file["7_features"], file["7_boxes"] = np.ones((2, 3)), np.ones((2, 4))
    >>> [(where, name, read().features.shape) for where, name, read in read_hdf5(Path("coco_detections.hdf5"))]
    [('coco_detections.hdf5, image 7', '7', (2, 3))]
    """
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"no HDF5 file at {path}")
    try:
        opened = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file, or was cut off ({error}). Copy it again.") from error
    with opened as file, problems_named(path):
        if file.attrs.get("format") == FORMAT:
            raise ValueError(f"{path} is a region store already; there is nothing to convert")
        if strange := [name for name in file if not isinstance(name, str)]:
            raise ValueError(f"{path} has the key {strange[0]!r}, which is not UTF-8. Is it damaged? Copy it again.")
        readers = {"ban": _rows, "visdial": _rows, "m2": _flat, "groups": _groups}
        for name, values in readers[layout or _the_only(path, list(file), file)](file, path, ids):
            yield f"{path}, image {name}", name, partial(_record, values, dim)


def _the_only(path: Path, names: list[str], file: Any) -> str:
    """The layout that a file's keys are of.

    Raises:
        ValueError: of none, or of several.
    """
    known = set(names)
    endings = ("_boxes", "_cls_prob")
    is_like = {
        "ban": "image_features" in known,
        "visdial": {"features", "image_id"} <= known,
        "m2": any(
            m and known & {m[1] + end for end in endings} for m in (re.match(r"(.+)_features$", n) for n in names)
        ),
        "groups": any(_is_group(file, name) for name in names[:9]),
    }
    fitting = [layout for layout, fits in is_like.items() if fits]
    if len(fitting) == 1:
        return fitting[0]
    problem = f"its keys fit the layouts {' and '.join(fitting)}: give --layout" if fitting else "they are of no layout"
    described = "; ".join(f"{name}: {HDF5[name]}" for name in HDF5)
    raise ValueError(f"{path} has the keys {names[:9]}{' ...' * (len(names) > 9)}; {problem}. Known: {described}")


def _is_group(file: Any, name: str) -> bool:
    values = file[name] if _is_own(file, name) else None
    return hasattr(values, "keys") and any(key in values for key in KEYS["features"])


def _record(values: Callable[[], Mapping[str, Any]], dim: int | None) -> Record:
    """The record of an image.

    Raises:
        ValueError: its part of the file is damaged, or its values do not go together.
    """
    try:
        found = values()
    except (OSError, RuntimeError, KeyError, TypeError, MemoryError) as error:
        raise ValueError(f"cannot be read from the HDF5 file ({error}); copy it again") from error
    return record_of(found, dim)


def _rows(file: Any, path: Path, ids: Path | None) -> Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]:
    """Images that are rows of the same datasets."""
    names = {ours: next((key for key in keys if key in file), None) for ours, keys in KEYS.items()}
    columns = {ours: _dataset(file, key) for ours, key in names.items() if key is not None}
    if "features" not in columns:
        raise ValueError(f"{path} has no dataset called {' or '.join(KEYS['features'])}")
    ranges = np.asarray(_dataset(file, "pos_boxes")[:]) if "pos_boxes" in file else None
    length = len(columns["features"]) if ranges is None else len(ranges)
    if ranges is not None and (ranges.ndim != 2 or ranges.shape[1] != 2 or ranges.dtype.kind not in "iu"):
        raise ValueError(f"{path}: pos_boxes has shape {ranges.shape}, wanted (image, 2): first and last region")
    per_region = {"features", "boxes", "relative_boxes", "probabilities"}
    for name, dataset in columns.items():
        rows = len(columns["features"]) if ranges is not None and name in per_region else length
        if len(dataset) != rows:
            raise ValueError(f"{path}: {names[name]} has {len(dataset)} rows, wanted {rows} as {names['features']}")

    def values(index: int) -> Mapping[str, Any]:
        found = {}
        for ours, dataset in columns.items():
            first, last = (index, index + 1) if ranges is None or ours not in per_region else map(int, ranges[index])
            if not 0 <= first < last <= len(dataset):
                raise ValueError(f"pos_boxes says rows {first} to {last} of {len(dataset)}")
            _check_size(dataset, last - first)
            rows = dataset[first:last]
            found[KEYS[ours][0]] = rows if ranges is not None and ours in per_region else rows[0]
        return found

    for name, index in _ids(file, path, ids, length).items():
        yield name, partial(values, index)


def _flat(file: Any, _path: Path, _ids: Path | None) -> Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]:
    """Images each of which has datasets of its own, ID_features and the like."""

    def values(image_id: str) -> Mapping[str, Any]:
        return {
            key: _whole(file, f"{image_id}_{key}")
            for key in ("features", "boxes", "cls_prob")
            if f"{image_id}_{key}" in file
        }

    for name in file:
        if name.endswith("_features"):
            image_id = name.removesuffix("_features")
            yield image_id, partial(values, image_id)


def _groups(file: Any, _path: Path, _ids: Path | None) -> Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]:
    """Images each of which is a group."""
    known = [key for keys in KEYS.values() for key in keys]

    def values(name: str) -> Mapping[str, Any]:
        group = _linked(file, name)
        if not hasattr(group, "keys"):
            raise ValueError("it is no group")
        return {
            **{key: group.attrs[key] for key in known if key in group.attrs},
            **{key: _whole(group, key) for key in known if key in group},
        }

    for name in file:
        yield name, partial(values, name)


def _is_own(file: Any, name: str) -> bool:
    """Whether what a name stands for is in this file, not behind a link."""
    import h5py

    return isinstance(file.get(name, getlink=True), h5py.HardLink)


def _linked(file: Any, name: str) -> Any:
    """What a name in a file stands for, if it is in this file.

    Raises:
        ValueError: it is a link to elsewhere.
    """
    if not _is_own(file, name):
        raise ValueError(f"{name} is a link to elsewhere; only what is in the file itself is read")
    return file[name]


def _dataset(file: Any, name: str) -> Any:
    """A dataset whose numbers are in this file.

    Raises:
        ValueError: it is a link to elsewhere, a group, or keeps its numbers in other files.
    """
    found = _linked(file, name)
    if not hasattr(found, "shape") or found.shape is None:
        raise ValueError(f"{name} is no dataset")
    if found.external or found.is_virtual:
        raise ValueError(f"{name} keeps its numbers in other files; only what is in the file itself is read")
    return found


def _check_size(dataset: Any, rows: int) -> None:
    size = rows * int(np.prod(dataset.shape[1:], dtype=object)) * dataset.dtype.itemsize
    if size > LARGEST:
        raise ValueError(f"{dataset.name} has {size} bytes an image, at most {LARGEST} are read")


def _whole(file: Any, name: str) -> Any:
    dataset = _dataset(file, name)
    if dataset.ndim:
        _check_size(dataset, len(dataset))
    return dataset[()]


def _ids(file: Any, path: Path, ids: Path | None, length: int) -> dict[str, int]:
    """The images' names and rows.

    Raises:
        FileNotFoundError: the file does not hold them, and there is no other that does.
        ValueError: they are not as many as the rows, or one comes twice.
    """
    if ids is None and "image_id" in file:
        dataset = _dataset(file, "image_id")
        is_text = dataset.dtype.kind in "OS"
        where, names = path, dataset.asstr("utf-8", errors="surrogateescape")[:] if is_text else dataset[:]
        found: Any = [str(name) for name in np.asarray(names).reshape(-1).tolist()]
    else:
        where = ids or path.with_name(f"{path.stem}_imgid2idx.pkl")
        if not where.is_file():
            raise FileNotFoundError(
                f"{path} does not name its images, and there is no {where}. Give the file that does with --ids: a "
                "pickled or JSON dict of ids and rows, or a list of ids"
            )
        found = _read_ids(where)
    if isinstance(found, dict):
        rows = {str(name): row for name, row in found.items()}
        if not all(hasattr(row, "__index__") and 0 <= row < length for row in rows.values()):
            raise ValueError(f"{where}: rows of images must be numbers from 0 to {length - 1}, as {path} has them")
        return {name: int(row) for name, row in sorted(rows.items(), key=lambda item: item[1])}
    if len(found) != length:
        raise ValueError(f"{where} names {len(found)} images, {path} has {length}")
    numbered = {str(name): row for row, name in enumerate(found)}
    if len(numbered) < length:
        raise ValueError(f"{where} names an image twice")
    return numbered


def _read_ids(path: Path) -> dict[Any, Any] | list[Any]:
    """A dict or list of ids: pickled, JSON, or a line each."""
    if path.suffix in (".pkl", ".pickle"):
        try:
            with path.open("rb") as file:
                found = PlainUnpickler(file).load()
        except Exception as error:  # a damaged pickle can fail in any way
            raise ValueError(f"{path} cannot be read as a pickle of ids: {error}") from error
    elif suffix_of(path) == ".json":
        found = parse_json(read_text(path), str(path))
    else:
        found = [line.strip() for line in read_lines(path) if line.strip()]
    if not isinstance(found, (dict, list, tuple)):
        raise ValueError(f"{path} holds a {type(found).__name__}, wanted a dict of ids and rows, or a list of ids")
    return found if isinstance(found, dict) else list(found)
