"""What a region store must be before anything of it is read: a file that reads only itself, of sizes it really holds.

HDF5 follows links, external storage and virtual datasets to any file that the process may read, and believes every
size that a file claims. A region store is data from somebody else: all of that is looked at first.
"""

from __future__ import annotations

import contextlib
import stat
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import h5py

ADVICE = "Copy the store again, or make it again."

COLUMNS: dict[str, type[np.generic]] = {
    "boxes": np.float32,
    "image_size": np.int32,
    "class_id": np.int32,
    "confidence": np.float32,
}
"""The optional datasets: an image either has them in every row of a store or in none."""

CHECKSUM = "crc32"
"""The dataset of a checksum an image; stores from before there was one lack it."""

NEEDED = ("features", "num_regions", "image_id")

LARGEST_IMAGE = 1 << 28
"""Bytes of one image's row of features: 36 regions of 2048 numbers have 300 thousand."""

MOST_COMPRESSED = 1100
"""How many bytes at the most a stored byte stands for: deflate reaches 1032."""


class StoreError(ValueError):
    """A region store cannot be read; the message names the file, what is wrong and what to do.

    >>> raise StoreError("train.h5 was cut off. Copy it again.")
    Traceback (most recent call last):
    ...
    xmodal.data.store_checks.StoreError: train.h5 was cut off. Copy it again.
    """


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes a StoreError that names it: what is damaged can fail in any way.

    >>> with damage_named(Path("train.h5")):
    ...     {}["features"]
    Traceback (most recent call last):
    ...
    xmodal.data.store_checks.StoreError: train.h5 cannot be read: 'features'. Copy the store again, or make it again.
    """
    try:
        yield
    except (StoreError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        raise StoreError(f"{path} cannot be read: {error}. {ADVICE}") from error


@contextlib.contextmanager
def problems_named(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file of another kind than a store names it, as damage if it is not known as a problem.

    Raises:
        ValueError: something is wrong.

    >>> with problems_named(Path("birds.h5")):
    ...     raise ValueError("it lacks the dataset 'label'")
    Traceback (most recent call last):
    ...
    ValueError: birds.h5: it lacks the dataset 'label'
    """
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except ValueError as error:  # which may name the file already, or one beside it
        named = path.name in str(error) or (path.parent.name and str(path.parent) in str(error))
        raise error if named else ValueError(f"{path}: {error}") from error
    except Exception as error:  # what is damaged can fail in any way
        raise ValueError(f"{path} is damaged ({error}). Copy it again.") from error


def checksum(image_id: str, features: np.ndarray, columns: Mapping[str, np.ndarray]) -> int:
    """The CRC-32 of what a store holds of one image, padding included: its id, its features, then the other columns.

    >>> checksum("cat", np.ones((1, 2), np.float32), {})
    2180985531
    """
    value = zlib.crc32(image_id.encode("utf-8", "surrogateescape"))
    for array in (features, *(columns[name] for name in COLUMNS if name in columns)):
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value


def check_regular(path: Path, what: str, advice: str = "") -> None:
    """Refuse what is no ordinary file: reading a pipe would wait forever.

    Args:
        path: the file to read.
        what: what it is to be.
        advice: where to get one that is missing.

    Raises:
        FileNotFoundError: nothing is there.
        StoreError: it is a folder, a pipe or a device.

    >>> check_regular(Path("."), "region store")
    Traceback (most recent call last):
    ...
    xmodal.data.store_checks.StoreError: . is no ordinary file; wanted a region store
    """
    if not path.exists():
        raise FileNotFoundError(f"no {what} at {path}. {advice}".rstrip(". ") + ".")
    if not stat.S_ISREG(path.stat().st_mode):
        raise StoreError(f"{path} is no ordinary file; wanted a {what}")


def check_datasets(file: Any) -> None:
    """Refuse datasets that are missing, lie in other files, have a wrong type or shape, or hold less than they claim.

    Raises:
        ValueError: saying what is wrong, without the name of the file.

    >>> import h5py
    >>> from xmodal.data import RegionStoreWriter
    >>> with RegionStoreWriter("train.h5", dim=2, extractor="by hand") as writer:
    ...     writer.write("cat", [[1, 0], [0, 1]])
    >>> with h5py.File("train.h5") as file:
    ...     check_datasets(file)
    """
    import h5py

    missing = set(NEEDED) - set(file)
    if missing:
        raise ValueError(f"it lacks the dataset(s) {sorted(missing)}")
    known = [name for name in (*NEEDED, *COLUMNS, CHECKSUM) if name in file]
    datasets = {name: own_dataset(file, name) for name in known}
    features = datasets["features"]
    if features.ndim != 3 or features.dtype not in (np.float16, np.float32) or 0 in features.shape:
        raise ValueError(
            f"its features are {features.shape} {features.dtype}; wanted (image, region, dim), float16 or float32"
        )
    count, regions, dim = features.shape
    if regions * dim * features.dtype.itemsize > LARGEST_IMAGE:
        raise ValueError(f"its features claim {regions} regions of {dim} numbers an image, more than any network gives")
    rows = dict.fromkeys(("num_regions", "image_id", CHECKSUM), ())
    shapes = {**rows, "boxes": (regions, 4), "image_size": (2,), "class_id": (regions,), "confidence": (regions,)}
    lengths = {name: dataset.shape[0] if dataset.ndim else 0 for name, dataset in datasets.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its datasets have different lengths, {lengths}")
    for name, dataset in datasets.items():
        if name != "features" and dataset.shape != (count, *shapes[name]):
            raise ValueError(f"its {name} is {dataset.shape}; wanted {(count, *shapes[name])}")
        if name == "image_id":
            if h5py.check_string_dtype(dataset.dtype) is None:
                raise ValueError(f"its image_id is {dataset.dtype}; wanted strings")
        elif name != "features" and dataset.dtype.kind not in ("iuf" if name in ("boxes", "confidence") else "iu"):
            raise ValueError(f"its {name} is {dataset.dtype}; wanted numbers")
        check_stored(name, dataset)


def own_dataset(file: Any, name: str) -> h5py.Dataset:
    """A dataset that lies in the file itself; a store's features may be virtual, over stores that are checked as well.

    Raises:
        ValueError: it is a link or a group, or lies in other files.

    >>> import h5py
    >>> with h5py.File("a.h5", "w") as file:
    ...     file["boxes"] = h5py.SoftLink("/features")
    ...     own_dataset(file, "boxes")
    Traceback (most recent call last):
    ...
    ValueError: its boxes is a link; a file reads only itself
    """
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"its {name} is a link; a file reads only itself")
    dataset: Any = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"its {name} is a group; wanted a dataset")
    if dataset.external:
        raise ValueError(f"its {name} lies in another file, {dataset.external[0][0]!r}; a file reads only itself")
    if dataset.is_virtual and name != "features":
        raise ValueError(f"its {name} is virtual; only features may be")
    return dataset


def check_stored(name: str, dataset: h5py.Dataset) -> None:
    """Refuse a dataset that claims more than is stored of it: HDF5 would make up zeros for the rest.

    Raises:
        ValueError: it does.

    >>> import h5py
    >>> with h5py.File("a.h5", "w") as file:
    ...     check_stored("features", file.create_dataset("features", (10**9, 2048), "f4", chunks=(1, 2048)))
    Traceback (most recent call last):
    ...
    ValueError: its features claims 8192000000000 bytes, of which 0 are stored
    """
    if dataset.is_virtual:
        return
    stored = dataset.id.get_storage_size()
    filters = dataset.id.get_create_plist().get_nfilters()
    if dataset.nbytes > stored * (MOST_COMPRESSED if filters else 1):
        raise ValueError(f"its {name} claims {dataset.nbytes} bytes, of which {stored} are stored")
    if dataset.chunks is not None:
        chunk = int(np.prod(dataset.chunks, dtype=np.float64)) * dataset.dtype.itemsize
        if chunk > LARGEST_IMAGE and chunk > 2 * dataset.nbytes:
            raise ValueError(f"its {name} has chunks of {dataset.chunks}, larger than all of it")
        needed = np.prod([-(-size // part) for size, part in zip(dataset.shape, dataset.chunks, strict=True)])
        if dataset.id.get_num_chunks() < needed:
            raise ValueError(f"its {name} has {dataset.id.get_num_chunks()} chunks, wanted {needed}")


def check_counts(num_regions: np.ndarray, image_id: Sequence[str], max_regions: int) -> None:
    """Refuse counts of regions that cannot be.

    Raises:
        ValueError: naming images.

    >>> check_counts(np.array([1, 9]), ["cat", "dog"], 5)
    Traceback (most recent call last):
    ...
    ValueError: it has 1 image ('dog') with a count outside 1..5
    """
    bad = (num_regions < 1) | (num_regions > max_regions)
    if bad.any():
        names = some([image_id[int(index)] for index in np.flatnonzero(bad)])
        raise ValueError(f"it has {names} with a count outside 1..{max_regions}")


def part_of(path: Path, name: str) -> Path:
    """The file that a virtual dataset of a store names, which must lie in the store's folder or below.

    Raises:
        StoreError: it lies, or leads, elsewhere.

    >>> part_of(Path("data/train.h5"), "train.h5.parts/0.h5").as_posix()
    'data/train.h5.parts/0.h5'
    >>> part_of(Path("data/train.h5"), "../secret.h5")
    Traceback (most recent call last):
    ...
    xmodal.data.store_checks.StoreError: data/train.h5 is joined of '../secret.h5', which is not in its folder or ...
    """
    written = PurePosixPath(name)
    part = path.parent / name
    inside = not written.is_absolute() and ".." not in written.parts and name != "."
    if not inside or not part.resolve().is_relative_to(path.parent.resolve()):
        raise StoreError(f"{path} is joined of {name!r}, which is not in its folder or below; a store reads only that")
    return part


def some(names: Sequence[str]) -> str:
    """How many images, and the first few of them.

    >>> some(["a", "b"])
    "2 images ('a', 'b')"
    """
    shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} image{'s' * (len(names) > 1)} ({shown})"
