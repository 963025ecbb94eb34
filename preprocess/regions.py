"""From a folder of images to a region store.

    python -m preprocess.regions --images photos --output train.h5 --captions captions.jsonl --split train
    torchrun --standalone --nproc_per_node 2 -m preprocess.regions --images photos --output train.h5 --extractor detr

The images of the folder (and of folders in it) go through an extractor of `xmodal.encoders.extractors`, and their
regions into one HDF5 file, under the name of the image file without its extension. An image that cannot be read is
skipped and listed, with the reason, in `<output>.skipped.txt`.

Batches are kept in `<output>.parts` until all are done, so the same command goes on where it was stopped, whatever
stopped it. Batches are the same for any number of processes, and so is the result. `accelerate launch --multi_gpu
--num_processes 2 -m` starts several processes too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Any, Literal

import torch
import tyro
from accelerate import PartialState
from torch import nn
from tqdm import tqdm

from preprocess.image_ids import read_image_ids
from preprocess.images import find_images, read_image
from preprocess.parts import Parts
from preprocess.skipped import write_skipped
from xmodal.encoders.extractors import EXTRACTORS
from xmodal.names import build

if TYPE_CHECKING:
    from PIL import Image

    from xmodal.encoders.region_extractor import RegionExtractor


@dataclass(frozen=True)
class RegionsConfig:
    """Extract the regions of the images in a folder into a region store."""

    images: Path
    """Folder of images; folders inside it are searched too. An image's id is its file name without extension."""
    output: Path
    """The region store to write (HDF5)."""
    extractor: str = "efficientnet-lite0-grid"
    """Which extractor: efficientnet-lite0-grid, ssd-mobilenet, faster-rcnn, detr, rt-detr, resnet50-grid, dinov2-grid
    or siglip-grid."""
    weights: str | None = None
    """Weights of an extractor that does not bring its own: a file or folder, or a name on the hub that is in the cache.
    Without: what is usual, from the cache."""
    max_regions: int | None = None
    """With a detector: the most regions an image gets, 36 if not given."""
    threshold: float | None = None
    """With faster-rcnn, detr and rt-detr: keep only finds at least this sure, but 10 anyhow. Bottom-up attention's
    adaptive 10 to 100 regions are --max-regions 100 --threshold 0.2."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the network computes in; less than float32 is faster on hardware that has it."""
    captions: Path | None = None
    """Take only the images named here, in this order: JSON lines with split and image_id (or image, a file name)."""
    split: str | None = None
    """With --captions: take only the images of this split."""
    coco_ids: bool = False
    """Name the image of COCO_val2014_000000391895.jpg by its COCO id, 391895, as Karpathy's captions do."""
    batch_size: int = 16
    """Images in memory at once."""
    dtype: Literal["float16", "float32"] = "float32"
    """How features are stored; float16 halves the file."""
    strict: bool = False
    """Stop at the first image that cannot be read instead of skipping it."""
    overwrite: bool = False
    """Replace the output if it exists."""


def choose_images(config: RegionsConfig) -> dict[str, Path | None]:
    """The images to extract by id, in order; the path is None where the captions name an image that is not there.

    Raises:
        ValueError: --split without --captions, or none of the named images is in the folder.
    """
    found = find_images(config.images, coco_ids=config.coco_ids)
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


def extract(config: RegionsConfig, extractor: RegionExtractor) -> dict[str, str]:
    """Write the region store, together with the other processes if there are any.

    Returns:
        The skipped images: id -> reason. In the other processes than the first: nothing.

    Raises:
        FileExistsError: the output exists and may not be replaced.
        ValueError: see `choose_images` and `Parts`; or not one image could be read.
    """
    if config.batch_size < 1:
        raise ValueError(f"batch_size is {config.batch_size}, wanted at least 1")
    if config.output.exists() and not config.overwrite:
        raise FileExistsError(f"{config.output} exists. Pass --overwrite to replace it, or choose another name.")
    images = list(choose_images(config).items())
    batches = [dict(images[start : start + config.batch_size]) for start in range(0, len(images), config.batch_size)]
    # Without an accelerator this must be said, or processes that were launched together do not know of each other.
    state = PartialState(cpu=not torch.accelerator.is_available())
    device = torch.device(state.device or "cpu")
    if isinstance(extractor, nn.Module):
        extractor.to(device)
    options = {
        "dim": extractor.dim,
        "max_regions": extractor.max_regions,
        "dtype": config.dtype,
        "extractor": extractor.name,
        "weights_hash": extractor.weights_hash,
    }
    parts = Parts(config.output, len(batches), _settings(config, options, images), options)
    todo = parts.todo(state.process_index, state.num_processes)
    mine = range(state.process_index, len(batches), state.num_processes)
    with tqdm(
        total=sum(len(batches[number]) for number in mine),
        initial=sum(len(batches[number]) for number in set(mine).difference(todo)),
        desc=config.output.name + (f", 1 of {state.num_processes} processes" if state.num_processes > 1 else ""),
        unit="image",
        disable=not state.is_main_process,
    ) as progress:
        for number in todo:
            pictures, skipped = read_images(batches[number], strict=config.strict)
            with torch.autocast(device.type, getattr(torch, config.precision), config.precision != "float32"):
                regions = extractor(list(pictures.values())) if pictures else []
            rows = {
                image_id: {**found._asdict(), "features": found.features.float(), "image_size": picture.size}
                for (image_id, picture), found in zip(pictures.items(), regions, strict=True)
            }
            parts.write(number, rows, skipped)
            progress.update(len(batches[number]))
    state.wait_for_everyone()
    return parts.join(overwrite=config.overwrite) if state.is_main_process else {}


def read_images(paths: dict[str, Path | None], *, strict: bool) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """The readable images by id, and the reasons why the others are not.

    Raises:
        ValueError: with `strict`, an image is missing or cannot be read.
    """
    pictures, skipped = {}, {}
    for image_id, path in paths.items():
        try:
            if path is None:
                raise ValueError(f"image {image_id!r} is named in the captions but not in the folder")
            pictures[image_id] = read_image(path)
        except ValueError as error:  # noqa: PERF203 (each image has its own fate)
            if strict:
                raise
            skipped[image_id] = str(error)
    return pictures, skipped


def _settings(config: RegionsConfig, options: dict[str, Any], images: list[tuple[str, Path | None]]) -> Any:
    """Everything that the result depends on; of the images only names, sizes and times, for reading them takes long."""
    stats = [(image_id, path and (path.stat().st_size, path.stat().st_mtime_ns)) for image_id, path in images]
    keys = ("weights", "max_regions", "threshold", "precision", "batch_size")
    return [options, {key: asdict(config)[key] for key in keys}, stats]


def main(config: RegionsConfig) -> None:
    """Extract, and say what was done."""
    options = {key: getattr(config, key) for key in ("weights", "max_regions", "threshold")}
    chosen = {"name": config.extractor, **{key: value for key, value in options.items() if value is not None}}
    skipped = extract(config, build("extractor", EXTRACTORS, chosen))
    if PartialState().is_main_process:
        print(f"wrote {config.output}; {write_skipped(config.output, skipped)}")


if __name__ == "__main__":
    main(tyro.cli(RegionsConfig, description=__doc__))
