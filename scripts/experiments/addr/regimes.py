"""Data as the regimes want it: fewer training images, captions of other images, test images without a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from xmodal.data.atomic import folder_written_whole, link
from xmodal.data.captions import load_captions, save_captions
from xmodal.data.split import CAPTIONS, SomeImages
from xmodal.training.augmentation import Kept

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from scripts.experiments.addr.arms import Regime
    from xmodal.data import Caption
    from xmodal.data.image_source import ImageSource
    from xmodal.data.region_store import RegionBatch

WHOLE = 0.99
"""Share of an image from which on a region is one of the whole."""


def regime_folder(data: Path, regime: Regime, folder: Path) -> Path:
    """The data folder of a regime: `data` itself, or `folder`, which is made with other captions beside the same files.

    Which images and captions are chosen depends on the data alone.
    """
    if regime.share == 1 and regime.shuffled == 0:
        return data
    if not folder.is_dir():
        captions = load_captions(data / CAPTIONS)
        with folder_written_whole(folder) as temporary:
            save_captions(temporary / CAPTIONS, shuffled(some_images(captions, regime.share), regime.shuffled))
            for file in data.iterdir():
                if file.is_file() and file.name != CAPTIONS and not file.name.startswith("."):
                    link(file.resolve(), temporary / file.name)
    return folder


def some_images(captions: Sequence[Caption], share: float) -> list[Caption]:
    """All captions, but of the training images only those of a share, drawn at random; at least two images."""
    images = list(dict.fromkeys(caption.image_id for caption in captions if caption.split == "train"))
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    kept = {images[position] for position in drawn[: max(2, round(share * len(images)))].tolist()}
    return [caption for caption in captions if caption.split != "train" or caption.image_id in kept]


def shuffled(captions: Sequence[Caption], share: float) -> list[Caption]:
    """All captions, but a share of the training ones, drawn at random, go to the image of the next that was drawn."""
    training = [position for position, caption in enumerate(captions) if caption.split == "train"]
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(1))
    drawn = [training[position] for position in order[: round(share * len(training))].tolist()]
    result = list(captions)
    for position, other in zip(drawn, drawn[1:] + drawn[:1], strict=True):
        result[position] = replace(captions[position], image_id=captions[other].image_id)
    return result


class WithoutWhole(SomeImages):
    """The images of a region store without their regions of the whole image; an image that has no other keeps it."""

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source, range(len(source)))

    def batch(self, indices: Sequence[int] | Tensor) -> RegionBatch:
        """The regions that are left, in their order."""
        batch = super().batch(indices)
        if batch.boxes is None:
            raise ValueError("these region stores have no boxes, which say what is a region of the whole image")
        kept = batch.region_mask & ~is_whole(batch.boxes)
        kept = Kept.those(torch.where(kept.any(dim=1, keepdim=True), kept, batch.region_mask))
        return type(batch)(kept.of(batch.regions), kept.mask, kept.of(batch.boxes))


def is_whole(boxes: Tensor) -> Tensor:
    """Which relative boxes are of the whole image."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(dim=-1) >= WHOLE


def has_wholes(source: ImageSource) -> bool:
    """Whether any image of a source has a region of the whole of it, as far as its boxes say."""
    batches = (source.batch(range(start, min(start + 100, len(source)))) for start in range(0, len(source), 100))
    return any(batch.boxes is not None and bool((is_whole(batch.boxes) & batch.region_mask).any()) for batch in batches)
