"""Make a region store of a folder that holds one array file an image.

| file | read | written by |
|---|---|---|
| `NAME.npz` | x, features or feat; bbox or boxes; image_w, image_h; num_bbox | bottom-up PyTorch; MCAN (transposed) |
| `NAME.npy` + `NAME_info.npy` | an array; a dict: bbox, image_width, image_height | Pythia, MMF (safely) |
| `NAME.npy` | a pickled dict with the same keys as an .npz | MMF, ViLBERT (safely) |
| `att/NAME.npz` + `box/NAME.npy` | feat; boxes in the folder beside it | self-critical, AoANet |
| either | a grid (dim, height, width) or (height, width, dim), whose cells become regions | grid features |
| `NAME.npy` | an array, without boxes | VSE-infinity and others |

The image's name is the file's without its extension. All-zero rows at the end of an image are padding. Files that are
damaged are left out and listed in OUTPUT.skipped.txt; then the exit status is 1 unless --skip-bad says that this is all
right.

    python -m preprocess.npz_folder --input FOLDER --output DIR/train.h5 --captions DIR/captions.jsonl --split train
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from xmodal.data.array_files import load_array, load_arrays
from xmodal.entry import run_program

from .layouts import KEYS, SISTERS
from .precomputed import Record, StoreConfig, convert, record_of
from .skipped import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, kw_only=True)
class Config(StoreConfig):
    """Where to read and what to write."""

    input: Path
    """Folder of .npz or .npy files; folders inside it are searched too."""


def main(config: Config) -> None:
    """Convert, and say what was left out."""
    num_images, skipped = convert(config, read_files(config.input, config.dim))
    report(config.output, num_images, skipped, skip_bad=config.skip_bad)


def read_files(folder: Path, dim: int | None = None) -> Iterator[tuple[str, str, Callable[[], Record]]]:
    """Every file below a folder: where it is, the image's name, and a function that reads it.

    Raises:
        FileNotFoundError: there is no such folder, or no .npz or .npy file in it.

    >>> from pathlib import Path
    >>> import numpy as np
    >>> np.save("7.npy", np.ones((2, 4)))
    >>> [(name, read().features.shape) for _, name, read in read_files(Path("."))]
    [('7', (2, 4))]
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    paths = sorted(path for path in folder.rglob("*.np[yz]") if not _is_beside(path))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no .npz or .npy file")
    for path in tqdm(paths, desc=folder.name, unit="image", delay=2):
        yield str(path), path.stem, partial(_read_file, path, dim)


def _is_beside(path: Path) -> bool:
    """Whether a file belongs to the features of another one: a dict of Pythia's, or what is in a sister folder."""
    folder = path.absolute().parent
    beside = (folder.with_name(folder.name.replace(sister, own)) for own, sisters in _SISTERS for sister in sisters)
    is_info = path.name.endswith(_INFO) and path.with_name(path.name.removesuffix(_INFO) + ".npy").exists()
    return is_info or any(each != folder and each.is_dir() for each in beside)


_INFO = "_info.npy"
"""What the name of Pythia's dict beside an array ends with."""

_SISTERS = [(own, (sister, "fc")) for own, sister in SISTERS]


def _read_file(path: Path, dim: int | None) -> Record:
    """The arrays of one image.

    Raises:
        ValueError: the file is damaged, lacks the features, or its arrays do not go together.
    """
    try:
        values = _read_npz(path) if path.suffix == ".npz" else _read_npy(path)
        if not any(key in values for name in ("boxes", "relative_boxes") for key in KEYS[name]):
            values |= _boxes_beside(path)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"not a whole {path.suffix} file of numbers ({error})") from error
    return record_of(values, dim)


def _read_npz(path: Path) -> dict[str, Any]:
    """What is known of a file; nothing else in it is loaded."""
    return load_arrays(path, {key for keys in KEYS.values() for key in keys})


def _read_npy(path: Path) -> dict[str, Any]:
    info = path.with_name(f"{path.stem}{_INFO}")
    found = load_array(path)
    if isinstance(found, dict):
        return found
    beside = _load_beside(info) if info.exists() else {}
    if not isinstance(beside, dict):
        raise ValueError(f"{info} does not hold a dict")
    return {**beside, "x": found}


def _boxes_beside(path: Path) -> dict[str, Any]:
    """Boxes of the same name in the sister folder, if there is one."""
    for own, sister in SISTERS:
        folder = path.absolute().parent
        boxes = folder.with_name(folder.name.replace(own, sister)) / f"{path.stem}.npy"
        if own in folder.name and boxes.exists():
            return {"boxes": _load_beside(boxes)}
    return {}


def _load_beside(path: Path) -> Any:
    """What a file holds that goes with another one, and is the one to name."""
    try:
        return load_array(path)
    except Exception as error:  # as above
        raise ValueError(f"{error}; in {path}") from error


if __name__ == "__main__":
    run_program(main)
