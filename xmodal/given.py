"""What a user may give as an image: an array of what the image encoder takes, an image file, or a list of these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xmodal.data.pixels import PixelBatch, PixelTransform
from xmodal.data.region_store import RegionBatch
from xmodal.data.strings import refuse_string
from xmodal.names import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from jaxtyping import Num
    from PIL.Image import Image
    from torch import Tensor

    from xmodal.encoders.base import ImageEncoder
    from xmodal.encoders.region_extractor import RegionExtractor, Regions

    GivenImage = Tensor | np.ndarray | str | Path | RegionBatch | PixelBatch
    """Region features `(region, dim)` or pixels, as the encoder takes them, the path of an image file, or a batch."""
    GivenImages = GivenImage | Sequence[GivenImage]
    """One image or many; the first axis of an array with one axis too many counts images."""
    Extractor = str | Mapping[str, Any] | None
    """What turns image files into what an encoder takes, by name with its options; None where that is not known."""


TRANSFORMS = {"pixels": PixelTransform}
"""What makes arrays of photographs for encoders that look at pixels, by the name that a matcher's extractor has."""


def given_batches(images: GivenImages, encoder: ImageEncoder, extractor: Extractor = None) -> Iterator[Any]:
    """Batches for an image encoder of what was given: one of every array and file; a batch of a source stays as it is.

    Args:
        images: one image or many.
        encoder: what the batches are for.
        extractor: what made the features that the encoder was trained on, for image files.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for what is no image, an array of a wrong shape say, and for files where the extractor is not known.

    >>> from xmodal.encoders.regions import RegionProjection
    >>> encoder = RegionProjection(input_dim=8, dim=4)
    >>> [batch.regions.shape for batch in given_batches([torch.ones(36, 8), torch.ones(10, 8)], encoder)]
    [torch.Size([1, 36, 8]), torch.Size([1, 10, 8])]
    >>> len(list(given_batches(torch.ones(2, 36, 8), encoder)))
    2
    """
    for position, image in enumerate(_read_files(_one_or_many(images, encoder), extractor)):
        yield image if _is_batch(image) else _as_batch(encoder, image, position)


def given_captions(captions: str | Sequence[str]) -> list[str]:
    """The sentences of what was given: one or many.

    Raises:
        ValueError: it is something else.

    >>> given_captions("a dog"), given_captions(("a dog", "a cat"))
    (['a dog'], ['a dog', 'a cat'])
    """
    if isinstance(captions, str):
        return [captions]
    refuse_string("captions", captions, "sentences")
    if not isinstance(captions, Sequence) and not hasattr(captions, "ndim"):  # arrays and columns of strings are fine
        raise ValueError(f"captions are {_what(captions)}; wanted a sentence or a list of sentences")
    sentences = list(captions)
    for position, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise ValueError(f"caption {position} is {_what(sentence)}; wanted a sentence")
    return sentences


def region_batch(regions: Regions, size: tuple[int, int]) -> RegionBatch:
    """What an extractor found in one image as a batch of a region store, boxes included.

    Args:
        regions: what it found.
        size: width and height of the image.

    >>> from xmodal.encoders.region_extractor import Regions
    >>> batch = region_batch(Regions(torch.ones(1, 8), torch.tensor([[10.0, 0.0, 40.0, 15.0]])), size=(40, 30))
    >>> batch.boxes
    tensor([[[0.2500, 0.0000, 1.0000, 0.5000]]])
    """
    real = torch.ones(1, len(regions.features), dtype=torch.bool)
    return RegionBatch(regions.features[None], real, (regions.boxes / torch.tensor(size).repeat(2))[None])


def build_extractor(extractor: Extractor) -> RegionExtractor:
    """What finds the regions of photographs in the way in which those were found that a matcher was trained on.

    Raises:
        ValueError: the extractor is not one of ours.
        FileNotFoundError: its weights are not on this machine; the message says what to download.

    >>> build_extractor("by hand")
    Traceback (most recent call last):
    ...
    ValueError: this matcher was trained on region features of extractor 'by hand', which is not one of ...
    """
    from xmodal.encoders.extractors import EXTRACTORS

    options = _options(extractor)
    if options["name"] not in EXTRACTORS:
        raise ValueError(
            f"this matcher was trained on region features of extractor {options['name']!r}, which is not one of "
            f"{', '.join(EXTRACTORS)}; extract the features yourself and pass them instead of image files"
        )
    return build("extractor", EXTRACTORS, options)


def photograph_reader(extractor: Extractor) -> Callable[[Sequence[Image]], list[Any]]:
    """What makes a batch of each photograph, as an encoder takes it; its weights are loaded once.

    Raises:
        ValueError: the extractor is not one of ours.
        FileNotFoundError: its weights are not on this machine; the message says what to download.

    >>> from PIL import Image
    >>> read = photograph_reader({"name": "pixels", "size": 8})
    >>> [batch.pixels.shape for batch in read([Image.new("RGB", (40, 30))])]
    [torch.Size([1, 3, 8, 8])]
    """
    options = _options(extractor)
    if options["name"] in TRANSFORMS:
        transform = build("pixel transform", TRANSFORMS, options)
        return lambda images: [PixelBatch(transform(image)[None]) for image in images]
    extract = build_extractor(options)

    def read(images: Sequence[Image]) -> list[RegionBatch]:
        found = extract(list(images))
        return [region_batch(regions, image.size) for regions, image in zip(found, images, strict=True)]

    return read


def _as_batch(encoder: ImageEncoder, image: Num[Tensor, "..."] | np.ndarray, position: int) -> Any:
    try:
        array = torch.as_tensor(image)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises any of them for what is no array of numbers
        raise ValueError(f"image {position} is {_what(image)}, not an array of numbers ({error}); {_WANTED}") from error
    try:
        return encoder.as_batch(array)
    except ValueError as error:
        raise ValueError(f"image {position}: {error}") from error


def _is_batch(images: Any) -> bool:
    """Whether something is a batch of a source already: a NamedTuple."""
    return isinstance(images, tuple) and hasattr(images, "_fields")


def _one_or_many(images: Any, encoder: ImageEncoder) -> list[Any]:
    """The images in a list, be it one."""
    if isinstance(images, (str, Path)) or _is_batch(images):
        return [images]
    if isinstance(images, (list, tuple)):
        return list(images)
    if not hasattr(images, "ndim"):
        raise ValueError(f"images are {_what(images)}; {_WANTED}")
    return [images] if images.ndim <= len(encoder.image_axes) else list(images)


def _what(given: Any) -> str:
    """What somebody gave in place of something else."""
    return "None" if given is None else f"of type {type(given).__name__}"


_WANTED = (
    "wanted an array of what the image encoder takes, the path of an image file, a batch of an image source, or a list "
    "of these"
)


def _read_files(images: list[Any], extractor: Extractor) -> list[Any]:
    """The images with files among them read and turned into batches."""
    files = [Path(image) for image in images if isinstance(image, (str, Path))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"image {file} does not exist")
    extracted = iter(_extract(files, extractor) if files else ())
    return [next(extracted) if isinstance(image, (str, Path)) else image for image in images]


def _extract(files: list[Path], extractor: Extractor) -> list[RegionBatch] | list[PixelBatch]:
    from xmodal.data.images import read_image

    images = [read_image(file) for file in files]
    return photograph_reader(extractor)(images)


def _options(extractor: Extractor) -> Mapping[str, Any]:
    return {"name": extractor} if extractor is None or isinstance(extractor, str) else extractor
