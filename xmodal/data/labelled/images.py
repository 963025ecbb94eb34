"""Image files with their classes, read and cut when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch

from xmodal.data.images import read_image
from xmodal.data.labelled.base import LabelledBatch, LabelledSet
from xmodal.data.positions import as_positions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import UInt8
    from PIL import Image
    from torch import Tensor
    from torchvision.transforms import v2

    from xmodal.data.labelled.index import LabelledImage


NARROW = 8
"""How many times as long as broad an image may be for all of it to be resized before it is cropped."""


class LabelledImages(LabelledSet):
    """Image files with their classes, read when they are asked for.

    What a random transform draws depends on `seed` and on the indices of the batch alone: a resumed run sees the same
    pixels as one that never stopped, with any number of workers, and an image that comes twice is cropped twice.

    Args:
        images: what an index or a folder lists.
        transform: an image to a uint8 tensor of a size that all images share; see `image_transform`.
        seed: of what a random transform draws.

    Raises:
        ValueError: the seed is negative.

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from xmodal.data.labelled import LabelledImage
    >>> Image.new("RGB", (40, 30), "red").save("1.png")
    >>> transform = image_transform(train=True, resize=24, crop=16)
    >>> batch = LabelledImages([LabelledImage(Path("1.png"), "wren", "train")], transform)[0]
    >>> batch.images.shape, batch.images.dtype, batch.labels
    (torch.Size([1, 3, 16, 16]), torch.uint8, tensor([0]))
    """

    def __init__(
        self,
        images: Sequence[LabelledImage],
        transform: Callable[[Image.Image], UInt8[Tensor, "3 height width"]],
        seed: int = 0,
    ) -> None:
        names = [image.class_name for image in images]
        super().__init__([str(image.path) for image in images], names, [image.split for image in images])
        if seed < 0:
            raise ValueError(f"seed is {seed}; wanted a whole number from 0")
        self.transform, self.seed = transform, seed

    def __getitems__(self, indices: Sequence[int]) -> LabelledBatch:
        """The images in the order asked for.

        Raises:
            FileNotFoundError: a file is not there.
            IndexError: an index is not in the set.
            ValueError: there is no index, or they are no whole numbers; or a file is not an image, or is damaged.
        """
        chosen = as_positions(indices, len(self), "the set")
        drawn = np.random.SeedSequence([self.seed, *chosen.tolist()]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(drawn[0]))
            pixels = [self.transform(read_image(self.image_id[index])) for index in chosen]
        return LabelledBatch(torch.stack(pixels), self.labels[torch.from_numpy(chosen)])


def image_transform(
    *, train: bool, resize: int = 256, crop: int = 224, square: bool = False
) -> Callable[[Image.Image], UInt8[Tensor, "3 crop crop"]]:
    """The published preprocessing: resize, then a random crop and flip for training or the center crop for testing.

    Pixels stay uint8: a backbone scales and normalizes them as it was trained to see them.

    Args:
        train: whether the crop is random and half the images are mirrored.
        resize: pixels of the shorter side, or of both if `square`.
        crop: side of the square that is cut out, in pixels; 227 and 224 are usual.
        square: whether the image is stretched to a square, as ECAML does, instead of keeping its shape.

    Raises:
        ValueError: the crop is larger than the image or not positive.

    >>> from PIL import Image
    >>> image_transform(train=False)(Image.new("RGB", (500, 375))).shape
    torch.Size([3, 224, 224])
    """
    from torchvision.transforms import v2

    if not 0 < crop <= resize:
        raise ValueError(f"crop is {crop} and resize {resize}; wanted 0 < crop <= resize")
    mirror = [v2.RandomHorizontalFlip()] if train else []
    cut = v2.RandomCrop(crop) if train else v2.CenterCrop(crop)
    usual = v2.Compose([v2.Resize([resize, resize] if square else [resize]), cut, *mirror, v2.PILToTensor()])
    return usual if square else _Transform(usual, v2.Compose([*mirror, v2.PILToTensor()]), train, resize, crop)


class _Transform:
    """The usual transform, and for narrow images one that does not resize what it then cuts off.

    The crop of an image of 1 x 3,000 would be cut out of one of 256 x 768,000. It is resized from the part of the image
    that it shows instead: the same pixels but for rounding, and the same random draws.
    """

    def __init__(self, usual: v2.Compose, after_the_crop: v2.Compose, train: bool, resize: int, crop: int) -> None:
        self.usual, self.after_the_crop = usual, after_the_crop
        self.train, self.resize, self.crop = train, resize, crop

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 crop crop"]:
        if max(image.size) <= NARROW * min(image.size):
            return self.usual(image)
        return self.after_the_crop(self._cut(image))

    def __repr__(self) -> str:
        return repr(self.usual)

    def _cut(self, image: Image.Image) -> Image.Image:
        # In this order, as torchvision: a scale computed first may make of 55 pixels 223 instead of 224.
        height, width = (int(self.resize * side / min(image.size)) for side in (image.height, image.width))
        if self.train:  # drawn as `RandomCrop` does, and only along a side that leaves a choice
            top, left = (int(torch.randint(0, s - self.crop + 1, ())) if s > self.crop else 0 for s in (height, width))
        else:
            top, left = (round((side - self.crop) / 2) for side in (height, width))
        across, down = image.width / width, image.height / height
        right, bottom = min(image.width, (left + self.crop) * across), min(image.height, (top + self.crop) * down)
        box = (left * across, top * down, right, bottom)
        return image.resize((self.crop, self.crop), PIL.Image.Resampling.BILINEAR, box)
