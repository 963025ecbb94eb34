"""Make region stores of COCO's annotated objects, for controlled studies and for machines without a detector.

A region is an object: its class, one-hot (80), and its box as shares of width and height (x1 y1 x2 y2 area), so 85
numbers. Images without an object are left out, together with their captions, and counted.

From the official files, with splits drawn at random:

    python -m preprocess.coco_annotations official --instances instances_val2017.json \\
        --captions captions_val2017.json --dev 500 --test 1000 --output DIR

From a folder with `images.jsonl` (an image a line: image_id, split, captions, class_id, boxes) and `classes.json`:

    python -m preprocess.coco_annotations compact --input FOLDER --output DIR

Either writes DIR/train.h5, DIR/dev.h5, DIR/test.h5, DIR/captions.jsonl and DIR/vocabulary.json.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from xmodal.data import Caption, RegionStoreWriter, Vocabulary, save_captions
from xmodal.data.atomic import locked, refuse_inputs
from xmodal.data.split import CAPTIONS, VOCABULARY
from xmodal.data.text import parse_json, read_lines, read_text
from xmodal.entry import run_program

from .image_ids import our_split
from .manifest import MANIFEST, note_written
from .splits import draw_splits, plain_split

if TYPE_CHECKING:
    from collections.abc import Iterable


CLASSES, IMAGES = "classes.json", "images.jsonl"
"""The files of the compact form."""

FAR = 1e9
"""Widths of an image that nothing in it is away."""

WHOLE_IMAGE = -1
"""Class id of the region for the whole image."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What to write, whatever is read."""

    output: Path
    """Folder for the stores, the captions and the vocabulary."""
    max_regions: int = 36
    """Keep this many objects of an image, the largest."""
    whole_image: bool = False
    """Put a region for the whole image first: how often each class occurs, as log(1 + count), and the full box."""
    overwrite: bool = False
    """Replace stores that are there."""


@dataclass(frozen=True, kw_only=True)
class Official(Output):
    """COCO's own annotation files."""

    instances: tuple[Path, ...]
    """instances_*.json, one or several."""
    captions: tuple[Path, ...]
    """captions_*.json of the same images."""
    dev: int = 1000
    """How many images to draw for the dev split."""
    test: int = 1000
    """How many images to draw for the test split; the others are for training."""
    seed: int = 0
    """Seed of the draw."""


@dataclass(frozen=True, kw_only=True)
class Compact(Output):
    """A folder with images.jsonl and classes.json."""

    input: Path
    """The folder."""


@dataclass(frozen=True)
class AnnotatedImage:
    """What is known of one image."""

    image_id: str
    split: str
    captions: list[Caption]
    class_id: list[int]
    boxes: list[list[float]]
    """x1 y1 x2 y2, in shares of width and height."""


def main(config: Source) -> None:
    """Read the annotations and write stores, captions and vocabulary."""
    if isinstance(config, Official):
        read = (*config.instances, *config.captions)
        try:
            images, num_classes = _read_official(config)
        except (KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
            files = ", ".join(map(str, read))
            raise ValueError(f"{files}: what is said of an image is not as COCO says it ({error!r})") from error
    else:
        read = (config.input / CLASSES, config.input / IMAGES)
        images, num_classes = _read_compact(config.input)
    names = [CAPTIONS, VOCABULARY, MANIFEST, *(f"{split}.h5" for split in {image.split for image in images})]
    for name in names:
        refuse_inputs(config.output / name, read)
    with locked(config.output / CAPTIONS):  # for all files of the folder
        write(images, num_classes, config)


def _read_official(config: Official) -> tuple[list[AnnotatedImage], int]:
    """Join instances and captions by image id, and draw the splits."""
    instances = [_read_json(path, ("images", "annotations", "categories")) for path in config.instances]
    categories = sorted({category["id"] for file in instances for category in file["categories"]})
    class_of = {category: number for number, category in enumerate(categories)}
    sizes = {image["id"]: (image["width"], image["height"]) for file in instances for image in file["images"]}
    objects = _by_image(annotation for file in instances for annotation in file["annotations"])
    captions = _by_image(
        annotation for path in config.captions for annotation in _read_json(path, ("annotations",))["annotations"]
    )
    common = sorted(sizes.keys() & captions.keys())
    print(f"{len(sizes)} images in the instances, {len(captions)} in the captions, {len(common)} in both")
    splits = draw_splits(list(map(str, common)), dev=config.dev, test=config.test, seed=config.seed)
    images = [
        AnnotatedImage(
            image_id=str(image),
            split=split,
            captions=[Caption(str(image), str(a["id"]), _sentence(a), split) for a in captions[image]],
            class_id=[class_of[a["category_id"]] for a in objects.get(image, [])],
            boxes=[_relative(a["bbox"], sizes[image]) for a in objects.get(image, [])],
        )
        for image, split in zip(common, splits.values(), strict=True)
    ]
    return images, len(categories)


def _by_image(annotations: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    grouped = defaultdict(list)
    for annotation in annotations:
        grouped[annotation["image_id"]].append(annotation)
    return grouped


def _sentence(annotation: dict[str, Any]) -> str:
    if not isinstance(annotation["caption"], str):
        raise TypeError(f"the caption {annotation['caption']!r} is no text")
    return annotation["caption"]


def _relative(box: list[float], size: tuple[int, int]) -> list[float]:
    """COCO's x y width height in pixels as x1 y1 x2 y2 in shares of the image."""
    if len(box) != 4:
        raise TypeError(f"the box {box!r} is not x, y, width and height")
    (x, y, w, h), (width, height) = box, size
    shares = [x / width, y / height, (x + w) / width, (y + h) / height]
    if not all(map(_is_share, shares)):
        raise TypeError(f"the box {box!r} is nowhere in an image of {width} x {height}")
    return shares


def _read_compact(folder: Path) -> tuple[list[AnnotatedImage], int]:
    """Read images.jsonl and classes.json."""
    classes = _read_json(folder / CLASSES)
    if not isinstance(classes, list) or not classes:
        raise ValueError(f"{folder / CLASSES} holds {classes!r:.80}, wanted a list of names of classes")
    path = folder / IMAGES
    lines = enumerate(read_lines(path), start=1)
    images = [_parse_compact(line, f"{path}, line {number}", len(classes)) for number, line in lines]
    return images, len(classes)


def _parse_compact(line: str, where: str, num_classes: int) -> AnnotatedImage:
    try:
        record = parse_json(line, "it")
        identity, split = str(record["image_id"]), plain_split(our_split(record["split"]))
        captions = [Caption(identity, str(c["id"]), _sentence(c), split) for c in record["captions"]]
        _check_objects(record["class_id"], record["boxes"], num_classes)
        return AnnotatedImage(identity, split, captions, record["class_id"], record["boxes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: {error!r}") from error


def _check_objects(class_id: Any, boxes: Any, num_classes: int) -> None:
    """Refuse classes and boxes that are none, or not as many as each other.

    Raises:
        ValueError: saying what is wrong.
    """
    if not isinstance(class_id, list) or not isinstance(boxes, list) or len(class_id) != len(boxes):
        raise ValueError(f"class_id is {class_id!r:.60} and boxes {boxes!r:.60}, wanted two lists of the same length")
    for number in class_id:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < num_classes:
            raise ValueError(f"class_id has {number!r:.60}, wanted whole numbers from 0 to {num_classes - 1}")
    for box in boxes:
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_share, box)):
            raise ValueError(f"the box {box!r:.80} is not x1 y1 x2 y2 in shares of the image")


def _is_share(value: Any) -> bool:
    """Whether a value is a number that may say where something is in an image, perhaps beyond its edge."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < FAR  # which NaN is not


def write(images: list[AnnotatedImage], num_classes: int, config: Output) -> None:
    """Write one store a split, then captions and vocabulary of the images that have an object.

    >>> captions = [Caption("7", str(number), "a dog", "train") for number in range(4)]
    >>> image = AnnotatedImage("7", "train", captions, class_id=[1], boxes=[[0.0, 0.5, 0.25, 1.0]])
    >>> write([image], num_classes=3, config=Output(output=Path(".")))
    train.h5: 1 images; left out for want of an object: 0 images with 0 captions
    captions.jsonl: 4 captions
    vocabulary.json: 6 words
    """
    output = config.output
    seen = [image for image in images if image.boxes]
    for split in sorted({image.split for image in images}):
        in_split = [image for image in seen if image.split == split]
        skipped = [image for image in images if image.split == split and not image.boxes]
        _write_store(in_split, num_classes, output / f"{split}.h5", config)
        print(
            f"{output / f'{split}.h5'}: {len(in_split)} images; left out for want of an object: {len(skipped)} images "
            f"with {sum(len(image.captions) for image in skipped)} captions"
        )
    captions = [caption for image in seen for caption in image.captions]
    save_captions(output / CAPTIONS, captions)
    vocabulary = Vocabulary.build(caption.caption for caption in captions if caption.split != "test")
    vocabulary.save(output / VOCABULARY)
    note_written(output / CAPTIONS, output / VOCABULARY)
    print(f"{output / CAPTIONS}: {len(captions)} captions")
    print(f"{output / VOCABULARY}: {len(vocabulary)} words")


def _write_store(images: Iterable[AnnotatedImage], num_classes: int, path: Path, config: Output) -> None:
    with RegionStoreWriter(
        path,
        dim=num_classes + 5,
        max_regions=config.max_regions + config.whole_image,
        extractor="COCO annotations: class one-hot, x1 y1 x2 y2 area",
        box_convention="xyxy relative",
        overwrite=config.overwrite,
    ) as writer:
        for image in tqdm(images, desc=path.name, unit="image", delay=2):
            boxes, class_id = np.array(image.boxes, np.float32), np.array(image.class_id)
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            largest = np.argsort(-area, kind="stable")[: config.max_regions]
            boxes, area, class_id = boxes[largest], area[largest], class_id[largest]
            features = _region_features(boxes, area, class_id, num_classes)
            if config.whole_image:
                counts = features[:, :num_classes].sum(axis=0)
                features = np.concatenate([[[*np.log1p(counts), 0, 0, 1, 1, 1]], features])
                boxes, class_id = np.concatenate([[[0, 0, 1, 1]], boxes]), np.concatenate([[WHOLE_IMAGE], class_id])
            writer.write(image.image_id, features, boxes, class_id=class_id)


def _region_features(boxes: np.ndarray, area: np.ndarray, class_id: np.ndarray, num_classes: int) -> np.ndarray:
    """(region, num_classes + 5): class one-hot, then x1 y1 x2 y2 area."""
    one_hot = np.eye(num_classes, dtype=np.float32)[class_id]
    return np.concatenate([one_hot, boxes, area[:, None]], axis=1)


def _read_json(path: Path, keys: tuple[str, ...] = ()) -> Any:
    record = parse_json(read_text(path), str(path))
    missing = [key for key in keys if key not in record]
    if missing:
        raise ValueError(f"{path} lacks {missing}: is it another of COCO's annotation files?")
    return record


Source = Annotated[Official, tyro.conf.subcommand("official")] | Annotated[Compact, tyro.conf.subcommand("compact")]

if __name__ == "__main__":
    run_program(main)
