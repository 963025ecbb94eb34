"""Which images are wanted, and under which name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
"""restval is the part of COCO's validation images that everyone trains on."""


def coco_number(name: str) -> str:
    """COCO's image id in one of its file names, the id that captions have; any other name as it is.

    >>> coco_number("COCO_val2014_000000391895.jpg"), coco_number("000000000139"), coco_number("1000092795.jpg")
    ('391895', '139', '1000092795.jpg')
    """
    match = re.match(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})(?:\.|$)", name)
    return str(int(match[1])) if match else name


def karpathy_id(image: dict[str, Any]) -> str:
    """The id of an image in Karpathy's JSON: COCO's where there is one, else the file name without its ending.

    >>> karpathy_id({"cocoid": 139, "filename": "COCO_val2014_000000000139.jpg"}), karpathy_id({"filename": "17.jpg"})
    ('139', '17')
    """
    return str(image.get("cocoid", Path(image["filename"]).stem))


def read_image_names(captions: Path, split: str | None = None) -> dict[str, str]:
    """The images that a file of captions names, in order of first appearance: id -> file name without ending.

    Args:
        captions: a captions file or other JSON lines with `split` and either `image_id` or `image`, a file name;
            Karpathy's JSON, whose restval counts as train and whose val is called dev; or COCO's JSON.
        split: only images of this split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no such object, the JSON is neither Karpathy's nor COCO's, or no image is in the split.

    >>> _ = Path("images.jsonl").write_text('{"image": "7.jpg", "split": "test"}')
    >>> read_image_names(Path("images.jsonl"), split="test")
    {'7': '7'}
    """
    if not captions.exists():
        raise FileNotFoundError(f"no captions file at {captions}")
    names, splits = {}, {}
    for image_id, name, its_split in (_of_json if captions.suffix == ".json" else _of_lines)(captions):
        splits[its_split] = None
        if split in (None, its_split):
            names[image_id] = name
    if not names:
        known = [name for name in splits if name is not None]
        raise ValueError(f"{captions} names no image of split {split!r}; its splits are {known}")
    return names


def _of_lines(path: Path) -> Iterator[tuple[str, str, str | None]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                name = str(record["image_id"]) if "image_id" in record else Path(record["image"]).stem
                yield name, name, record["split"]
            except (ValueError, KeyError, TypeError) as error:  # noqa: PERF203 (the message names the line)
                raise ValueError(
                    f"{path}, line {number}: wanted a JSON object with split and image_id (or image), "
                    f"found {line.rstrip()[:80]!r}"
                ) from error


def _of_json(path: Path) -> Iterator[tuple[str, str, str | None]]:
    try:
        for image in json.loads(path.read_text(encoding="utf-8"))["images"]:
            if "sentences" in image:
                yield karpathy_id(image), Path(image["filename"]).stem, KARPATHY_SPLITS[image["split"]]
            else:
                yield str(image["id"]), Path(image["file_name"]).stem, None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is neither Karpathy's JSON (images with filename, split and sentences) nor COCO's (images with id "
            f"and file_name): {error!r}. For a captions file of JSON lines, name it .jsonl."
        ) from error
