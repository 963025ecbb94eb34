"""The HDF5 file of a region store, open for reading: checked first, then read image by image without HDF5's detours."""

from __future__ import annotations

import os
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import h5py

FORMAT = "xmodal region store"
FORMAT_VERSION = 1

COLUMNS = {"boxes": np.float32, "image_size": np.int32, "class_id": np.int32, "confidence": np.float32}
"""The optional datasets: an image either has them in every row of a store or in none."""


class StoreFile:
    """A region store open in this process.

    Raises:
        FileNotFoundError: there is no such file, or one that it is joined of is missing.
        ValueError: the file or one that it is joined of is damaged or no region store, or they do not belong together.

    >>> from pathlib import Path
    >>> from xmodal.data import RegionStoreWriter
    >>> with RegionStoreWriter("train.h5", dim=2, max_regions=3, extractor="by hand") as writer:
    ...     writer.write("cat", [[1, 0], [0, 1]])
    >>> file = StoreFile(Path("train.h5"))
    >>> file.image_id, file.num_regions, file.image(0).shape
    (['cat'], array([2], dtype=int32), (3, 2))
    """

    def __init__(self, path: Path) -> None:
        self.process = os.getpid()
        self.file: Any = open_checked(path)  # Any, for h5py's types do not say what a name stands for
        self.features: h5py.Dataset = self.file["features"]
        self.num_regions: np.ndarray = self.file["num_regions"][:]
        self.image_id: list[str] = _image_ids(self.file)
        self.position = {image_id: index for index, image_id in enumerate(self.image_id)}
        self._places = _find_images(self.file, path)
        self._boxes, self._image_size = _find_boxes(self.file, path)
        # Kept here, for h5py takes microseconds to say them.
        self._shape, self._dtype = self.features.shape[1:], self.features.dtype

    def image(self, index: int) -> np.ndarray:
        """One image's row of `features`, padding included.

        Plain chunks are taken from the mapped file: 128 images of 36 x 2048 in 6 ms, where h5py's own reading of single
        rows takes 19 ms and its fancy indexing 340 ms.
        """
        if self._places is None:
            return self.features[index]
        files, file, start = self._places
        return np.ndarray(self._shape, self._dtype, files[file[index]], start[index])

    def relative_boxes(self, indices: np.ndarray, regions: int) -> np.ndarray | None:
        """The first boxes of some images as shares of width and height; None if that is not known."""
        if self._boxes is None:
            return None
        boxes = self._boxes[indices, :regions]
        return boxes if self._image_size is None else boxes / np.tile(self._image_size[indices], 2)[:, None]


def open_checked(path: Path) -> Any:
    """Open a file and make sure that it is a region store.

    >>> from pathlib import Path
    >>> _ = Path("train.h5").write_bytes(b"\\x89HDF")
    >>> open_checked(Path("train.h5"))
    Traceback (most recent call last):
    ...
    ValueError: train.h5 is not an HDF5 file, or was cut off while it was copied (Unable to synchronously ...
    """
    import h5py

    if not path.exists():
        raise FileNotFoundError(f"no region store at {path}. `xmodal prepare --help` lists the programs that make one.")
    try:
        # No lock: a finished store never changes, and network file systems often cannot lock.
        file: Any = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ValueError(
            f"{path} is not an HDF5 file, or was cut off while it was copied ({error}). Copy it or make it again."
        ) from error
    if file.attrs.get("format") != FORMAT:
        raise ValueError(
            f"{path} is an HDF5 file but not a region store: its format attribute is "
            f"{file.attrs.get('format')!r}, wanted {FORMAT!r}. Write it with RegionStoreWriter."
        )
    if file.attrs["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} is a region store of version {file.attrs['format_version']}; this xmodal reads version "
            f"{FORMAT_VERSION}. Make the store again, or change xmodal's version."
        )
    missing = {"features", "num_regions", "image_id"} - set(file)
    if missing:
        raise ValueError(f"{path} lacks the dataset(s) {sorted(missing)}. Make the store again.")
    lengths = {name: len(file[name]) for name in ("features", "num_regions", "image_id", *COLUMNS) if name in file}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path} is inconsistent: its datasets have different lengths, {lengths}. Make it again.")
    return file


class _Places(NamedTuple):
    """Where each image's features are: in which of some mapped files, and from which byte on."""

    files: list[np.ndarray]
    file: np.ndarray
    start: np.ndarray


def _find_images(file: Any, path: Path) -> _Places | None:
    """Where the images are; None if any of them is not stored as one plain chunk, which HDF5 must read."""
    features: h5py.Dataset = file["features"]
    if features.is_virtual:
        return _find_images_of_parts(file, path)
    plain = features.chunks == (1, *features.shape[1:]) and features.id.get_create_plist().get_nfilters() == 0
    if not plain or features.id.get_num_chunks() != len(features) or file.userblock_size:
        return None
    start = np.empty(len(features), np.int64)

    def note(chunk: Any) -> None:
        start[chunk.chunk_offset[0]] = chunk.byte_offset

    features.id.chunk_iter(note)
    return _Places([np.memmap(path, np.uint8, "r")], np.zeros(len(features), np.int32), start)


def _find_images_of_parts(file: Any, path: Path) -> _Places | None:
    """Where the images of a store are that is joined of others, all of which must be there and be what was joined.

    HDF5 itself reads zeros, without a word, where a part is missing or too short.
    """
    features: h5py.Dataset = file["features"]
    image_ids = _image_ids(file)
    found: list[_Places | None] = []
    end = 0
    for source in sorted(features.virtual_sources(), key=lambda source: source.vspace.get_select_bounds()[0]):
        first, last = (bound[0] for bound in source.vspace.get_select_bounds())
        part = path.parent / source.file_name
        if not part.exists():
            raise FileNotFoundError(
                f"{path} is joined of other files, and {part} is missing: it was moved, renamed or removed. "
                "Put it back, or make the store again."
            )
        with open_checked(part) as opened:
            if first != end or _image_ids(opened) != image_ids[first : last + 1]:
                raise ValueError(f"{part} holds other images than when {path} was joined of it. Make the store again.")
            found_kind, wanted_kind = (f"{each.shape[1:]} {each.dtype}" for each in (opened["features"], features))
            if found_kind != wanted_kind:
                raise ValueError(f"{part} holds features {found_kind}, wanted {wanted_kind} as in {path}. Put it back.")
            found.append(_find_images(opened, part))
        end = last + 1
    if end != len(features):
        raise ValueError(f"{path} has {len(features)} images, but its parts hold {end}. Make the store again.")
    places = [place for place in found if place is not None]
    if len(places) < len(found):
        return None
    offsets = np.cumsum([0, *(len(place.files) for place in places)])
    return _Places(
        list(chain.from_iterable(place.files for place in places)),
        np.concatenate([place.file + offset for place, offset in zip(places, offsets, strict=False)]),
        np.concatenate([place.start for place in places]),
    )


def _find_boxes(file: Any, path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """All boxes, left in the file as long as nobody reads them, and what to divide them by if they are in pixels."""
    relative = file.attrs.get("box_convention") == "xyxy relative"
    if "boxes" not in file or not (relative or "image_size" in file):
        return None, None
    boxes = file["boxes"]
    start = boxes.id.get_offset()  # None unless the dataset is one piece of this file
    plain = boxes.chunks is None and start is not None and not file.userblock_size and boxes.size
    rows = np.memmap(path, boxes.dtype, "r", start, boxes.shape) if plain else boxes[:]
    return rows, None if relative else file["image_size"][:].astype(np.float32)


def _image_ids(file: Any) -> list[str]:
    return file["image_id"].asstr()[:].tolist()
