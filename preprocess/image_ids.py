"""Which images are wanted, and under which name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from xmodal.data.images import IMAGE_SUFFIXES
from xmodal.data.text import parse_json, read_lines, read_text, suffix_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPLITS = {
    **dict.fromkeys(("train", "restval"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation"), "dev"),
    "test": "test",
}
"""What others call a split, and what we call it; restval is the part of COCO's validation that everyone trains on."""


def our_split(name: str) -> str:
    """A split by our name; one that is unknown keeps its own.

    >>> our_split("Valid"), our_split(" restval"), our_split("minival")
    ('dev', 'train', 'minival')
    """
    return SPLITS.get(name.strip().lower(), name.strip())


def image_stem(name: str) -> str:
    """The id in a name of an image: without folders, the extension of an image file, and the .0 of a spreadsheet.

    Other dots belong to the id.

    >>> [image_stem(name) for name in ("val2014/7.JPG", "b\\\\7.jpeg", "391895.0", "v1.2_frame.3")]
    ['7', '7', '391895', 'v1.2_frame.3']
    """
    last = re.split(r"[/\\]", name.strip())[-1]
    stem, _, suffix = last.rpartition(".")
    return stem if stem and (f".{suffix.lower()}" in IMAGE_SUFFIXES or re.fullmatch(r"\d+\.0+", last)) else last


class ImageIds:
    """Gives out ids and refuses one that two names would share.

    >>> ids = ImageIds("dataset.json")
    >>> ids.give("7", "birds/7.jpg"), ids.give("7", "birds/7.jpg")
    ('7', '7')
    >>> ids.give("7", "boats/7.jpg")
    Traceback (most recent call last):
    ...
    ValueError: dataset.json: 'birds/7.jpg' and 'boats/7.jpg' would both be image '7'; rename one of them, ...
    """

    def __init__(self, source: Path | str) -> None:
        self.source = source
        self._name: dict[str, str] = {}

    def give(self, image_id: str, name: str) -> str:
        """The id, if no other name has it.

        Raises:
            ValueError: another name has it; the message says both.
        """
        other = self._name.setdefault(image_id, name)
        if other != name:
            raise ValueError(
                f"{self.source}: {other!r} and {name!r} would both be image {image_id!r}; rename one of them, and its "
                "file and features"
            )
        return image_id


def karpathy_id(image: dict[str, Any]) -> str:
    """The id of an image in Karpathy's JSON: COCO's where there is one, else the file name without its ending.

    >>> karpathy_id({"cocoid": 139, "filename": "COCO_val2014_000000000139.jpg"}), karpathy_id({"filename": "17.jpg"})
    ('139', '17')
    """
    return str(image["cocoid"]) if "cocoid" in image else image_stem(image["filename"])


def karpathy_sentence(sentence: dict[str, Any]) -> str:
    """A caption in Karpathy's JSON: as it was written, or else its words.

    Raises:
        KeyError: there are neither.
        TypeError: the words are no list; a text would be taken for a list of letters.

    >>> karpathy_sentence({"raw": "A dog."}), karpathy_sentence({"tokens": ["a", "dog"]})
    ('A dog.', 'a dog')
    """
    if "raw" in sentence:
        return sentence["raw"]
    if not isinstance(sentence["tokens"], list):
        raise TypeError(f"tokens is {sentence['tokens']!r:.80}, wanted a list of words")
    return " ".join(sentence["tokens"])


def karpathy_images(path: Path, encoding: str | None = None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The images of Karpathy's JSON: id, split in our words, and the whole record.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError, TypeError, AttributeError: it is JSON of another kind.
        ValueError: it is no JSON, two images would have the same id, or a split is unknown.

    >>> import json
    >>> from pathlib import Path
    >>> image = {"filename": "7.jpg", "split": "restval", "sentences": []}
    >>> _ = Path("dataset.json").write_text(json.dumps({"images": [image]}))
    >>> [(image_id, split) for image_id, split, _ in karpathy_images(Path("dataset.json"))]
    [('7', 'train')]
    """
    return _karpathy_images(parse_json(read_text(path, encoding), str(path)), path)


def _karpathy_images(record: Any, path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    ids = ImageIds(path)
    for number, image in enumerate(record["images"]):
        # The place in the file sets records without a folder apart.
        name = f"{image.get('filepath', '')}/{image['filename']}".lstrip("/")
        image_id = ids.give(karpathy_id(image), f"{name} (image {number})")
        split = our_split(image["split"])
        if not isinstance(image.get("sentences", []), list):
            raise TypeError(f"sentences of {name} is {image['sentences']!r:.80}, wanted a list")
        if split not in SPLITS:
            raise ValueError(f"{path}: {name} is of split {image['split']!r}; known: {', '.join(SPLITS)}")
        yield image_id, split, image


def read_image_names(captions: Path, split: str | None = None) -> dict[str, str]:
    """The images that a file of captions names, in order of first appearance: id -> file name without ending.

    Args:
        captions: a captions file or other JSON lines with `split` and either `image_id` or `image`, a file name;
            Karpathy's JSON, whose restval counts as train and whose val is called dev; or COCO's JSON.
        split: only images of this split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no such object, the JSON is neither Karpathy's nor COCO's, two images would have the same
            id, or no image is in the split.

    >>> from pathlib import Path
    >>> _ = Path("images.jsonl").write_text('{"image": "7.jpg", "split": "test"}')
    >>> read_image_names(Path("images.jsonl"), split="test")
    {'7': '7'}
    """
    if not captions.exists():
        raise FileNotFoundError(f"no captions file at {captions}")
    names, splits = {}, {}
    for image_id, name, its_split in (_of_json if suffix_of(captions) == ".json" else _of_lines)(captions):
        splits[its_split] = None
        if split is None or its_split == our_split(split):
            names[image_id] = name
    if not names:
        known = [name for name in splits if name is not None]
        raise ValueError(f"{captions} names no image of split {split!r}; its splits are {known}")
    return names


def _of_lines(path: Path) -> Iterator[tuple[str, str, str | None]]:
    ids = ImageIds(path)
    for number, line in enumerate(read_lines(path), start=1):
        try:
            record = parse_json(line, "it")
            name = record["image_id"] if "image_id" in record else record["image"]
            if not isinstance(name, (str, int)) or not isinstance(record["split"], str):
                raise TypeError(f"image {name!r}, split {record['split']!r}")
            stem = str(name) if "image_id" in record else image_stem(record["image"])
            split = our_split(record["split"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: wanted a JSON object with split and image_id (or image), "
                f"found {line.rstrip()[:80]!r}"
            ) from error
        yield ids.give(stem, str(name)), stem, split


def _of_json(path: Path) -> Iterator[tuple[str, str, str | None]]:
    try:
        record = parse_json(read_text(path), "it")
        sentences = ["sentences" in image for image in record["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _neither(path, error) from error
    try:
        if all(sentences):
            for image_id, split, image in _karpathy_images(record, path):
                yield image_id, image_stem(image["filename"]), split
            return
        ids = ImageIds(path)
        for image in record["images"]:
            name = str(image["file_name"])
            yield ids.give(str(image["id"]), name), image_stem(name), None
    except (KeyError, TypeError, AttributeError) as error:
        raise _neither(path, error) from error


def _neither(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is neither Karpathy's JSON (images with filename, split and sentences) nor COCO's (images with id "
        f"and file_name): {error!r}. For a captions file of JSON lines, name it .jsonl."
    )
