"""Photographs as an image source: found by their ids, decoded when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.data.image_folder import locate_images
from xmodal.data.image_source import ImageSource
from xmodal.data.images import read_image
from xmodal.data.labelled import image_transform
from xmodal.data.positions import as_positions
from xmodal.data.strings import refuse_string

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import UInt8
    from PIL import Image
    from torch import Tensor


class PixelBatch(NamedTuple):
    """The pixels of some images, from 0 to 255; a network normalizes them as it was trained to see them."""

    pixels: UInt8[Tensor, "image 3 height width"]


class PixelTransform:
    """A photograph as pixels of a size that all share: its shorter side is resized, its center is cut out.

    Args:
        size: side of the square, in pixels.
        resize: pixels of the shorter side before it is cropped; None for 8/7 of the size, 256 for 224 as is usual.
        square: stretch the photograph to a square before it is cropped, instead of keeping its shape; with `resize` of
            `size` nothing is cut off.

    Raises:
        ValueError: the crop is larger than what it is cut from, or not positive.

    >>> from PIL import Image
    >>> PixelTransform(size=56)(Image.new("RGB", (500, 375))).shape
    torch.Size([3, 56, 56])
    """

    def __init__(self, size: int = 224, resize: int | None = None, square: bool = False) -> None:
        self.size, self.square = size, square
        self.resize = round(size * 8 / 7) if resize is None else resize
        self.transform = image_transform(train=False, resize=self.resize, crop=size, square=square)

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 size size"]:
        """The pixels of an RGB image."""
        return self.transform(image)


class PixelFolder(ImageSource):
    """The photographs of a folder, and of the folders in it, by the names that captions have for them.

    Files are looked for at once and read when a batch asks for them.

    Args:
        folder: where the photographs are.
        image_id: the names of the images, in the order that they shall have: file names without extension, or COCO's
            ids.
        size: see `PixelTransform`.
        resize: see `PixelTransform`.
        square: see `PixelTransform`.

    Raises:
        FileNotFoundError: there is no such folder, or it has no file for one of the images.
        ValueError: it has two, or the size is none.

    >>> from PIL import Image
    >>> for name, color in (("7.png", "red"), ("8.png", "lime")):
    ...     Image.new("RGB", (40, 30), color).save(name)
    >>> source = PixelFolder(".", ["8", "7"], size=14)
    >>> batch = source.batch([1])
    >>> batch.pixels.shape, batch.pixels[0, :, 0, 0]
    (torch.Size([1, 3, 14, 14]), tensor([255,   0,   0], dtype=torch.uint8))
    """

    def __init__(
        self,
        folder: str | Path,
        image_id: Sequence[str],
        size: int = 224,
        resize: int | None = None,
        square: bool = False,
    ) -> None:
        refuse_string("image_id", image_id, "ids")
        self._image_id = list(image_id)
        self._transform = PixelTransform(size, resize, square)
        located = locate_images(Path(folder), self._image_id)
        self._files = [located[name] for name in self._image_id]

    @property
    def image_id(self) -> list[str]:
        """The names of the images, in order."""
        return self._image_id

    def __len__(self) -> int:
        return len(self._image_id)

    def batch(self, indices: Sequence[int] | Tensor) -> PixelBatch:
        """The pixels of some images.

        Args:
            indices: positions, in any order, repeated or not.

        Raises:
            FileNotFoundError: a file has gone.
            IndexError: an index is not in the source.
            ValueError: there is no index, or they are no whole numbers; or a file is not an image or is damaged.
        """
        wanted = as_positions(indices, len(self), "the folder")
        return PixelBatch(torch.stack([self._transform(read_image(self._files[index])) for index in wanted]))

    @property
    def extractor(self) -> dict[str, Any]:
        """How a photograph becomes pixels."""
        transform = self._transform
        return {"name": "pixels", "size": transform.size, "resize": transform.resize, "square": transform.square}
