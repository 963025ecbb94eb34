"""Which images are wanted, and under which name."""

from __future__ import annotations

import json
import re
from pathlib import Path


def coco_number(name: str) -> str:
    """COCO's image id in one of its file names, the id that captions have; any other name as it is.

    >>> coco_number("COCO_val2014_000000391895.jpg"), coco_number("000000000139"), coco_number("1000092795.jpg")
    ('391895', '139', '1000092795.jpg')
    """
    match = re.match(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})(?:\.|$)", name)
    return str(int(match[1])) if match else name


def read_image_ids(captions: Path, split: str | None = None) -> list[str]:
    """The images that a captions file names, each once, in order of first appearance.

    Args:
        captions: JSON lines with `split` and either `image_id` or `image`, a file name whose stem is the id.
        split: only images of this split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no such object, or no line is in the split.
    """
    if not captions.exists():
        raise FileNotFoundError(f"no captions file at {captions}")
    image_ids, splits = {}, {}
    with captions.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                image_id = str(record["image_id"]) if "image_id" in record else Path(record["image"]).stem
                splits[record["split"]] = None
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{captions}, line {number}: wanted a JSON object with split and image_id (or image), "
                    f"found {line.rstrip()[:80]!r}"
                ) from error
            if split in (None, record["split"]):
                image_ids[image_id] = None
    if not image_ids:
        raise ValueError(f"{captions} names no image of split {split!r}; its splits are {list(splits)}")
    return list(image_ids)
