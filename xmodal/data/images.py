"""Reading image files: whatever Pillow opens becomes 8-bit RGB, upright, on white where it is transparent."""

from __future__ import annotations

import functools
import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from xmodal.data.store_checks import check_regular

if TYPE_CHECKING:
    from jaxtyping import Num

HEIC_SUFFIXES = frozenset({".heic", ".heif"})
"""What phones write; Pillow needs a plug-in for it."""

PHOTOGRAPHS = {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
PORTABLE_MAPS = {".pbm", ".pgm", ".pnm", ".ppm"}
IMAGE_SUFFIXES = frozenset(PHOTOGRAPHS | PORTABLE_MAPS | (HEIC_SUFFIXES if find_spec("pillow_heif") else set()))
"""Extensions of image files, in lower case."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its orientation in Exif."""

SIXTEEN_BITS = 65_535

RUN_PROGRAMS = {"EPS"}
"""Formats that Pillow hands to another program (Ghostscript), whatever a file is called."""

SENT = frozenset({"AVIF", "BMP", "GIF", "HEIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
"""Formats in which strangers send photographs; the decoders of all others stay out of their reach."""

BITS, SAMPLE_FORMAT = 258, 339
"""Tags of TIFF; unsigned integers have sample format 1."""


def read_image(path: str | Path, *, longest: int | None = None) -> Image.Image:
    """An image file in 8-bit RGB, upright, on white where it is transparent.

    Of an animation, or of several pages, it is the first one. More than 8 bits a pixel are scaled to 8: unsigned
    16-bit numbers by the range of their type (65,535 is white), floating point numbers from 0 to 1 by that range, and
    all others (32-bit or signed integers, floating point numbers beyond 0 to 1) by the range of the picture, its least
    value black and its largest white.

    Args:
        path: the file.
        longest: shrink the picture so that its longer side has at most this many pixels; a JPEG is then not even
            decoded at its full size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image that Pillow reads, is damaged or no ordinary file, has more pixels than
            Pillow's limit (about 179 million), or holds numbers that are not finite.

    >>> from PIL import Image
    >>> Image.new("L", (4, 3)).save("gray.png")
    >>> read_image("gray.png").mode, read_image("gray.png").size
    ('RGB', (4, 3))
    """
    return _read(Path(path), str(path), longest=longest)


def read_sent_image(content: bytes, *, least_side: int = 1, most_pixels: int) -> Image.Image:
    """An image that a stranger sent, as `read_image` gives it; it is measured before it is decoded.

    Args:
        content: what would be the file.
        least_side: the fewest pixels that its shorter side may have.
        most_pixels: the most that it may have altogether, which bounds the memory that decoding takes.

    Raises:
        ValueError: as for `read_image`, or the image is of a kind that is seldom sent, too small or too large.

    >>> import io
    >>> file = io.BytesIO()
    >>> Image.new("L", (40, 30)).save(file, "PNG")
    >>> read_sent_image(file.getvalue(), most_pixels=2000).size
    (40, 30)
    >>> read_sent_image(file.getvalue(), most_pixels=1000)
    Traceback (most recent call last):
    ...
    ValueError: cannot read the image: it has 40 x 30 pixels; at most 1000 are wanted. Shrink it.
    """
    return _read(io.BytesIO(content), "the image", formats=SENT, least_side=least_side, most_pixels=most_pixels)


def _read(
    file: Path | io.BytesIO,
    name: str,
    *,
    longest: int | None = None,
    formats: frozenset[str] | None = None,
    least_side: int = 1,
    most_pixels: int | None = None,
) -> Image.Image:
    """An image of a file that errors call by a name."""
    _register_plug_ins()
    try:
        if isinstance(file, Path):
            check_regular(file, "photograph")
        # Pillow warns of odd metadata and of large pictures; what cannot be read is an error all the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.init()
            known = [each for each in Image.OPEN if each not in RUN_PROGRAMS and (formats is None or each in formats)]
            with Image.open(file, formats=known) as image:
                _check_size(image, least_side, most_pixels)
                return _decoded(image, longest)
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {name}") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read {name}: it is not an image, or of a kind that Pillow does not read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"cannot read {name}: {error} Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from error
    # What Pillow raises depends on the format and on where the damage is.
    except Exception as error:
        raise ValueError(f"cannot read {name}: {str(error) or type(error).__name__}") from error


def _check_size(image: Image.Image, least_side: int, most_pixels: int | None) -> None:
    told = f"it has {image.width} x {image.height} pixels"
    if min(image.size) < least_side:
        raise ValueError(f"{told}; at least {least_side} a side are wanted, since nothing can be seen in fewer")
    if most_pixels is not None and image.width * image.height > most_pixels:
        raise ValueError(f"{told}; at most {most_pixels} are wanted. Shrink it.")


def _decoded(image: Image.Image, longest: int | None) -> Image.Image:
    if longest is not None:
        image.draft(None, (longest, longest))
    image.load()
    picture = _on_white(_eight_bits(image) if image.mode == "F" or image.mode.startswith("I") else image)
    if longest is not None:
        picture.thumbnail((longest, longest))
    turn = UPRIGHT.get(_orientation(image))
    return picture if turn is None else picture.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    """The image in RGB; conversion alone would show the colors that transparency hides."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    drawing = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 8 bits from gray of more, which conversion would clip."""
    values = _values(image)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    low, high = _black_and_white(image, values)
    # In float64, for the range of a picture in float32 need not fit float32.
    gray = Image.fromarray(np.rint((values - np.float64(low)) * (255.0 / ((high - low) or 1.0))).astype(np.uint8))
    if isinstance(transparent := image.info.get("transparency"), int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray


def _values(image: Image.Image) -> Num[np.ndarray, "height width"]:
    """The numbers of an image of more than 8 bits."""
    values = np.asarray(image)
    tags: Any = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    unsigned = (tags.get(BITS), tags.get(SAMPLE_FORMAT, (1,))) == ((32,), (1,))
    return values.view(np.uint32) if unsigned else values  # Pillow has signed ones only


def _black_and_white(image: Image.Image, values: Num[np.ndarray, "height width"]) -> tuple[float, float]:
    """The values that become black and white."""
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        return (0.0, 1.0) if 0 <= low <= high <= 1 else (low, high)
    # PNG and PPM hold no more than 16 bits, whatever Pillow keeps them in.
    unsigned = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    return (0.0, float(SIXTEEN_BITS)) if unsigned else (low, high)


def _orientation(image: Image.Image) -> Any:
    """How the picture lies, as Exif counts it; of Exif, whose other fields may be damaged, nothing else is read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as many kinds of errors as of damage, and none of them concerns the picture
        return None


@functools.cache
def _register_plug_ins() -> None:
    if find_spec("pillow_heif"):
        import pillow_heif  # type: ignore[import-not-found]

        pillow_heif.register_heif_opener()
