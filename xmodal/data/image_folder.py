"""Finding image files in a folder, by the ids that region stores and captions give them."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from xmodal.data.images import HEIC_SUFFIXES, IMAGE_SUFFIXES
from xmodal.data.strings import refuse_string

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Listing(NamedTuple):
    """The image files below a folder, sorted by path, and how many other files there are, by the reason."""

    images: list[Path]
    ignored: Mapping[str, int]

    def told(self) -> str:
        """What was ignored, in words; nothing if nothing was."""
        if not self.ignored:
            return ""
        return f"ignored {sum(self.ignored.values())} files: " + ", ".join(
            f"{n} {why}" for why, n in self.ignored.items()
        )


def list_images(folder: Path) -> Listing:
    """The image files of a folder and of the folders in it, links to folders included.

    Hidden files and folders, the `__MACOSX` of archives, links that lead nowhere, folders that are named like images
    and files whose extension is not in `IMAGE_SUFFIXES` are ignored, and counted.

    Raises:
        FileNotFoundError: there is no such folder.

    >>> Path("photos").mkdir()
    >>> for name in ("7.JPG", "notes.txt", "._7.JPG"):
    ...     Path("photos", name).touch()
    >>> listing = list_images(Path("photos"))
    >>> [path.name for path in listing.images], listing.told()
    (['7.JPG'], 'ignored 2 files: 1 .txt, 1 hidden')
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of images at {folder}")
    images: list[Path] = []
    ignored: Counter[str] = Counter()
    entered = {folder.resolve()}
    walk = os.walk(folder, followlinks=True, onerror=lambda error: ignored.update(["folders that cannot be read"]))
    for place, folders, files in walk:
        for path in (Path(place, name) for name in files + folders):
            if path.suffix.lower() in IMAGE_SUFFIXES or not path.is_dir():
                reason = _why_ignored(path, folder)
                if reason is None:
                    images.append(path)
                else:
                    ignored[reason] += 1
        # Links may lead in a circle, or to a folder that is there anyhow: every folder is entered once.
        targets = {Path(place, name).resolve(): name for name in sorted(folders, reverse=True)}
        folders[:] = sorted(name for target, name in targets.items() if target not in entered)
        entered.update(targets)
    return Listing(sorted(images), dict(sorted(ignored.items())))


def find_images(folder: Path, *, coco_ids: bool = False, listing: Listing | None = None) -> dict[str, Path]:
    """Every image below a folder by its id, sorted by path.

    Args:
        folder: where to look; folders inside it are searched too, see `list_images`.
        coco_ids: whether files that are named as COCO's go by its ids, not by their names without extension.
        listing: what `list_images` gave, if it was asked already.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: two images have the same id.

    >>> Path("val2014").mkdir()
    >>> Path("val2014", "COCO_val2014_000000391895.jpg").touch()
    >>> find_images(Path("val2014"), coco_ids=True)["391895"].name
    'COCO_val2014_000000391895.jpg'
    """
    listing = listing or list_images(folder)
    found: dict[str, Path] = {}
    for path in listing.images:
        image_id = coco_number(path.stem) if coco_ids else path.stem
        if image_id in found:
            raise ValueError(f"{found[image_id]} and {path} would share the id {image_id!r}; rename one of them")
        found[image_id] = path
    if not found:
        told = f"; {listing.told()}" if listing.ignored else ""
        raise FileNotFoundError(f"no image in {folder}; known extensions: {' '.join(sorted(IMAGE_SUFFIXES))}{told}")
    return found


def locate_images(folder: Path, image_ids: Iterable[str]) -> dict[str, Path]:
    """The files of some images, which go by their names without extension or by COCO's ids.

    Raises:
        FileNotFoundError: there is no such folder, or it has no file of one of the images.
        ValueError: it has two.

    >>> Path("val2014").mkdir()
    >>> Path("val2014", "COCO_val2014_000000391895.jpg").touch()
    >>> locate_images(Path("val2014"), ["391895"])["391895"].name
    'COCO_val2014_000000391895.jpg'
    """
    refuse_string("image_ids", image_ids, "ids")
    wanted = set(image_ids)
    located: dict[str, Path] = {}
    for path in list_images(folder).images:
        for name in {path.stem, coco_number(path.stem)} & wanted:
            if name in located:
                raise ValueError(f"{located[name]} and {path} are both image {name!r}; rename one of them")
            located[name] = path
    for image_id in wanted - located.keys():
        raise FileNotFoundError(
            f"{folder} has no image {image_id!r} (looked in its folders, too, for {' '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return located


def coco_number(name: str) -> str:
    """COCO's image id in one of its file names, the id that captions have; any other name as it is.

    >>> coco_number("COCO_val2014_000000391895.jpg"), coco_number("000000000139"), coco_number("1000092795.jpg")
    ('391895', '139', '1000092795.jpg')
    """
    match = re.match(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})(?:\.|$)", name)
    return str(int(match[1])) if match else name


def is_utf8(name: str) -> bool:
    """Whether a file name is text, as everybody's is on most systems, or bytes that Python keeps as surrogates.

    >>> is_utf8("café.jpg"), is_utf8(b"caf\\xe9.jpg".decode("utf-8", "surrogateescape"))
    (True, False)
    """
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


def _why_ignored(path: Path, folder: Path) -> str | None:
    """Why a file is not among the images; None if it is."""
    parts = path.relative_to(folder).parts
    if "__MACOSX" in parts:
        return "in __MACOSX"
    if any(part.startswith(".") for part in parts):
        return "hidden"
    suffix = path.suffix.lower()
    if suffix in HEIC_SUFFIXES - IMAGE_SUFFIXES:
        return f"{suffix} (pip install pillow-heif to read them)"
    if suffix not in IMAGE_SUFFIXES:
        return suffix or "without an extension"
    if path.is_dir():
        return "folders named like images"
    if path.is_file():
        return None
    return "links that lead nowhere" if path.is_symlink() else "that are no regular files"
