"""What says which image has which class: an index of JSON lines, or a folder with one folder a class."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xmodal.data.atomic import written_whole
from xmodal.data.image_folder import Listing, is_utf8, list_images
from xmodal.data.images import IMAGE_SUFFIXES
from xmodal.data.text import NO_FILE_NAME, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterable


logger = logging.getLogger("xmodal")

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
"""What folders are called that hold a split and no class."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One line of an index: an image file, its class by name, and the split it is in."""

    path: Path
    class_name: str
    split: str


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
    images = [_parse_line(line, path, number) for number, line in enumerate(read_lines(path), start=1)]
    if not images:
        raise ValueError(f"{path} is empty; `xmodal prepare labelled --help` lists what makes an index")
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
            # A file name need not be UTF-8; JSON can say all the same which one it is.
            text = json.dumps(record, ensure_ascii=not is_utf8(record["path"] + record["class"]))
            file.write(text + "\n")


def list_folder(folder: Path, split: str = "all") -> list[LabelledImage]:
    """Every image of a folder that has one folder a class, sorted by class and name; see `list_images`.

    What is ignored is logged: images beside the folders of classes have no class.

    Raises:
        ValueError: a class has no image, there is no class, or the folders are splits, not classes.

    >>> from PIL import Image
    >>> for name in ("gulls/1.png", "wrens/1.png", "wrens/2.png"):
    ...     Path("birds", name).parent.mkdir(parents=True, exist_ok=True)
    ...     Image.new("RGB", (4, 4)).save(Path("birds", name))
    >>> [(image.path.as_posix(), image.class_name) for image in list_folder(Path("birds"))]
    [('birds/gulls/1.png', 'gulls'), ('birds/wrens/1.png', 'wrens'), ('birds/wrens/2.png', 'wrens')]
    """
    images = []
    ignored = Counter({"beside the folders of classes": sum(map(_is_image, folder.iterdir()))})
    for directory in class_folders(folder):
        listing = list_images(directory)
        if not listing.images:
            told = f"{listing.told()}; " if listing.ignored else ""
            raise ValueError(
                f"{directory} has no image ({told}known: {' '.join(sorted(IMAGE_SUFFIXES))}); remove the folder"
            )
        images += [LabelledImage(file, directory.name, split) for file in listing.images]
        ignored.update(listing.ignored)
    if not images:
        raise ValueError(f"{folder} has no folders; wanted one folder a class, with its images inside")
    if told := Listing([], +ignored).told():
        logger.warning("%s: %s", folder, told)
    return images


def class_folders(folder: Path) -> list[Path]:
    """The folders of a folder that has one a class, sorted by name.

    Raises:
        ValueError: they are splits, with folders of classes inside.

    >>> Path("birds/train/gull").mkdir(parents=True)
    >>> class_folders(Path("birds"))
    Traceback (most recent call last):
    ...
    ValueError: birds has one folder a split (train), not one a class. Give one of them, such as birds/train, ...
    """
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))
    if found and all(path.name.lower() in SPLIT_NAMES and any(map(Path.is_dir, path.iterdir())) for path in found):
        raise ValueError(
            f"{folder} has one folder a split ({', '.join(path.name for path in found)}), not one a class. Give one of "
            f"them, such as {found[0]}, or move all folders of classes into one folder: which classes are for training "
            "is said when the index is made"
        )
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _parse_line(line: str, path: Path, number: int) -> LabelledImage:
    try:
        record = json.loads(line)
        if sorted(record) != ["class", "path", "split"] or not all(isinstance(v, str) for v in record.values()):
            raise ValueError(f"found {line[:80]!r}")
        if half := NO_FILE_NAME.search("".join(record.values())):
            raise ValueError(f"found half a letter, {half[0]!r}, which is no text")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}, line {number}: wanted a JSON object with the strings path, class and split; {error}"
        ) from error
    return LabelledImage(path.parent / record["path"], record["class"], record["split"])
