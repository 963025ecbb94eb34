"""From a folder of images to a region store.

    python -m preprocess.regions --images photos --output train.h5 --captions captions.jsonl --split train
    python -m preprocess.regions --images coco --output test.h5 --captions dataset_coco.json --split test
    torchrun --standalone --nproc_per_node 2 -m preprocess.regions --images photos --output train.h5 --extractor detr

The images of the folder (and of folders in it) go through an extractor of `xmodal.encoders.extractors`, and their
regions into one HDF5 file, under the name of the image file without its extension. An image that cannot be read, or
that the extractor fails on, is skipped and listed, with the reason, in `<output>.skipped.txt`.

Finished parts are kept in `<output>.parts` until all are done, so the same command goes on where it was stopped,
whatever stopped it, even if bad images were repaired or taken away in between. Batches and parts are the same for any
number of processes, and so is the result. `accelerate launch --multi_gpu --num_processes 2 -m` starts several, too.

A small set becomes one file. A large one stays in its parts, and the store is an HDF5 virtual dataset over them: keep
`<output>.parts` beside it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import PartialState
from tqdm import tqdm

from xmodal.data.atomic import locked, refuse_inputs
from xmodal.data.image_folder import Listing, find_images, list_images
from xmodal.data.images import read_image
from xmodal.encoders.extractors import EXTRACTORS, all_options
from xmodal.encoders.region_extractor import move
from xmodal.entry import run_program
from xmodal.names import build

from .image_ids import read_image_names
from .parts import Join, Parts, Plan, folder_of_parts, refuse_made
from .skipped import write_skipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from PIL import Image

    from xmodal.encoders.region_extractor import RegionExtractor, Regions

MAX_PARTS = 512
"""The most parts of a store. Each is a file that a virtual store reads from; a kill costs a process at most one."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How regions are found and stored, whatever the images."""

    extractor: str = "efficientnet-lite0-grid"
    """Which extractor: efficientnet-lite0-grid, ssd-mobilenet, faster-rcnn, detr, rt-detr, resnet50-grid, vit-b16-grid,
    dinov2-grid or siglip-grid."""
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
    coco_ids: bool = False
    """Name the image of COCO_val2014_000000391895.jpg by its COCO id, 391895, as Karpathy's captions do."""
    batch_size: int = 16
    """Images in memory at once."""
    dtype: Literal["float16", "float32"] = "float32"
    """How features are stored; float16 halves the file."""
    join: Join = "auto"
    """copy: one file. virtual: the features stay in `<output>.parts`, and the store is a virtual dataset over them.
    auto: copy up to 16 GB."""
    strict: bool = False
    """Stop at the first image that cannot be read or extracted instead of skipping it."""
    overwrite: bool = False
    """Replace the output if it exists."""

    def build_extractor(self) -> tuple[RegionExtractor, dict[str, Any]]:
        """The extractor, and everything it was built with, defaults too.

        Raises:
            ValueError: there is no such extractor, or it has no such option.
            FileNotFoundError: its weights are not on this machine; the message says how to get them.
            ModuleNotFoundError: nor is a package that it needs.
        """
        given = {key: getattr(self, key) for key in ("weights", "max_regions", "threshold")}
        if self.weights is not None and Path(self.weights).exists():
            given["weights"] = str(Path(self.weights).resolve())  # the store notes it, and may be used from elsewhere
        chosen = {"name": self.extractor, **{key: value for key, value in given.items() if value is not None}}
        return build("extractor", EXTRACTORS, chosen), all_options(chosen)


@dataclass(frozen=True)
class RegionsConfig(Extraction):
    """Extract the regions of the images in a folder into a region store."""

    images: Path
    """Folder of images; folders inside it are searched too. An image's id is its file name without extension."""
    output: Path
    """The region store to write (HDF5)."""
    captions: Path | None = None
    """Take only the images named here, in this order: a captions file (JSON lines with split and image_id, or image, a
    file name), Karpathy's dataset_*.json or COCO's captions_*.json. With these two, images are named by COCO's ids."""
    split: str | None = None
    """With --captions: take only the images of this split. Karpathy's restval counts as train, val is called dev."""


def _choose_images(config: RegionsConfig, listing: Listing) -> dict[str, Path | None]:
    """The images to extract by id, in order; the path is None where the captions name an image that is not there.

    Raises:
        ValueError: --split without --captions, or none of the named images is in the folder.
    """
    found = find_images(config.images, coco_ids=config.coco_ids, listing=listing)
    if config.captions is None:
        if config.split is not None:
            raise ValueError(f"--split {config.split} needs --captions: a folder of images has no splits")
        return dict(found)
    names = read_image_names(config.captions, config.split)
    chosen = {image_id: found.get(image_id, found.get(name)) for image_id, name in names.items()}
    if not any(chosen.values()):
        raise ValueError(
            f"none of the {len(names)} images named in {config.captions} is in {config.images}: the captions name "
            f"{next(iter(names.values()))!r}, the folder holds {next(iter(found))!r}"
        )
    return chosen


def extract(config: RegionsConfig, extractor: RegionExtractor, options: Mapping[str, Any]) -> dict[str, str]:
    """Write the region store, together with the other processes if there are any.

    Args:
        config: what to extract from where to where.
        extractor: what finds the regions.
        options: what it was built with, for the store to note.

    Returns:
        The skipped images: id -> reason. In the other processes than the first: nothing.

    Raises:
        FileExistsError: the output exists and may not be replaced.
        ValueError: see `Parts`; the output is an input, --split without --captions, none of the named images is there,
            or none could be read.

    >>> from PIL import Image
    >>> from xmodal.data import RegionStore
    >>> from xmodal.encoders.extractors import EfficientNetGrid
    >>> Path("photos").mkdir()
    >>> Image.new("RGB", (80, 60), "red").save("photos/7.png")
    >>> config, options = RegionsConfig(images=Path("photos"), output=Path("train.h5")), {"input_size": 64, "grid": 2}
    >>> skipped = extract(config, EfficientNetGrid(**options), options)
    >>> skipped, RegionStore("train.h5")
    ({}, RegionStore('train.h5'): 1 images, up to 4 regions, dim 432)
    """
    if config.batch_size < 1:
        raise ValueError(f"batch_size is {config.batch_size}, wanted at least 1")
    refuse_made(config.output, overwrite=config.overwrite)
    listing = list_images(config.images)
    refuse_inputs(config.output, [config.captions, config.weights, *listing.images])
    images = _choose_images(config, listing)
    plan = divide({image_id: _stamp(path) for image_id, path in images.items()}, config.batch_size)
    # Without an accelerator this must be said, or processes that were launched together do not know of each other.
    state = PartialState(cpu=not torch.accelerator.is_available())
    device = torch.device(state.device or "cpu")
    move(extractor, device)
    writer_options = _writer_options(config, extractor, options)
    settings = [writer_options, config.precision, config.batch_size, MAX_PARTS]
    with contextlib.ExitStack() as stack:
        if state.is_main_process:
            stack.enter_context(locked(folder_of_parts(config.output)))
        with state.main_process_first():
            parts = Parts(config.output, plan, settings, writer_options)
        if state.is_main_process and listing.ignored:
            print(f"{config.images}: {listing.told()}")
        todo = parts.todo(state.process_index, state.num_processes)
        mine = range(state.process_index, parts.count, state.num_processes)
        sizes = {number: sum(map(len, parts.plan[number])) for number in mine}
        with tqdm(
            total=sum(sizes.values()),
            initial=sum(sizes[number] for number in set(mine).difference(todo)),
            desc=config.output.name + (f", 1 of {state.num_processes} processes" if state.num_processes > 1 else ""),
            unit="image",
            disable=not state.is_main_process,
        ) as progress:
            for number in todo:
                batches = [{image_id: images[image_id] for image_id in batch} for batch in parts.plan[number]]
                parts.write(number, _outcomes(batches, extractor, device, config, progress))
        state.wait_for_everyone()
        return parts.join(config.join, overwrite=config.overwrite) if state.is_main_process else {}


def _writer_options(config: RegionsConfig, extractor: RegionExtractor, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a store notes of how it was made."""
    return {
        "dim": extractor.dim,
        "max_regions": extractor.max_regions,
        "dtype": config.dtype,
        "extractor": extractor.name,
        "extractor_options": options,
        "weights_hash": extractor.weights_hash,
    }


def divide(images: Mapping[str, Any], batch_size: int) -> Plan:
    """Parts of whole batches of images: enough parts to share out evenly, few enough to stay open all at once.

    >>> [[list(batch) for batch in part] for part in divide(dict.fromkeys("abcde"), batch_size=2)]
    [[['a', 'b']], [['c', 'd']], [['e']]]
    """
    items = list(images.items())
    batches = [dict(items[start : start + batch_size]) for start in range(0, len(items), batch_size)]
    length = -(-len(batches) // MAX_PARTS)
    return [batches[start : start + length] for start in range(0, len(batches), length)]


def _outcomes(
    batches: list[dict[str, Path | None]],
    extractor: RegionExtractor,
    device: torch.device,
    config: RegionsConfig,
    progress: tqdm,
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """What becomes of each image of some batches: what is stored of it, or why it is skipped.

    Raises:
        Exception: with `config.strict`, what an image fails with.
    """
    for batch in batches:
        pictures = {}
        for image_id, path in batch.items():
            try:
                if path is None:
                    raise ValueError(f"image {image_id!r} is named in the captions but not in the folder")
                pictures[image_id] = read_image(path)
            except (ValueError, FileNotFoundError) as error:  # noqa: PERF203 (each image has its own fate)
                if config.strict:
                    raise
                yield image_id, str(error)
        with torch.autocast(device.type, getattr(torch, config.precision), config.precision != "float32"):
            regions = _regions_of(pictures, extractor)
        for image_id, found in regions.items():
            outcome = found if isinstance(found, Exception) else _stored(found, extractor, config)
            if not isinstance(outcome, Exception):
                yield image_id, {**outcome, "image_size": pictures[image_id].size}
            elif config.strict:
                raise outcome
            else:
                yield image_id, f"the extractor failed on it: {str(outcome) or type(outcome).__name__}"
        progress.update(len(batch))


def _regions_of(pictures: Mapping[str, Image.Image], extractor: RegionExtractor) -> dict[str, Regions | Exception]:
    """The regions of each picture, or what the extractor fails with: one picture must not spoil its batch."""
    if not pictures:
        return {}
    try:
        return dict(zip(pictures, extractor(list(pictures.values())), strict=True))
    except Exception as error:
        if len(pictures) == 1:
            return dict.fromkeys(pictures, error)
    alone = [_regions_of({image_id: picture}, extractor) for image_id, picture in pictures.items()]
    return {image_id: found for one in alone for image_id, found in one.items()}


def _stored(found: Regions, extractor: RegionExtractor, config: RegionsConfig) -> dict[str, Any] | ValueError:
    """What is stored of the regions of an image, or why they cannot be."""
    if not 1 <= len(found.features) <= extractor.max_regions:
        return ValueError(f"it found {len(found.features)} regions, wanted 1 to {extractor.max_regions}")
    if not all(values.isfinite().all() for values in (found.features.to(getattr(torch, config.dtype)), found.boxes)):
        return ValueError(f"its features or boxes are NaN or infinite as {config.dtype}")
    return {**found._asdict(), "features": found.features.float()}


def _stamp(path: Path | None) -> list[int] | None:
    """What tells a changed image from an unchanged one: its size and time, for reading all images takes long."""
    return None if path is None else [path.stat().st_size, path.stat().st_mtime_ns]


def main(config: RegionsConfig) -> None:
    """Extract, and say what was done."""
    skipped = extract(config, *config.build_extractor())
    if PartialState().is_main_process:
        print(f"wrote {config.output}; {write_skipped(config.output, skipped)}")


if __name__ == "__main__":
    run_program(main)
