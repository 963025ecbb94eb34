"""Image files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageOps

if TYPE_CHECKING:
    from pathlib import Path

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def read_image(path: str | Path) -> Image.Image:
    """An image file in RGB, upright, on white where it is transparent.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, or is damaged.

    >>> from PIL import Image
    >>> Image.new("L", (4, 3)).save("gray.png")
    >>> read_image("gray.png").mode, read_image("gray.png").size
    ('RGB', (4, 3))
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            # Conversion alone would show the colors that transparency hides.
            drawing = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {path}") from None
    # What Pillow raises depends on the format and on where the damage is.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
