"""Image files of a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xmodal.data.images import IMAGE_SUFFIXES

from .image_ids import coco_number

if TYPE_CHECKING:
    from pathlib import Path


def find_images(folder: Path, *, coco_ids: bool = False) -> dict[str, Path]:
    """Every image below a folder by its id, sorted by path.

    Args:
        folder: where to look; folders inside it are searched too.
        coco_ids: whether files that are named as COCO's go by its ids, not by their names without extension.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: two images have the same id.

    >>> from pathlib import Path
    >>> Path("val2014").mkdir()
    >>> Path("val2014", "COCO_val2014_000000391895.jpg").touch()
    >>> find_images(Path("val2014"), coco_ids=True)["391895"].name
    'COCO_val2014_000000391895.jpg'
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of images at {folder}")
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        image_id = coco_number(path.stem) if coco_ids else path.stem
        if image_id in found:
            raise ValueError(f"{found[image_id]} and {path} would share the id {image_id!r}; rename one of them")
        found[image_id] = path
    if not found:
        raise FileNotFoundError(f"no image in {folder}; known extensions: {' '.join(sorted(IMAGE_SUFFIXES))}")
    return found
