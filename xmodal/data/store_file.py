"""The HDF5 file of a region store, open for reading: checked first, then read image by image without HDF5's detours."""

from __future__ import annotations

import functools
import json
import os
import zlib
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xmodal.data.positions import position_by_name
from xmodal.data.store_checks import (
    ADVICE,
    CHECKSUM,
    StoreError,
    check_counts,
    check_datasets,
    check_regular,
    damage_named,
    part_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    import h5py

FORMAT = "xmodal region store"
FORMAT_VERSION = 1

BOX_CONVENTIONS = ("xyxy pixels", "xyxy relative")


class StoreFile:
    """A region store open in this process.

    Raises:
        FileNotFoundError: there is no such file, or one that it is joined of is missing.
        StoreError: the file or one that it is joined of is damaged or no region store, or they do not belong together.

    >>> from pathlib import Path
    >>> from xmodal.data import RegionStoreWriter
    >>> with RegionStoreWriter("train.h5", dim=2, max_regions=3, extractor="by hand") as writer:
    ...     writer.write("cat", [[1, 0], [0, 1]])
    >>> file = StoreFile(Path("train.h5"))
    >>> file.image_id, file.num_regions, file.image(0).shape
    (['cat'], array([2], dtype=int32), (3, 2))
    """

    def __init__(self, path: Path) -> None:
        self.process, self.path = os.getpid(), path
        self.file: Any = open_checked(path)  # Any, for h5py's types do not say what a name stands for
        with damage_named(path):
            self.features: h5py.Dataset = self.file["features"]
            self.num_regions: np.ndarray = self.file["num_regions"][:]
            self.image_id: list[str] = _image_ids(self.file)
            check_counts(self.num_regions, self.image_id, self.features.shape[1])
            self._places = _find_images(self.file, path)
            self._boxes, self._image_size = _find_boxes(self.file, path)
            self.identity = self._identify()
        # Kept here, for h5py takes microseconds to say them.
        self._shape, self._dtype = self.features.shape[1:], self.features.dtype

    def _identify(self) -> str:
        """What tells this store from another one that comes to have its name."""
        ids = zlib.crc32("\0".join(self.image_id).encode("utf-8", "surrogateescape"))
        if CHECKSUM in self.file:
            return f"{ids:x} {zlib.crc32(self.file[CHECKSUM][:]):x}"
        status = self.path.stat()
        return f"{ids:x} {status.st_size} {status.st_mtime_ns}"

    @functools.cached_property
    def position(self) -> dict[str, int]:
        """Where each image is; an error if two have the same name."""
        return position_by_name(self.image_id, self.path)

    def image(self, index: int) -> np.ndarray:
        """One image's row of `features`, padding included.

        Plain chunks are taken from the mapped file: 128 images of 36 x 2048 in 6 ms, where h5py's own reading of single
        rows takes 19 ms and its fancy indexing 340 ms.
        """
        if self._places is None:
            with damage_named(self.path):  # compressed bytes need not unpack
                return self.features[index]
        files, file, start = self._places
        return np.ndarray(self._shape, self._dtype, files[file[index]], start[index])

    def relative_boxes(self, indices: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        """The boxes of some images as shares of width and height, zero where the mask is; None if that is not known."""
        if self._boxes is None:
            return None
        boxes = self._boxes[indices, : mask.shape[1]]
        if self._image_size is not None:
            boxes = boxes / np.tile(self._image_size[indices], 2)[:, None]
        if not mask.all():
            boxes[~mask] = 0  # whatever the file has there
        return boxes


def open_checked(path: Path) -> Any:
    """Open a file and make sure that it is a region store that reads only itself and holds what it claims.

    >>> from pathlib import Path
    >>> _ = Path("train.h5").write_bytes(b"\\x89HDF")
    >>> open_checked(Path("train.h5"))
    Traceback (most recent call last):
    ...
    xmodal.data.store_checks.StoreError: train.h5 is not an HDF5 file, or was cut off while it was copied (Unable to ...
    """
    import h5py

    check_regular(path, "region store", "`xmodal prepare --help` lists the programs that make one.")
    try:
        # No lock: a finished store never changes, and network file systems often cannot lock.
        file: Any = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise StoreError(
            f"{path} is not an HDF5 file, or was cut off while it was copied ({error}). {ADVICE}"
        ) from error
    try:
        with damage_named(path):
            _check_attributes(file.attrs)
            check_datasets(file)
    except BaseException:
        file.close()
        raise
    return file


def _check_attributes(attributes: Any) -> None:
    """Refuse another format, another version, and what is no description of a store."""
    if attributes.get("format") != FORMAT:
        raise ValueError(
            f"it is an HDF5 file but not a region store: its format attribute is {attributes.get('format')!r}, wanted "
            f"{FORMAT!r}; RegionStoreWriter writes one"
        )
    if attributes["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"it is a region store of version {attributes['format_version']}; this xmodal reads version "
            f"{FORMAT_VERSION}"
        )
    if attributes["box_convention"] not in BOX_CONVENTIONS:
        raise ValueError(
            f"its box_convention is {attributes['box_convention']!r}; wanted one of {', '.join(BOX_CONVENTIONS)}"
        )
    if not isinstance(attributes["extractor"], str):
        raise ValueError(f"its extractor is {attributes['extractor']!r}; wanted a name")
    if not isinstance(json.loads(attributes.get("extractor_options", "{}")), dict):
        raise ValueError(f"its extractor_options are {attributes['extractor_options']!r}; wanted an object")


class _Places(NamedTuple):
    """Where each image's features are: in which of some mapped files, and from which byte on."""

    files: list[np.ndarray]
    file: np.ndarray
    start: np.ndarray


def _find_images(file: Any, path: Path, above: tuple[Path, ...] = ()) -> _Places | None:
    """Where the images are; None if any of them is not stored as one plain chunk, which HDF5 must read."""
    features: h5py.Dataset = file["features"]
    if features.is_virtual:
        return _find_images_of_parts(file, path, (*above, path.resolve()))
    plain = features.chunks == (1, *features.shape[1:]) and features.id.get_create_plist().get_nfilters() == 0
    if not plain or features.id.get_num_chunks() != len(features) or file.userblock_size:
        return None
    start = np.empty(len(features), np.int64)

    def note(chunk: Any) -> None:
        start[chunk.chunk_offset[0]] = chunk.byte_offset

    features.id.chunk_iter(note)
    mapped = np.memmap(path, np.uint8, "r")
    if start.max() + features.dtype.itemsize * int(np.prod(features.shape[1:])) > len(mapped):
        raise StoreError(f"{path} was cut off: features lie behind its end. {ADVICE}")
    return _Places([mapped], np.zeros(len(features), np.int32), start)


def _find_images_of_parts(file: Any, path: Path, above: tuple[Path, ...]) -> _Places | None:
    """Where the images of a store are that is joined of others, all of which must be there and be what was joined.

    HDF5 itself reads zeros, without a word, where a part is missing or too short.
    """
    features: h5py.Dataset = file["features"]
    image_ids = _image_ids(file)
    found: list[_Places | None] = []
    end = 0
    for source in sorted(features.virtual_sources(), key=lambda source: source.vspace.get_select_bounds()[0]):
        first, last = (bound[0] for bound in source.vspace.get_select_bounds())
        part = part_of(path, source.file_name)
        if part.resolve() in above:
            raise StoreError(f"{path} is joined of itself, by way of {part}. {ADVICE}")
        if source.dset_name.strip("/") != "features":
            raise StoreError(f"{path} is joined of {source.dset_name!r} of {part}; wanted its features. {ADVICE}")
        if not part.exists():
            raise FileNotFoundError(
                f"{path} is joined of other files, and {part} is missing: it was moved, renamed or removed. "
                "Put it back, or make the store again."
            )
        with open_checked(part) as opened:
            if first != end or _image_ids(opened) != image_ids[first : last + 1]:
                raise StoreError(f"{part} holds other images than when {path} was joined of it. Make the store again.")
            found_kind, wanted_kind = (f"{each.shape[1:]} {each.dtype}" for each in (opened["features"], features))
            if found_kind != wanted_kind:
                raise StoreError(f"{part} holds features {found_kind}, wanted {wanted_kind} as in {path}. Put it back.")
            found.append(_find_images(opened, part, above))
        end = last + 1
    if end != len(features):
        raise StoreError(f"{path} has {len(features)} images, but its parts hold {end}. Make the store again.")
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
    if start is not None and boxes.chunks is None and not file.userblock_size and boxes.size:
        rows = np.memmap(path, boxes.dtype, "r", start, boxes.shape)
    else:
        rows = boxes[:]
    return rows, None if relative else file["image_size"][:].astype(np.float32)


def _image_ids(file: Any) -> list[str]:
    # Said to be UTF-8, for the file may say that they are ASCII.
    return file["image_id"].asstr("utf-8", errors="surrogateescape")[:].tolist()
