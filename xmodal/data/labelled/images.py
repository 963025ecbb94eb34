"""Image files with their classes, read and cut when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from xmodal.data.images import read_image
from xmodal.data.labelled.base import LabelledBatch, LabelledSet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import UInt8
    from PIL import Image
    from torch import Tensor

    from xmodal.data.labelled.index import LabelledImage


class LabelledImages(LabelledSet):
    """Image files with their classes, read when they are asked for.

    What a random transform draws depends on `seed` and on the indices of the batch alone: a resumed run sees the same
    pixels as one that never stopped, with any number of workers, and an image that comes twice is cropped twice.

    Args:
        images: what an index or a folder lists.
        transform: an image to a uint8 tensor of a size that all images share; see `image_transform`.
        seed: of what a random transform draws.

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
        self.transform, self.seed = transform, seed

    def __getitems__(self, indices: Sequence[int]) -> LabelledBatch:
        """The images in the order asked for.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: a file is not an image, or is damaged.
        """
        drawn = np.random.SeedSequence([self.seed, *map(int, indices)]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(drawn[0]))
            pixels = [self.transform(read_image(self.image_id[index])) for index in indices]
        return LabelledBatch(torch.stack(pixels), self.labels[torch.as_tensor(indices)])


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
    cut = [v2.RandomCrop(crop), v2.RandomHorizontalFlip()] if train else [v2.CenterCrop(crop)]
    return v2.Compose([v2.Resize([resize, resize] if square else [resize]), *cut, v2.PILToTensor()])
