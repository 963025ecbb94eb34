"""Make a region store of a folder that holds one array file an image.

| file | read | written by |
|---|---|---|
| `NAME.npz` | x or features; bbox or boxes; image_w and image_h; num_bbox | bottom-up PyTorch; MCAN (x transposed) |
| `NAME.npy` + `NAME_info.npy` | an array; a dict: bbox, image_width, image_height | Pythia, MMF (safely) |
| `NAME.npy` | an array, without boxes | VSE-infinity and others |

The image's name is the file's without its extension. Files that are damaged are left out and listed in
OUTPUT.skipped.txt; then the exit status is 1 unless --skip-bad says that this is all right.

    python -m preprocess.npz_folder --input FOLDER --output DIR/train.h5 --captions DIR/captions.jsonl --split train
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from xmodal.entry import run_program

from .precomputed import Record, StoreConfig, convert
from .skipped import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

KEYS = {
    "features": ("x", "features"),
    "boxes": ("bbox", "boxes"),
    "width": ("image_w", "image_width"),
    "height": ("image_h", "image_height"),
    "count": ("num_bbox", "num_boxes"),
}
"""Our name of a value, and the keys that it goes by."""

HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),
}
"""What a pickled dict of numbers and arrays may call."""


@dataclass(frozen=True, kw_only=True)
class Config(StoreConfig):
    """Where to read and what to write."""

    input: Path
    """Folder of .npz or .npy files; folders inside it are searched too."""


def main(config: Config) -> None:
    """Convert, and say what was left out."""
    num_images, skipped = convert(config, _read_files(config.input, config.dim))
    report(config.output, num_images, skipped, skip_bad=config.skip_bad)


def _read_files(folder: Path, dim: int) -> Iterator[tuple[str, str, Callable[[], Record]]]:
    """Every file below a folder: where it is, the image's name, and a function that reads it.

    Raises:
        FileNotFoundError: there is no such folder, or no .npz or .npy file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    paths = sorted(path for path in folder.rglob("*.np[yz]") if not path.stem.endswith("_info"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no .npz or .npy file")
    for path in tqdm(paths, desc=folder.name, unit="image", delay=2):
        yield str(path), path.stem.removesuffix(".jpg"), partial(_read_file, path, dim)


def _read_file(path: Path, dim: int) -> Record:
    """The arrays of one image.

    Raises:
        ValueError: the file is damaged, lacks the features, or its arrays do not go together.
    """
    try:
        values = _read_npz(path) if path.suffix == ".npz" else _read_npy(path)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError) as error:
        raise ValueError(f"not a whole {path.suffix} file of numbers ({error})") from error
    if "features" not in values:
        raise ValueError(f"no array called {' or '.join(KEYS['features'])}")
    features, boxes = values["features"], values.get("boxes")
    counts = {name: int(values[name]) for name in ("count",) if name in values}
    if boxes is not None:
        counts["boxes"] = len(boxes)
    if features.ndim == 2 and features.shape[1] != dim and features.shape[0] == dim:
        features = features.T
    counts["features"] = len(features)
    if len(set(counts.values())) > 1:
        raise ValueError(f"the numbers of regions differ: {counts}")
    size = (int(values["width"]), int(values["height"])) if {"width", "height"} <= values.keys() else None
    return Record(features, boxes, size)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file) as arrays:  # opened here, for numpy leaves a damaged file open
        return _renamed(arrays)


def _read_npy(path: Path) -> dict[str, np.ndarray]:
    info = path.with_name(f"{path.stem}_info.npy")
    return {**(_renamed(_read_info(info)) if info.exists() else {}), "features": np.load(path)}


def _renamed(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What is read of a file, under our names; nothing else is loaded."""
    return {ours: values[key] for ours, keys in KEYS.items() for key in keys if key in values}


def _read_info(path: Path) -> dict[str, Any]:
    """A dict that `np.save` pickled into an array of one object."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        read_header(file)
        saved = _HarmlessUnpickler(file, encoding="latin1").load()
    values = saved.item() if isinstance(saved, np.ndarray) and saved.size == 1 else None
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a dict")
    return values


class _HarmlessUnpickler(pickle.Unpickler):
    """A pickle can run any code; this reads numbers, strings, lists, dicts and arrays, and refuses the rest."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which numbers do not need")
        return super().find_class(module, name)


if __name__ == "__main__":
    run_program(main)
