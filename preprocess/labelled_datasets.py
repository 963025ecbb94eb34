"""Make an index of images with their classes, or features of the images of an index, for zero-shot retrieval.

The four data sets of deep metric learning, from the folders that their archives unpack to, or from the archive itself
(which is unpacked beside the index). Each is split by class as published, and its published counts are checked:

    python -m preprocess.labelled_datasets cub --input CUB_200_2011 --output DATA/cub.jsonl
    python -m preprocess.labelled_datasets cars --input FOLDER --output DATA/cars.jsonl
    python -m preprocess.labelled_datasets sop --input Stanford_Online_Products --output DATA/sop.jsonl
    python -m preprocess.labelled_datasets in-shop --input FOLDER --output DATA/in_shop.jsonl

Any folder that has one folder a class; here the first 41 classes are for training:

    python -m preprocess.labelled_datasets folder --input FOLDER --train-classes 41 --output DATA/mine.jsonl

An index is JSON lines with `path`, `class` and `split`; images stay where they are. `--dev-classes N` sets N classes of
the training split aside, for choosing settings. With features instead of pixels, training needs no GPU:

    python -m preprocess.labelled_datasets features --input DATA/mine.jsonl --output DATA/mine.h5
"""

from __future__ import annotations

import gzip
import os
import random
import shutil
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro
from tqdm import tqdm

from xmodal.data.atomic import check_writable, locked, refuse_inputs
from xmodal.data.labelled import (
    LabelledImage,
    image_transform,
    list_folder,
    load_labelled,
    save_features,
    save_index,
)
from xmodal.data.store_checks import check_regular
from xmodal.data.text import read_lines
from xmodal.entry import run_program

from .mat_annotations import read_annotations
from .skipped import write_skipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


EFFICIENTNET = "efficientnet-lite0"
"""The backbone whose weights come with a Python package; all others are torchvision's."""


class Count(NamedTuple):
    """How many images and classes a split has."""

    images: int
    classes: int


CUB_COUNTS = {"train": Count(5864, 100), "test": Count(5924, 100)}
CARS_COUNTS = {"train": Count(8054, 98), "test": Count(8131, 98)}
SOP_COUNTS = {"train": Count(59551, 11318), "test": Count(60502, 11316)}
IN_SHOP_COUNTS = {"train": Count(25882, 3997), "query": Count(14218, 3985), "gallery": Count(12612, 3985)}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the images are and where the index goes."""

    input: Path
    """The folder that the archive unpacks to, or the folder that holds it, or the archive."""
    output: Path
    """Index to write, .jsonl."""
    dev_classes: int = 0
    """Put this many classes of the training split, drawn at random, into a split of their own, dev."""
    seed: int = 0
    """Seed of that draw."""
    encoding: str | None = None
    """What the lists are written in, such as latin-1; without, UTF-8, or what a byte order mark says."""
    overwrite: bool = False
    """Replace an index that is there."""


@dataclass(frozen=True, kw_only=True)
class CUB(Source):
    """Caltech-UCSD Birds-200-2011: images.txt, image_class_labels.txt, images/ (CUB_200_2011.tgz)."""


@dataclass(frozen=True, kw_only=True)
class Cars(Source):
    """Cars196: cars_annos.mat and car_ims/ (car_ims.tgz); or devkit/, cars_test_annos_withlabels.mat, cars_train/ and
    cars_test/, as torchvision or Kaggle have them."""


@dataclass(frozen=True, kw_only=True)
class SOP(Source):
    """Stanford Online Products: Ebay_train.txt, Ebay_test.txt and folders of images (Stanford_Online_Products.zip)."""


@dataclass(frozen=True, kw_only=True)
class InShop(Source):
    """In-Shop Clothes Retrieval of DeepFashion: list_eval_partition.txt (also in Eval/) and img/ (also in Img/)."""


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Any folder that has one folder a class."""

    train_classes: int
    """How many classes, the first by name, are for training; the others are for testing."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of a backbone for the images of an index, or of a folder with one folder a class."""

    input: Path
    """The index, .jsonl, or the folder."""
    output: Path
    """File to write, .h5; images that are left out are listed, with the reason, in `<output>.skipped.txt`."""
    backbone: str = EFFICIENTNET
    """efficientnet-lite0, or torchvision's name for a network, such as resnet50, googlenet, vit_b_16."""
    weights: str = "DEFAULT"
    """Of a network of torchvision: its name for weights that are in its cache, or a file with the state dict."""
    resize: int = 256
    """Pixels of the shorter side of the resized image."""
    crop: int = 224
    """Side of the square that is cut out of its center."""
    square: bool = False
    """Stretch the image to a square instead of keeping its shape."""
    batch_size: int = 4
    """Images that go through the backbone at once; on a CPU few are faster, on a GPU take 128."""
    workers: int = 0
    """Processes that read images ahead."""
    device: str = "cpu"
    """Where the backbone computes."""
    strict: bool = False
    """Stop at the first image that cannot be read or computed instead of leaving it out."""
    overwrite: bool = False
    """Replace a file that is there."""


def main(config: Command) -> None:
    """Write the index, or the features; what stands in the way of the output is told before the work.

    Raises:
        FileExistsError: the output is there and may not be replaced.
        FileNotFoundError: the input is not there.
        OSError: the output cannot be written.
        ValueError: the output is read, too, or something is wrong with the input.
    """
    if os.path.lexists(config.output) and not config.overwrite:
        raise FileExistsError(f"{config.output} exists. Pass --overwrite to replace it, or choose another --output.")
    if not config.input.exists():
        raise FileNotFoundError(f"there is nothing at {config.input}")
    refuse_inputs(config.output, [config.input])
    check_writable(config.output)
    if isinstance(config, Features):
        _write_features(config)
    else:
        _write_index(config)


def _write_index(config: Source) -> None:
    """Read a data set's lists, make sure that its images are there, and write the index."""
    folder = config.input if config.input.is_dir() else unpack(config.input, _folder_beside(config.output))
    images = _set_dev_aside(READERS[type(config)](folder, config), config.dev_classes, config.seed)
    check_files(images)
    save_index(config.output, images)
    for split, (count, classes) in count_splits(images).items():
        print(f"{config.output}: {split}, {count} images of {classes} classes")


def _folder_beside(output: Path) -> Path:
    """Where an archive is unpacked to: the index's name without its ending.

    Raises:
        ValueError: the index has none.
    """
    if not output.suffix:
        raise ValueError(
            f"--output {output} has no ending, and {output} is where the archive would be unpacked: call it "
            f"{output}.jsonl"
        )
    return output.with_suffix("")


def _write_features(config: Features) -> None:
    """Look at every image once, whatever its split."""
    from xmodal.encoders.backbone import BACKBONES
    from xmodal.encoders.region_extractor import hash_weights
    from xmodal.names import build

    from .skipping import embed_good

    transform = image_transform(train=False, resize=config.resize, crop=config.crop, square=config.square)
    images = load_labelled(config.input, transform=transform)
    refuse_inputs(config.output, [config.weights, *images.image_id])
    options = {"name": "torchvision", "network": config.backbone, "weights": config.weights}
    backbone = build("backbone", BACKBONES, {"name": EFFICIENTNET} if config.backbone == EFFICIENTNET else options)
    kept = embed_good(
        backbone.to(config.device),
        images,
        config.device,
        batch_size=config.batch_size,
        workers=config.workers,
        strict=config.strict,
        progress=True,
    )
    made_by = {"backbone": config.backbone, "weights_hash": hash_weights(backbone), "transform": str(transform)}
    save_features(config.output, kept.features, kept.images, made_by)
    skipped = write_skipped(config.output, kept.skipped)
    print(f"{config.output}: {len(kept.features)} images, {kept.features.shape[1]} dims; {skipped}")


def read_cub(folder: Path, config: Source) -> list[LabelledImage]:
    """The first 100 classes are for training."""
    root = _root_with(folder, "images.txt", "image_class_labels.txt")
    labels = root / "image_class_labels.txt"
    classes = {number: _class_number(label, labels) for number, label in _rows(labels, 2, config)}
    images = []
    for number, path in _rows(root / "images.txt", 2, config):
        if number not in classes:
            raise ValueError(f"{root / 'image_class_labels.txt'} has no line for image {number}; is the file cut off?")
        name = Path(path).parent.name
        split = "train" if classes[number] <= 100 else "test"
        images.append(LabelledImage(root / "images" / path, name, split))
    return _check_counts(root / "images.txt", images, CUB_COUNTS)


def read_cars(folder: Path, config: Source) -> list[LabelledImage]:
    """The first 98 classes are for training, whichever layout."""
    one_list, car_ims, train, test = (
        _find_below(folder, name, beside=config.input)
        for name in ("cars_annos.mat", "car_ims", "cars_train_annos.mat", "cars_test_annos_withlabels.mat")
    )
    if one_list and (car_ims or not (train and test)):  # Kaggle has this list beside the folders of the other layout
        source, lists = one_list, [((car_ims or one_list).parent, one_list, "relative_im_path")]
    elif train and test:
        source = train.parent
        lists = [
            (_cars_folder(folder, "cars_train"), train, "fname"),
            (_cars_folder(folder, "cars_test"), test, "fname"),
        ]
    elif train:
        raise FileNotFoundError(
            f"{folder} has no cars_test_annos_withlabels.mat, in {train.parent.name} or beside it; the labels of the "
            "test images come in a file of their own"
        )
    else:
        raise FileNotFoundError(
            f"{folder} has no cars_annos.mat, nor has a folder in it; nor the folder devkit of the other layout, with "
            "cars_train_annos.mat"
        )
    listed = [(images / name, label) for images, file, field in lists for name, label in read_annotations(file, field)]
    return _check_counts(
        source,
        [LabelledImage(path, f"{label:03}", "train" if label <= 98 else "test") for path, label in listed],
        CARS_COUNTS,
    )


def _cars_folder(folder: Path, name: str) -> Path:
    """The folder of images, which Kaggle puts into another one of the same name."""
    found = _find_below(folder, name) or folder / name
    return found / name if (found / name).is_dir() else found


def read_sop(folder: Path, config: Source) -> list[LabelledImage]:
    """Each split has a list of its own."""
    root = _root_with(folder, "Ebay_train.txt", "Ebay_test.txt")
    images = []
    for split in ("train", "test"):
        source = root / f"Ebay_{split}.txt"
        listed = _rows(source, 4, config, "image_id class_id super_class_id path")
        images += [
            LabelledImage(root / path, f"{_class_number(label, source):05}", split) for _, label, _, path in listed
        ]
    return _check_counts(root, images, SOP_COUNTS)


def read_in_shop(folder: Path, config: Source) -> list[LabelledImage]:
    """Test images are queries or gallery."""
    name = "list_eval_partition.txt"
    places = [place / name for place in (folder, folder / "Eval", *sorted(folder.glob("*/Eval")))]
    source = next((place for place in places if place.is_file()), None)
    if source is None:
        raise FileNotFoundError(f"{folder} has no {name}, nor has Eval in it; it comes with the In-Shop benchmark")
    top = source.parent.parent if source.parent.name == "Eval" else source.parent
    root = top / "Img" if (top / "Img").is_dir() else top
    listed = list(_rows(source, 3, config, "image_name item_id evaluation_status"))
    images = [LabelledImage(root / path, item, split) for path, item, split in listed]
    return _check_counts(source, images, IN_SHOP_COUNTS)


def read_folder(folder: Path, config: Source) -> list[LabelledImage]:
    """Classes are split in the order of their names.

    >>> for name in ("gull/1.jpg", "wren/1.jpg"):
    ...     Path("birds", name).parent.mkdir(parents=True, exist_ok=True)
    ...     Path("birds", name).touch()
    >>> config = Folder(input=Path("birds"), output=Path("birds.jsonl"), train_classes=1)
    >>> [(image.class_name, image.split) for image in read_folder(config.input, config)]
    [('gull', 'train'), ('wren', 'test')]
    """
    assert isinstance(config, Folder)
    images = list_folder(folder)
    classes = sorted({image.class_name for image in images})
    if not 0 < config.train_classes < len(classes):
        raise ValueError(
            f"--train-classes is {config.train_classes} and {folder} has {len(classes)} classes; wanted at least one "
            "for training and one for testing"
        )
    train = set(classes[: config.train_classes])
    return [replace(image, split="train" if image.class_name in train else "test") for image in images]


READERS = {CUB: read_cub, Cars: read_cars, SOP: read_sop, InShop: read_in_shop, Folder: read_folder}


def _set_dev_aside(images: list[LabelledImage], dev_classes: int, seed: int) -> list[LabelledImage]:
    """Move some classes of the training split, drawn at random, to a split of their own."""
    classes = sorted({image.class_name for image in images if image.split == "train"})
    if not 0 <= dev_classes < len(classes):
        raise ValueError(f"--dev-classes is {dev_classes}; wanted fewer than the {len(classes)} training classes")
    dev = set(random.Random(seed).sample(classes, dev_classes))
    return [replace(image, split="dev") if image.class_name in dev else image for image in images]


def count_splits(images: Iterable[LabelledImage]) -> dict[str, Count]:
    """How many images and classes each split has.

    >>> count_splits([LabelledImage(Path("1.jpg"), "gull", "train"), LabelledImage(Path("2.jpg"), "gull", "train")])
    {'train': Count(images=2, classes=1)}
    """
    images = list(images)
    counted = Counter(image.split for image in images)
    classes = Counter(split for split, _ in {(image.split, image.class_name) for image in images})
    return {split: Count(count, classes[split]) for split, count in counted.items()}


def _check_counts(source: Path, images: list[LabelledImage], wanted: dict[str, Count]) -> list[LabelledImage]:
    """The images, if they are as many as were published.

    Raises:
        ValueError: they are not; the message says which split has how many.
    """
    seen = count_splits(images)
    if seen != wanted:
        wrong = [split for split in {**wanted, **seen} if seen.get(split) != wanted.get(split)]
        told = "; ".join(
            "split {}: {} images of {} classes, published are {} of {}".format(
                split, *seen.get(split, Count(0, 0)), *wanted.get(split, Count(0, 0))
            )
            for split in wrong
        )
        raise ValueError(f"{source} is cut off, or of another data set. {told}. Download or unpack it again.")
    return images


def check_files(images: Sequence[LabelledImage]) -> None:
    """Make sure that every image file is there, listing each folder once.

    Raises:
        FileNotFoundError: some are not; the message says how many and names the first.

    >>> check_files([LabelledImage(Path("1.jpg"), "gull", "train")])
    Traceback (most recent call last):
    ...
    FileNotFoundError: 1 of 1 images are not there, the first one 1.jpg. Was the archive unpacked to its ...
    """
    wanted: defaultdict[Path, list[Path]] = defaultdict(list)
    for image in images:
        wanted[image.path.parent].append(image.path)
    missing = []
    for folder, files in tqdm(wanted.items(), "looking for the images", unit="folder", delay=2):
        there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        missing += [file for file in files if file.name not in there]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(images)} images are not there, the first one {min(missing)}. "
            "Was the archive unpacked to its end?"
        )


def _root_with(folder: Path, *names: str, beside: Path | None = None) -> Path:
    """The folder that has files of these names: this one, one in it, or the one that holds an archive.

    Raises:
        FileNotFoundError: there is none.
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    for candidate in (folder, *inside, *([beside.parent] if beside else [])):
        if all((candidate / name).exists() for name in names):
            return candidate
    raise FileNotFoundError(f"{folder} has no {' and '.join(names)}, nor has a folder in it")


def _find_below(folder: Path, name: str, beside: Path | None = None) -> Path | None:
    """What has a name in a folder, at most three folders deep, or beside an archive; the one least deep."""
    for pattern in (name, f"*/{name}", f"*/*/{name}", f"*/*/*/{name}"):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    return beside.parent / name if beside and (beside.parent / name).exists() else None


def _rows(path: Path, columns: int, config: Source, heading: str | None = None) -> Iterable[list[str]]:
    """The lines of a list, split at spaces, less blank ones; with a heading, those after it.

    Raises:
        ValueError: a line has another number of columns, or the heading is missing.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path, config.encoding), 1) if line.strip()]
    if heading is not None:
        first = [line.split() for _, line in lines[:2]]
        if heading.split() not in first:
            raise ValueError(f"{path} lacks the heading {heading!r}; it starts with {[line for _, line in lines[:1]]}")
        lines = lines[first.index(heading.split()) + 1 :]
    for number, line in lines:
        cells = line.split()
        if len(cells) != columns:
            raise ValueError(f"{path}, line {number}: wanted {columns} columns, found {line!r}; is the file cut off?")
        yield cells


def _class_number(label: str, path: Path) -> int:
    if not label.isdecimal():
        raise ValueError(f"{path}: the class {label!r} is no whole number; is the file damaged?")
    return int(label)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar or zip archive into a folder; the folder has its name only when it is whole.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: the file is no archive, no ordinary file, or is cut off.

    >>> with zipfile.ZipFile("birds.zip", "w") as archive:
    ...     archive.writestr("images/1.jpg", b"")
    >>> sorted(path.as_posix() for path in unpack(Path("birds.zip"), Path("birds")).rglob("*"))
    ['birds/images', 'birds/images/1.jpg']
    """
    check_regular(archive, "tar or zip archive")
    if folder.exists():
        raise FileExistsError(f"{folder}, where {archive} would be unpacked, exists; give it as --input, or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    with locked(folder):
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        try:
            _extract(archive, partial)
        except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise ValueError(f"{archive} is not a tar or zip archive, or is cut off: {error}") from error
        return partial.rename(folder)


def _extract(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for member in tqdm(opened.infolist(), f"unpacking {archive.name}", unit="file", delay=2):
                opened.extract(member, folder)
    else:
        with tarfile.open(archive) as opened:
            for entry in tqdm(opened, f"unpacking {archive.name}", unit="file", delay=2):
                opened.extract(entry, folder, filter="data")


Command = (
    Annotated[CUB, tyro.conf.subcommand("cub")]
    | Annotated[Cars, tyro.conf.subcommand("cars")]
    | Annotated[SOP, tyro.conf.subcommand("sop")]
    | Annotated[InShop, tyro.conf.subcommand("in-shop")]
    | Annotated[Folder, tyro.conf.subcommand("folder")]
    | Annotated[Features, tyro.conf.subcommand("features")]
)

if __name__ == "__main__":
    run_program(main)
