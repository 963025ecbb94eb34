"""Features of images of which some cannot be read or computed: these are left out, with the reason; others are kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from xmodal.data.labelled import LabelledBatch, LabelledSet
from xmodal.data.workers import read_ahead
from xmodal.embedder import embed_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor, nn


class Kept(NamedTuple):
    """Features of the images that are good, these images, and why each of the others is left out."""

    features: Float[Tensor, "image dim"]
    images: LabelledSet
    skipped: dict[str, str]


def embed_good(
    module: nn.Module,
    images: LabelledSet,
    device: torch.device | str = "cpu",
    *,
    batch_size: int = 4,
    workers: int = 0,
    strict: bool = False,
    progress: bool = False,
) -> Kept:
    """What a module makes of all images of a set that can be read and computed.

    Args:
        module: takes a batch of images, see `xmodal.embedder.embed_batch`.
        images: the set.
        device: where the module is.
        batch_size: images that go through the module at once.
        workers: processes that read images ahead.
        strict: stop at the first image that is bad instead of leaving it out.
        progress: show a bar.

    Raises:
        ValueError: no image is good.

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from xmodal.data.labelled import LabelledImage, LabelledImages, image_transform
    >>> Image.new("RGB", (40, 30), "red").save("1.png")
    >>> Path("2.png").touch()
    >>> birds = [LabelledImage(Path(name), "wren", "test") for name in ("1.png", "2.png")]
    >>> birds = LabelledImages(birds, image_transform(train=False, resize=24, crop=16))
    >>> kept = embed_good(torch.nn.Flatten(), birds)
    >>> kept.features.shape, kept.images.image_id, list(kept.skipped)
    (torch.Size([1, 768]), ['1.png'], ['2.png'])
    """
    rows: list[Tensor] = []
    good: list[int] = []
    skipped: dict[str, str] = {}
    with read_ahead(_OneByOne(images, strict), workers, batch_size=batch_size) as batches:
        count = math.ceil(len(images) / batch_size)
        for read in tqdm(batches, "embedding", count, unit="batch", delay=2, leave=False, disable=not progress):
            skipped |= {images.image_id[index]: found for index, found in read.items() if isinstance(found, str)}
            pictures = {index: found for index, found in read.items() if not isinstance(found, str)}
            for index, found in _computed(module, pictures, device, strict).items():
                if isinstance(found, str):
                    skipped[images.image_id[index]] = found
                else:
                    good.append(index)
                    rows.append(found)
    if not rows:
        where, why = next(iter(skipped.items()))
        raise ValueError(f"no image is good; the first one is {where}: {why}")
    classes = [images.class_names[label] for label in images.labels[good].tolist()]
    kept = LabelledSet([images.image_id[i] for i in good], classes, [images.splits[i] for i in good])
    return Kept(torch.stack(rows), kept, skipped)


class _OneByOne(Dataset[LabelledBatch]):
    """The images of a set, each as a batch of its own or as the reason why it cannot be read."""

    def __init__(self, images: LabelledSet, strict: bool) -> None:
        self.images, self.strict = images, strict

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> dict[int, LabelledBatch | str]:
        return {index: self._read(index) for index in indices}

    def _read(self, index: int) -> LabelledBatch | str:
        try:
            return self.images[index]
        except Exception as error:  # whatever a reader raises of an image is that image's
            if self.strict:
                raise
            return str(error) or type(error).__name__


def _computed(
    module: nn.Module, pictures: dict[int, LabelledBatch], device: torch.device | str, strict: bool
) -> dict[int, Float[Tensor, " dim"] | str]:
    """The features of each image, or why there are none: one image must not spoil its batch."""
    if not pictures:
        return {}
    try:
        features = embed_batch(module, torch.cat([picture.images for picture in pictures.values()]), device)
        if features.isfinite().all():
            return dict(zip(pictures, features, strict=True))
        raise ValueError("its features are not finite")
    except Exception as error:
        if strict:
            raise
        if len(pictures) == 1:
            return dict.fromkeys(pictures, f"the backbone failed on it: {str(error) or type(error).__name__}")
    alone = [_computed(module, {index: picture}, device, strict) for index, picture in pictures.items()]
    return {index: found for one in alone for index, found in one.items()}
