"""A scene as a picture."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter

from scripts.demo.scenes import BACKGROUNDS, Scene

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.demo.artwork import Thing


def draw(scene: Scene, things: dict[str, Thing]) -> Image.Image:
    """Paint a scene: a soft vertical gradient, and each thing above its own faint shadow.

    >>> from scripts.demo.artwork import load_things
    >>> from scripts.demo.scenes import Casting, make_scenes
    >>> things = load_things()
    >>> (scene,) = make_scenes(Casting(things, {}), "train", 1, canvas=64, seed=0)
    >>> draw(scene, things).size
    (64, 64)
    """
    light = BACKGROUNDS[scene.background]
    dark = tuple(int(0.9 * value) for value in light)
    size = (scene.canvas, scene.canvas)
    gradient = Image.linear_gradient("L").resize(size)
    picture = Image.composite(Image.new("RGB", size, dark), Image.new("RGB", size, light), gradient)
    for thing in scene.objects:
        x1, y1, x2, y2 = thing.box
        artwork = _load_artwork(things[thing.name].drawings[thing.vendor])
        artwork = artwork.resize((x2 - x1, y2 - y1), Image.Resampling.LANCZOS)
        shadow = Image.new("L", (artwork.width + 12, artwork.height + 12))
        shadow.paste(artwork.getchannel("A").point([alpha // 3 for alpha in range(256)]), (6, 6))
        picture.paste((50, 50, 70), (x1 - 6, y1 - 3), shadow.filter(ImageFilter.GaussianBlur(2.5)))
        picture.paste(artwork, (x1, y1), artwork)
    return picture


@functools.cache
def _load_artwork(path: Path) -> Image.Image:
    """A drawing (RGBA) cut to what is visible and centered in a square, so that a box means what one sees."""
    image = Image.open(path).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    square = Image.new("RGBA", (max(image.size), max(image.size)))
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    return square
