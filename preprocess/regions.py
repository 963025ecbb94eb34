"""From a folder of images to a region store.

    python -m preprocess.regions --images photos --output train.h5 --captions captions.jsonl --split train

The images of the folder (and of folders in it) go through an extractor of `xmodal.encoders.extractors`, and their
regions into one HDF5 file, under the name of the image file without its extension. An image that cannot be read is
skipped and listed, with the reason, in `<output>.skipped.txt`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from PIL import Image, ImageOps
from tqdm import tqdm

from xmodal.data.atomic import written_whole
from xmodal.data.region_store import RegionStoreWriter
from xmodal.encoders.extractors import EXTRACTORS
from xmodal.names import build

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xmodal.encoders.extractors import RegionExtractor

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class RegionsConfig:
    """Extract the regions of the images in a folder into a region store."""

    images: Path
    """Folder of images; folders inside it are searched too. An image's id is its file name without extension."""
    output: Path
    """The region store to write (HDF5)."""
    extractor: str = "efficientnet-lite0-grid"
    """Which extractor: efficientnet-lite0-grid or ssd-mobilenet."""
    captions: Path | None = None
    """Take only the images named here, in this order: JSON lines with split and image_id (or image, a file name)."""
    split: str | None = None
    """With --captions: take only the images of this split."""
    batch_size: int = 16
    """Images in memory at once."""
    dtype: Literal["float16", "float32"] = "float32"
    """How features are stored; float16 halves the file."""
    strict: bool = False
    """Stop at the first image that cannot be read instead of skipping it."""
    overwrite: bool = False
    """Replace the output if it exists."""


def find_images(folder: Path) -> dict[str, Path]:
    """Every image below a folder by its id, the file name without extension, sorted by path.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: two images have the same id.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of images at {folder}")
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path} would share the id {path.stem!r}; rename one of them")
        found[path.stem] = path
    if not found:
        raise FileNotFoundError(f"no image in {folder}; known extensions: {' '.join(sorted(IMAGE_SUFFIXES))}")
    return found


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


def choose_images(config: RegionsConfig) -> dict[str, Path | None]:
    """The images to extract by id, in order; the path is None where the captions name an image that is not there.

    Raises:
        ValueError: --split without --captions, or none of the named images is in the folder.
    """
    found = find_images(config.images)
    if config.captions is None:
        if config.split is not None:
            raise ValueError(f"--split {config.split} needs --captions: a folder of images has no splits")
        return dict(found)
    image_ids = read_image_ids(config.captions, config.split)
    if found.keys().isdisjoint(image_ids):
        raise ValueError(
            f"none of the {len(image_ids)} images named in {config.captions} is in {config.images}: the captions name "
            f"{image_ids[0]!r}, the folder holds {next(iter(found))!r}"
        )
    return {image_id: found.get(image_id) for image_id in image_ids}


def read_image(path: Path) -> Image.Image:
    """An image file in RGB, upright.

    Raises:
        ValueError: the file is not an image, or is damaged.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    # What Pillow raises depends on the format and on where the damage is.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def read_batches(
    images: dict[str, Path | None], batch_size: int, skipped: dict[str, str], *, strict: bool
) -> Iterator[dict[str, Image.Image]]:
    """The readable images by id, some at a time; the reasons for the others are added to `skipped`.

    Raises:
        ValueError: with `strict`, an image is missing or cannot be read.
    """
    batch: dict[str, Image.Image] = {}
    for image_id, path in images.items():
        try:
            if path is None:
                raise ValueError(f"image {image_id!r} is named in the captions but not in the folder")
            batch[image_id] = read_image(path)
        except ValueError as error:
            if strict:
                raise
            skipped[image_id] = str(error)
        if len(batch) == batch_size:
            yield batch
            batch = {}
    if batch:
        yield batch


def extract(config: RegionsConfig, extractor: RegionExtractor) -> dict[str, str]:
    """Write the region store.

    Returns:
        The skipped images: id -> reason.

    Raises:
        FileExistsError: the output exists and may not be replaced.
        ValueError: see `choose_images`; or not one image could be read.
    """
    if config.batch_size < 1:
        raise ValueError(f"batch_size is {config.batch_size}, wanted at least 1")
    images = choose_images(config)
    skipped: dict[str, str] = {}
    with (
        RegionStoreWriter(
            config.output,
            dim=extractor.dim,
            max_regions=extractor.max_regions,
            dtype=config.dtype,
            extractor=extractor.name,
            weights_hash=extractor.weights_hash,
            overwrite=config.overwrite,
        ) as writer,
        tqdm(total=len(images), desc=config.output.name, unit="image") as progress,
    ):
        for batch in read_batches(images, config.batch_size, skipped, strict=config.strict):
            for (image_id, image), regions in zip(batch.items(), extractor(list(batch.values())), strict=True):
                writer.write(
                    image_id,
                    regions.features,
                    regions.boxes,
                    image.size,
                    class_id=regions.class_id,
                    confidence=regions.confidence,
                )
            progress.update(len(batch))
    return skipped


def write_skipped(path: Path, skipped: dict[str, str]) -> None:
    """List the skipped images, a line each: id, tab, reason. With none, no list stays from an earlier run."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    with written_whole(path) as temporary:
        temporary.write_text("".join(f"{image_id}\t{reason}\n" for image_id, reason in skipped.items()), "utf-8")


def main(config: RegionsConfig) -> None:
    """Extract, and say what was done."""
    skipped = extract(config, build("extractor", EXTRACTORS, {"name": config.extractor}))
    listed = config.output.with_name(config.output.name + ".skipped.txt")
    write_skipped(listed, skipped)
    print(f"wrote {config.output}" + (f"; {len(skipped)} images skipped, listed in {listed}" if skipped else ""))


if __name__ == "__main__":
    main(tyro.cli(RegionsConfig, description=__doc__))
