"""Images with class labels, for retrieval among classes that training never saw.

Three sources say the same (see `load_labelled`):

- an index, JSON lines with `path`, `class` and `split`, as `python -m preprocess.labelled_datasets` writes it; images
  stay where they are,
- a folder with one folder a class,
- an HDF5 file of precomputed features, as `python -m preprocess.labelled_datasets features` writes it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from xmodal.data.atomic import written_whole
from xmodal.data.images import IMAGE_SUFFIXES, read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jaxtyping import Bool, Float, Int, UInt8
    from PIL import Image
    from torch import Tensor

QUERY = "query"
"""The split whose images are looked up among all others, where a data set says which those are (In-Shop)."""

FEATURE_FORMAT = "xmodal labelled features"


class LabelledBatch(NamedTuple):
    """Some images, or their features, with their classes."""

    images: UInt8[Tensor, "image 3 height width"] | Float[Tensor, "image dim"]
    labels: Int[Tensor, "image"]


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One line of an index: an image file, its class by name, and the split it is in."""

    path: Path
    class_name: str
    split: str


class LabelledSet(Dataset[LabelledBatch]):
    """Images with labels 0 to C - 1, the position of the class's name among the sorted names.

    A `DataLoader` gets whole batches from `__getitems__`, so it needs no collating.

    Attributes:
        image_id: what each image is called, its path if it has one.
        labels: class of each image.
        class_names: name of each class.
        splits: split of each image.

    >>> birds = LabelledSet(["1.jpg", "2.jpg", "3.jpg"], ["wren", "gull", "wren"], ["query", "gallery", "gallery"])
    >>> birds.class_names, birds.labels, birds.query
    (['gull', 'wren'], tensor([1, 0, 1]), tensor([ True, False, False]))
    """

    def __init__(self, image_id: Sequence[str], class_of: Sequence[str], splits: Sequence[str]) -> None:
        self.image_id, self.splits = list(image_id), list(splits)
        self.class_names = sorted(set(class_of))
        number = {name: label for label, name in enumerate(self.class_names)}
        self.labels: Int[Tensor, "image"] = torch.tensor([number[name] for name in class_of])

    @property
    def query(self) -> Bool[Tensor, "image"] | None:
        """Which images are queries and which are the gallery; None where every image is both."""
        return torch.tensor([split == QUERY for split in self.splits]) if QUERY in self.splits else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledBatch:
        """A batch of one image."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> LabelledBatch:
        """The images in the order asked for."""
        raise NotImplementedError


class LabelledImages(LabelledSet):
    """Image files with their classes, read when they are asked for.

    What a random transform draws depends on `seed` and on the indices of the batch alone: a resumed run sees the same
    pixels as one that never stopped, with any number of workers, and an image that comes twice is cropped twice.

    Args:
        images: what an index or a folder lists.
        transform: an image to a uint8 tensor of a size that all images share; see `image_transform`.
        seed: of what a random transform draws.

    >>> from PIL import Image
    >>> Image.new("RGB", (40, 30), "red").save("1.png")
    >>> transform = image_transform(train=True, resize=24, crop=16)
    >>> batch = LabelledImages([LabelledImage(Path("1.png"), "wren", "train")], transform)[0]
    >>> batch.images.shape, batch.images.dtype, batch.labels
    (torch.Size([1, 3, 16, 16]), torch.uint8, tensor([0]))
    """

    def __init__(
        self,
        images: Sequence[LabelledImage],
        transform: Callable[[Image.Image], UInt8[Tensor, "3 height width"]],
        seed: int = 0,
    ) -> None:
        names = [image.class_name for image in images]
        super().__init__([str(image.path) for image in images], names, [image.split for image in images])
        self.transform, self.seed = transform, seed

    def __getitems__(self, indices: Sequence[int]) -> LabelledBatch:
        """The images in the order asked for.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: a file is not an image, or is damaged.
        """
        drawn = np.random.SeedSequence([self.seed, *map(int, indices)]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(drawn[0]))
            pixels = [self.transform(read_image(self.image_id[index])) for index in indices]
        return LabelledBatch(torch.stack(pixels), self.labels[torch.as_tensor(indices)])


class LabelledFeatures(LabelledSet):
    """Precomputed features with their classes, in memory.

    Args:
        features: one row an image.
        image_id: what each image is called.
        class_of: name of each image's class.
        splits: split of each image.

    >>> features = LabelledFeatures(torch.eye(3), ["1.jpg", "2.jpg", "3.jpg"], ["wren", "gull", "wren"], ["train"] * 3)
    >>> features.__getitems__([2, 0])
    LabelledBatch(images=tensor([[0., 0., 1.],
            [1., 0., 0.]]), labels=tensor([1, 1]))
    """

    def __init__(
        self,
        features: Float[Tensor, "image dim"],
        image_id: Sequence[str],
        class_of: Sequence[str],
        splits: Sequence[str],
    ) -> None:
        super().__init__(image_id, class_of, splits)
        self.features = features

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.features.shape[1]

    def __getitems__(self, indices: Sequence[int]) -> LabelledBatch:
        """The features in the order asked for, float32."""
        chosen = torch.as_tensor(indices)
        return LabelledBatch(self.features[chosen].float(), self.labels[chosen])


def load_labelled(
    path: str | Path,
    split: str | Sequence[str] | None = None,
    *,
    transform: Callable[[Image.Image], Tensor] | None = None,
    seed: int = 0,
) -> LabelledImages | LabelledFeatures:
    """A split of a labelled data set.

    Args:
        path: an index (`.jsonl`), a folder with one folder a class, or a file of features (`.h5`, `.hdf5`).
        split: the split, or several whose images belong together, such as `["query", "gallery"]`; None for all
            images. The images of a folder have the split `all`.
        transform: for image files; see `image_transform`.
        seed: of what a random transform draws.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the file is none of these or is damaged, no image is in the split, or image files come without a
            transform.

    >>> birds = LabelledSet(["1.jpg", "2.jpg"], ["wren", "gull"], ["train", "test"])
    >>> save_features("birds.h5", torch.eye(2), birds, {})
    >>> test = load_labelled("birds.h5", "test")
    >>> test.image_id, test.class_names, test[0].images
    (['2.jpg'], ['gull'], tensor([[0., 1.]]))
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no labelled images at {path}. `python -m preprocess.labelled_datasets --help` lists what makes them."
        )
    wanted = [split] if isinstance(split, str) else split
    if path.suffix in (".h5", ".hdf5"):
        return _load_features(path, wanted)
    images = list_folder(path) if path.is_dir() else load_index(path)
    if transform is None:
        raise ValueError(f"{path} names image files, which need a transform; pass transform=image_transform(...)")
    rows = _rows_in(path, [image.split for image in images], wanted)
    return LabelledImages([images[row] for row in rows], transform, seed)


def check_class_disjoint(train: LabelledSet, test: LabelledSet) -> None:
    """Make sure that no class is in both sets.

    Raises:
        ValueError: some are; the message names them.

    >>> train = LabelledSet(["1.jpg", "2.jpg"], ["wren", "gull"], ["train"] * 2)
    >>> check_class_disjoint(train, LabelledSet(["3.jpg"], ["gull"], ["test"]))
    Traceback (most recent call last):
    ...
    ValueError: 1 classes are in the training images and in those for evaluation, ...: gull. ...
    """
    leaked = sorted(set(train.class_names) & set(test.class_names))
    if leaked:
        raise ValueError(
            f"{len(leaked)} classes are in the training images and in those for evaluation, so it would not be "
            f"zero-shot: {', '.join(leaked[:5])}{', ...' if len(leaked) > 5 else ''}. Give each class one split."
        )


def list_folder(folder: Path, split: str = "all") -> list[LabelledImage]:
    """Every image of a folder that has one folder a class, sorted by class and name.

    Raises:
        ValueError: a class has no image, or there is no class.

    >>> from PIL import Image
    >>> for name in ("gulls/1.png", "wrens/1.png", "wrens/2.png"):
    ...     Path("birds", name).parent.mkdir(parents=True, exist_ok=True)
    ...     Image.new("RGB", (4, 4)).save(Path("birds", name))
    >>> [(image.path.as_posix(), image.class_name) for image in list_folder(Path("birds"))]
    [('birds/gulls/1.png', 'gulls'), ('birds/wrens/1.png', 'wrens'), ('birds/wrens/2.png', 'wrens')]
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    images = []
    for directory in classes:
        files = sorted(file for file in directory.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise ValueError(f"{directory} has no image (known: {' '.join(sorted(IMAGE_SUFFIXES))}); remove the folder")
        images += [LabelledImage(file, directory.name, split) for file in files]
    if not images:
        raise ValueError(f"{folder} has no folders; wanted one folder a class, with its images inside")
    return images


def load_index(path: str | Path) -> list[LabelledImage]:
    """Read an index: JSON lines with `path`, `class` and `split`; a relative path starts at the index's folder.

    Raises:
        ValueError: a line is not such an object, or there is none. The message names the file and the line.

    >>> save_index("birds.jsonl", [LabelledImage(Path("gulls/1.jpg"), "gull", "train")])
    >>> image = load_index("birds.jsonl")[0]
    >>> image.path.as_posix(), image.class_name, image.split
    ('gulls/1.jpg', 'gull', 'train')
    """
    path = Path(path)
    with path.open("rb") as lines:
        images = [_parse_line(line, path, number) for number, line in enumerate(lines, start=1)]
    if not images:
        raise ValueError(f"{path} is empty; `python -m preprocess.labelled_datasets --help` lists what makes an index")
    return images


def save_index(path: str | Path, images: Iterable[LabelledImage]) -> None:
    """Write an index as `load_index` reads it; the paths of images in its folder are kept relative to it.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_index(folder / "birds.jsonl", [LabelledImage(folder / "gulls" / "1.jpg", "gull", "train")])
    >>> (folder / "birds.jsonl").read_text()
    '{"path": "gulls/1.jpg", "class": "gull", "split": "train"}\\n'
    """
    folder = Path(path).absolute().parent
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for image in images:
            where = image.path.absolute()
            where = where.relative_to(folder) if where.is_relative_to(folder) else where
            record = {"path": where.as_posix(), "class": image.class_name, "split": image.split}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def save_features(
    path: str | Path, features: Float[Tensor, "image dim"], images: LabelledSet, attributes: dict[str, str]
) -> None:
    """Write the features of a set's images as `load_labelled` reads them.

    Args:
        path: file to write. Its datasets: `features` (image, dim), `label` (image,), `class_name` (class,), `image_id`
            and `split` (image,).
        features: one row an image.
        images: the set they were computed from.
        attributes: where they come from.

    >>> birds = LabelledSet(["1.jpg", "2.jpg"], ["wren", "gull"], ["test"] * 2)
    >>> save_features("birds.h5", torch.eye(2), birds, {"backbone": "resnet50"})
    >>> load_labelled("birds.h5").dim
    2
    """
    import h5py

    with written_whole(path) as temporary, h5py.File(temporary, "w") as file:
        file["features"] = features.numpy()
        file["label"] = images.labels.numpy()
        for name, texts in (
            ("class_name", images.class_names),
            ("image_id", images.image_id),
            ("split", images.splits),
        ):
            file.create_dataset(name, data=texts, dtype=h5py.string_dtype())
        file.attrs.update({"format": FEATURE_FORMAT, **attributes})


def image_transform(
    *, train: bool, resize: int = 256, crop: int = 224, square: bool = False
) -> Callable[[Image.Image], UInt8[Tensor, "3 crop crop"]]:
    """The published preprocessing: resize, then a random crop and flip for training or the center crop for testing.

    Pixels stay uint8: a backbone scales and normalizes them as it was trained to see them.

    Args:
        train: whether the crop is random and half the images are mirrored.
        resize: pixels of the shorter side, or of both if `square`.
        crop: side of the square that is cut out, in pixels; 227 and 224 are usual.
        square: whether the image is stretched to a square, as ECAML does, instead of keeping its shape.

    Raises:
        ValueError: the crop is larger than the image or not positive.

    >>> from PIL import Image
    >>> image_transform(train=False)(Image.new("RGB", (500, 375))).shape
    torch.Size([3, 224, 224])
    """
    from torchvision.transforms import v2

    if not 0 < crop <= resize:
        raise ValueError(f"crop is {crop} and resize {resize}; wanted 0 < crop <= resize")
    cut = [v2.RandomCrop(crop), v2.RandomHorizontalFlip()] if train else [v2.CenterCrop(crop)]
    return v2.Compose([v2.Resize([resize, resize] if square else [resize]), *cut, v2.PILToTensor()])


def _parse_line(line: bytes, path: Path, number: int) -> LabelledImage:
    try:
        record = json.loads(line)
        if sorted(record) != ["class", "path", "split"] or not all(isinstance(v, str) for v in record.values()):
            raise ValueError(f"found {line[:80]!r}")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}, line {number}: wanted a JSON object with the strings path, class and split; {error}"
        ) from error
    return LabelledImage(path.parent / record["path"], record["class"], record["split"])


def _load_features(path: Path, wanted: Sequence[str] | None) -> LabelledFeatures:
    import h5py

    try:
        file = h5py.File(path)
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file, or is cut off: {error}") from error
    with file:
        columns = _read_columns(path, file)
        rows = _rows_in(path, columns["split"], wanted)
        # One read of everything and a choice in memory is far faster than h5py's reading of chosen rows.
        features = torch.from_numpy(file["features"][:][rows])  # type: ignore[index]
    if not features.isfinite().all():
        row = int(rows[int((~features.isfinite().all(dim=1)).nonzero()[0])])
        raise ValueError(f"{path}: the features of row {row} ({columns['image_id'][row]}) are not finite")
    return LabelledFeatures(
        features, *([columns[name][row] for row in rows] for name in ("image_id", "class_of", "split"))
    )


def _read_columns(path: Path, file: Any) -> dict[str, list[str]]:
    """Names of the images, of their classes and of their splits; the last two have defaults."""
    missing = [name for name in ("features", "label", "image_id") if name not in file]
    if missing:
        raise ValueError(f"{path} lacks the datasets {missing}; it has {sorted(file)}. Wanted labelled features.")
    labels, count = file["label"][:], len(file["features"])
    if "class_name" in file:
        names = file["class_name"].asstr()[:].tolist()
    else:  # with leading zeros names sort as numbers do
        names = [f"{label:06}" for label in range(labels.max(initial=-1) + 1)]
    if not ((labels >= 0) & (labels < len(names))).all():
        raise ValueError(f"{path}: labels are {labels.min()} to {labels.max()}; wanted 0 to {len(names) - 1}")
    columns = {
        "class_of": [names[label] for label in labels],
        "image_id": file["image_id"].asstr()[:].tolist(),
        "split": file["split"].asstr()[:].tolist() if "split" in file else ["all"] * count,
    }
    for name, column in columns.items():
        if len(column) != count:
            raise ValueError(f"{path}: features has {count} rows and {name} {len(column)}; wanted as many")
    return columns


def _rows_in(path: Path, splits: Sequence[str], wanted: Sequence[str] | None) -> Int[np.ndarray, "row"]:
    """Which rows are in the splits that are wanted; each of these must have some."""
    counts = Counter(splits)
    for split in wanted or ():
        if split not in counts:
            raise ValueError(f"{path} has no image of split {split!r}; its splits are {dict(counts)}")
    return np.flatnonzero([wanted is None or split in wanted for split in splits])
