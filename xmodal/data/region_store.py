"""The region store: one HDF5 file a split, holding every image's region features and where they came from.

Datasets, one row an image:

| name | shape | what |
|---|---|---|
| `features` | (image, region, dim) | float16 or float32, zero after the last region; one image a chunk |
| `num_regions` | (image,) | how many regions are real |
| `image_id` | (image,) | string |
| `boxes` | (image, region, 4) | optional; x1 y1 x2 y2, see the `box_convention` attribute |
| `image_size` | (image, 2) | optional; width, height in pixels |
| `class_id`, `confidence` | (image, region) | optional; what the detector said |
| `crc32` | (image,) | optional; a checksum of all that is there of an image, which `validate` looks at |

Attributes: `format`, `format_version`, `extractor`, `extractor_options`, `weights_hash`, `dim`, `box_convention`,
`created`. In a store that `xmodal.data.joined.join_stores` made, `features` is a virtual dataset over other stores.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from xmodal.data.atomic import refuse_existing, written_whole
from xmodal.data.image_source import ImageSource
from xmodal.data.positions import as_positions
from xmodal.data.store_checks import CHECKSUM, COLUMNS, StoreError, checksum, damage_named
from xmodal.data.store_file import FORMAT, FORMAT_VERSION, StoreFile
from xmodal.data.store_problems import find_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool, Float, Int
    from numpy.typing import ArrayLike
    from torch import Tensor

BoxConvention = Literal["xyxy pixels", "xyxy relative"]
FeatureType = Literal["float16", "float32"]


_UNSTORABLE = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
"""Letters that no file can hold. Names of files may be any bytes, which Python has as the surrogates left out here."""


class RegionBatch(NamedTuple):
    """The regions of some images, padded to the longest of them."""

    regions: Float[Tensor, "image region dim"]
    region_mask: Bool[Tensor, "image region"]
    boxes: Float[Tensor, "image region 4"] | None = None
    """x1 y1 x2 y2 as shares of the image's width and height; None where the source does not know them."""


class RegionStoreWriter:
    """Writes a region store image by image; features go to the disk at once, only boxes and the like wait in memory.

    Use it as a context manager. The file appears under its name only when the block ends without an exception; until
    then, and for good after a crash, `path` is what it was before.

    Args:
        path: the file to make; its folder is made too.
        dim: length of a feature vector.
        max_regions: the most regions an image may have; each image takes this much room.
        dtype: how features are stored; float16 halves the file.
        extractor: what made the features: a name in `xmodal.encoders.extractors.EXTRACTORS`, or words.
        extractor_options: what that extractor was built with, so that photographs can be looked at in the same way.
        weights_hash: hash of the extractor's weights, so that two stores can be told apart.
        box_convention: boxes are x1 y1 x2 y2, in pixels or as shares of width and height.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        OSError: the folder cannot be written.
        ValueError: an argument is out of range, or no image was written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "train.h5"
    >>> with RegionStoreWriter(path, dim=3, extractor="by hand") as writer:
    ...     writer.write("cat", [[1, 0, 0], [0, 1, 0]], boxes=[[0, 0, 9, 9], [3, 3, 5, 5]], image_size=(10, 10))
    ...     writer.write("dog", [[0, 0, 1]], boxes=[[1, 2, 3, 4]], image_size=(20, 10))
    >>> store = RegionStore(path)
    >>> len(store), store.dim, store.image_id
    (2, 3, ['cat', 'dog'])
    >>> store.batch([1, 0]).region_mask
    tensor([[ True, False],
            [ True,  True]])
    """

    def __init__(
        self,
        path: str | Path,
        *,
        dim: int,
        max_regions: int = 36,
        dtype: FeatureType = "float32",
        extractor: str,
        extractor_options: Mapping[str, Any] | None = None,
        weights_hash: str = "",
        box_convention: BoxConvention = "xyxy pixels",
        overwrite: bool = False,
    ) -> None:
        if dim < 1 or max_regions < 1:
            raise ValueError(f"dim and max_regions must be at least 1, not {dim} and {max_regions}")
        if dtype not in get_args(FeatureType):
            raise ValueError(f"dtype {dtype!r} is not one of {get_args(FeatureType)}")
        if box_convention not in get_args(BoxConvention):
            raise ValueError(f"box_convention {box_convention!r} is not one of {get_args(BoxConvention)}")
        self.path = Path(path)
        if not overwrite:
            refuse_existing(self.path)
        self.dim, self.max_regions, self.dtype, self.overwrite = dim, max_regions, dtype, overwrite
        self._attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "extractor": extractor,
            "extractor_options": json.dumps(dict(extractor_options or {})),
            "weights_hash": weights_hash,
            "dim": dim,
            "box_convention": box_convention,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        self._num_regions: list[int] = []
        self._image_id: dict[str, None] = {}  # a dict: insertion order, and duplicates found in no time
        self._columns: dict[str, list[np.ndarray]] = {}
        self._checksum: list[int] = []

    def __enter__(self) -> RegionStoreWriter:
        import h5py

        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(written_whole(self.path, overwrite=self.overwrite))
            self._file = stack.enter_context(h5py.File(temporary, "w"))
            self._features = self._file.create_dataset(
                "features",
                shape=(0, self.max_regions, self.dim),
                maxshape=(None, self.max_regions, self.dim),
                # One image a chunk: h5py's own choice cuts an image in pieces and is some 90 times slower at random.
                chunks=(1, self.max_regions, self.dim),
                dtype=self.dtype,
            )
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self._stack.__exit__(*exception)

    def write(
        self,
        image_id: str,
        features: ArrayLike,
        boxes: ArrayLike | None = None,
        image_size: tuple[int, int] | None = None,
        *,
        class_id: ArrayLike | None = None,
        confidence: ArrayLike | None = None,
    ) -> None:
        """Append one image.

        Args:
            image_id: its name, unlike any other in the store.
            features: (region, dim), finite, at least one region.
            boxes: (region, 4), in the store's box convention.
            image_size: width and height in pixels.
            class_id: (region,), the class of each region.
            confidence: (region,), the detector's belief in each region.

        Raises:
            ValueError: anything of the wrong shape, not finite, in numbers that the store cannot hold, or given for
                some images but not for others.
        """
        row, columns = self.checked(image_id, features, boxes, image_size, class_id=class_id, confidence=confidence)
        count = len(row)
        index = len(self._image_id)
        self._features.resize(index + 1, axis=0)
        self._features[index, :count] = row
        self._image_id[image_id] = None
        self._num_regions.append(count)
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column)
        padding = np.zeros((self.max_regions - count, self.dim), row.dtype)
        self._checksum.append(checksum(image_id, np.concatenate([row, padding]), columns))

    def checked(
        self,
        image_id: str,
        features: ArrayLike,
        boxes: ArrayLike | None = None,
        image_size: tuple[int, int] | None = None,
        *,
        class_id: ArrayLike | None = None,
        confidence: ArrayLike | None = None,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The features of an image, and the columns that it comes with, as `write` stores them; takes what it takes.

        Nothing is written: no file need be open yet, and a first image that is bad decides nothing.

        Raises:
            ValueError: as for `write`.
        """
        row = self._check_features(image_id, features)
        count = len(row)
        columns = {
            "boxes": self._check_column(image_id, "boxes", boxes, (count, 4)),
            "image_size": self._check_column(image_id, "image_size", image_size, (2,)),
            "class_id": self._check_column(image_id, "class_id", class_id, (count,)),
            "confidence": self._check_column(image_id, "confidence", confidence, (count,)),
        }
        columns = {name: column for name, column in columns.items() if column is not None}
        if self._image_id and columns.keys() != self._columns.keys():
            raise ValueError(
                f"image {image_id!r} comes with {sorted(columns) or 'features only'}, the images before it with "
                f"{sorted(self._columns) or 'features only'}. Give the same for every image."
            )
        return row, columns

    def _check_features(self, image_id: str, features: ArrayLike) -> np.ndarray:
        if not isinstance(image_id, str) or not image_id:
            raise ValueError(f"image_id {image_id!r} is not a non-empty string")
        if _UNSTORABLE.search(image_id):
            raise ValueError(f"image_id {image_id!r} holds a zero byte or half a letter, which HDF5 cannot store")
        if image_id in self._image_id:
            raise ValueError(f"image {image_id!r} is in the store already. Image ids must be unique.")
        with np.errstate(over="ignore"):  # what does not fit float16 is infinite and refused below
            row = _numbers(image_id, "features", features).astype(self.dtype)
        if row.ndim != 2 or row.shape[1] != self.dim:
            raise ValueError(f"image {image_id!r}: features have shape {row.shape}, wanted (region, {self.dim})")
        if not 1 <= len(row) <= self.max_regions:
            raise ValueError(
                f"image {image_id!r} has {len(row)} regions, wanted 1 to {self.max_regions}. "
                "Keep the best ones, or raise max_regions."
            )
        if not np.isfinite(row).all():
            raise ValueError(f"image {image_id!r}: features are NaN or infinite as {self.dtype}")
        return row

    def _check_column(
        self, image_id: str, name: str, values: ArrayLike | None, shape: tuple[int, ...]
    ) -> np.ndarray | None:
        """The values as they are stored: checked, cast and, if they go with regions, padded."""
        if values is None:
            return None
        array = _numbers(image_id, name, values)
        if array.shape != shape:
            raise ValueError(f"image {image_id!r}: {name} has shape {array.shape}, wanted {shape}")
        stored = _as_stored(image_id, name, array)
        if name == "image_size":
            return stored
        padded = np.zeros((self.max_regions, *shape[1:]), stored.dtype)
        padded[: len(stored)] = stored
        return padded

    def _finish(self, exception_type: type[BaseException] | None, *_: Any) -> None:
        """Add everything but the features, which are there already."""
        if exception_type is not None:
            return
        if not self._image_id:
            raise ValueError(f"no image was written to {self.path}")
        import h5py

        # A file name need not be UTF-8: Python keeps what is not as surrogates, the file as the bytes that they were.
        image_ids = [image_id.encode("utf-8", "surrogateescape") for image_id in self._image_id]
        self._file.create_dataset("image_id", data=image_ids, dtype=h5py.string_dtype())
        self._file["num_regions"] = np.array(self._num_regions, np.int32)
        self._file[CHECKSUM] = np.array(self._checksum, np.uint32)
        for name, rows in self._columns.items():
            self._file[name] = np.stack(rows)
        self._file.attrs.update(self._attributes)


def _numbers(image_id: str, name: str, values: ArrayLike) -> np.ndarray:
    """Values as an array of numbers; of a tensor too, wherever it is, with types that numpy does not have."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() and values.itemsize < 4 else values).numpy()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"image {image_id!r}: {name} is no array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"image {image_id!r}: {name} is {array.dtype}, wanted numbers")
    return array


def _as_stored(image_id: str, name: str, array: np.ndarray) -> np.ndarray:
    """Numbers in the type of their column, which must be able to hold them.

    Raises:
        ValueError: it cannot, or they are none that the column may have.
    """
    kind = np.dtype(COLUMNS[name])
    if not np.isfinite(array).all():
        raise ValueError(f"image {image_id!r}: {name} is NaN or infinite")
    if kind.kind == "i":
        limits = np.iinfo(kind.name)
        least = 1 if name == "image_size" else limits.min
        if array.size and not ((array == np.rint(array)) & (array >= least) & (array <= limits.max)).all():
            raise ValueError(
                f"image {image_id!r}: {name} is {array.tolist()!s:.80}; wanted whole numbers from {least} to "
                f"{limits.max}"
            )
        return array.astype(kind)
    with np.errstate(over="ignore"):
        stored = array.astype(kind)
    if not np.isfinite(stored).all():
        raise ValueError(f"image {image_id!r}: {name} is too large for {kind}")
    return stored


class RegionStore(ImageSource):
    """Reads a region store: any images, in any order, never the whole file.

    The file is opened once in each process that reads from it, so a store may be handed to `DataLoader` workers however
    they are started.

    Args:
        path: a file that `RegionStoreWriter` made.
        dtype: of the features that come out: float32, or as they are `stored`, which may be float16 and half as much to
            move; `xmodal.data.image_source.in_float32` makes float32 of them where they are used.

    Raises:
        FileNotFoundError: there is no such file, or one of the files that it is joined of is missing.
        ValueError: the file is damaged, or is not a region store of a version that can be read.

    >>> with RegionStoreWriter("train.h5", dim=3, extractor="by hand") as writer:
    ...     writer.write("cat", [[1, 0, 0], [0, 1, 0]], boxes=[[0, 0, 9, 9], [3, 3, 5, 5]], image_size=(10, 10))
    >>> store = RegionStore("train.h5")
    >>> store[store.index("cat")].shape, store.boxes(0)[1], store.image_size(0), store.validate()
    (torch.Size([2, 3]), tensor([3., 3., 5., 5.]), (10, 10), [])
    """

    def __init__(self, path: str | Path, dtype: Literal["float32", "stored"] = "float32") -> None:
        self.path = Path(path)
        if dtype not in ("float32", "stored"):
            raise ValueError(f"dtype must be float32 or stored, got {dtype!r}")
        self.dtype = dtype
        self._opened: StoreFile | None = None
        self._identity: str = ""
        self._identity = self._open().identity

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_identity": self._open().identity}

    def __repr__(self) -> str:
        return f"RegionStore({str(self.path)!r}): {len(self)} images, up to {self.max_regions} regions, dim {self.dim}"

    def __len__(self) -> int:
        return len(self.image_id)

    def __getitem__(self, index: int) -> Float[Tensor, "region dim"]:
        """The regions of one image, without padding."""
        return self.batch([index]).regions[0]

    def batch(self, indices: Sequence[int] | Tensor) -> RegionBatch:
        """The regions of some images, padded to the longest of them.

        Boxes come along as shares of the image, where the store has them and, if they are in pixels, image sizes.

        Args:
            indices: positions in the store, in any order, repeated or not. A repeated image is read once.

        Raises:
            IndexError: an index is not in the store.
            ValueError: there is no index, or they are no whole numbers.
        """
        opened = self._open()
        wanted = as_positions(indices, len(self), self.path)
        num_regions = opened.num_regions[wanted]
        longest = num_regions.max()
        # From numpy, which asks for huge pages: filling fresh memory of torch.empty takes four times as long.
        regions = np.empty((len(wanted), longest, self.dim), opened.features.dtype)
        rows, counts = wanted.tolist(), num_regions.tolist()
        previous = None
        for place in np.argsort(wanted).tolist():  # forward through the file
            if previous is not None and rows[place] == rows[previous]:
                regions[place] = regions[previous]
            else:
                count = counts[place]
                regions[place, :count] = opened.image(rows[place])[:count]
                if count < longest:
                    regions[place, count:] = 0  # whatever the file has there: NaN times 0 would be a gradient of NaN
            previous = place
        mask = np.arange(longest) < num_regions[:, None]
        boxes = opened.relative_boxes(wanted, mask)
        return RegionBatch(
            torch.from_numpy(regions if self.dtype == "stored" else regions.astype(np.float32, copy=False)),
            torch.from_numpy(mask),
            None if boxes is None else torch.from_numpy(boxes),
        )

    def boxes(self, index: int) -> Float[Tensor, "region 4"]:
        """x1 y1 x2 y2 of one image's regions, in the unit that `attributes["box_convention"]` names.

        Raises:
            KeyError: the store has no boxes.
        """
        return torch.from_numpy(self._regions_row("boxes", index))

    def class_id(self, index: int) -> Int[Tensor, "region"]:
        """What one image's regions are, in the numbers of the detector.

        Raises:
            KeyError: the store has no classes.
        """
        return torch.from_numpy(self._regions_row("class_id", index))

    def confidence(self, index: int) -> Float[Tensor, "region"]:
        """How sure the detector was of each region of one image.

        Raises:
            KeyError: the store has no confidences.
        """
        return torch.from_numpy(self._regions_row("confidence", index))

    def image_size(self, index: int) -> tuple[int, int]:
        """Width and height of one image, in pixels.

        Raises:
            KeyError: the store has no image sizes.
        """
        width, height = self._row("image_size", index).tolist()
        return width, height

    def index(self, image_id: str) -> int:
        """Where an image is in the store.

        Raises:
            KeyError: the image is not in the store.
            ValueError: two images of the store have the same name.
        """
        try:
            return self._open().position[image_id]
        except KeyError:
            raise KeyError(f"image {image_id!r} is not in {self.path}") from None

    @property
    def image_id(self) -> list[str]:
        """The name of every image, in order."""
        return self._open().image_id

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self._open().features.shape[2]

    @property
    def sizes(self) -> Mapping[str, int]:
        """The length of a feature vector, by the name that image encoders have for it."""
        return {"input_dim": self.dim}

    @property
    def has_regions(self) -> bool:
        """Yes."""
        return True

    @property
    def max_regions(self) -> int:
        """The most regions an image can have."""
        return self._open().features.shape[1]

    @property
    def attributes(self) -> dict[str, Any]:
        """What the writer noted: extractor, weights_hash, box_convention, created, ..."""
        return dict(self._open().file.attrs)

    @property
    def extractor(self) -> dict[str, Any]:
        """What made the features, as `Matcher` takes it: `{"name": ..., **options}`, as far as they were noted."""
        attributes = self.attributes
        return {"name": attributes["extractor"], **json.loads(attributes.get("extractor_options", "{}"))}

    def validate(self) -> list[str]:
        """Read everything and say what is wrong with it, one sentence a kind of problem; empty if all is well."""
        return list(find_problems(self._open(), self.path.name))

    def _regions_row(self, name: str, index: int) -> np.ndarray:
        """One image's row of a dataset that goes with the regions, without padding."""
        return self._row(name, index)[: self._open().num_regions[index]]

    def _row(self, name: str, index: int) -> np.ndarray:
        file = self._open().file
        if name not in file:
            raise KeyError(f"{self.path} holds no {name}")
        position = int(as_positions([index], len(self), self.path)[0])
        with damage_named(self.path):
            return file[name][position]

    def _open(self) -> StoreFile:
        # An HDF5 file that was open across a fork must not be read in the child, so the child opens its own.
        if self._opened is None or self._opened.process != os.getpid():
            opened = StoreFile(self.path)
            if self._identity and opened.identity != self._identity:
                raise StoreError(f"{self.path} was replaced by another store while it was in use. Start again.")
            self._opened = opened
        return self._opened
