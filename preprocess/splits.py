"""Images divided at random into those to train on, to choose by and to test on."""

from __future__ import annotations

import math
import random
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def draw_splits(images: Sequence[str], *, dev: float, test: float, seed: int) -> dict[str, str]:
    """The split of every image: `dev`, `test`, or `train` for the others.

    Args:
        images: ids, in an order that does not depend on chance.
        dev: images of dev, below 1 as a share of all (but one at least), from 1 as their number; 0 is none.
        test: likewise of test.
        seed: of the draw.

    Raises:
        ValueError: a size is negative or no whole number, or no image is left to train on.

    >>> draw_splits(["7", "8", "9", "10"], dev=0.25, test=1, seed=0)
    {'7': 'train', '8': 'dev', '9': 'test', '10': 'train'}
    """
    sizes = {"dev": _size("dev", dev, len(images)), "test": _size("test", test, len(images))}
    num_train = len(images) - sum(sizes.values())
    if num_train < 1:
        raise ValueError(
            f"{len(images)} images are too few for {sizes['dev']} dev and {sizes['test']} test images: none is left to "
            "train on. Lower --dev or --test."
        )
    splits = [split for split, size in sizes.items() for _ in range(size)] + ["train"] * num_train
    random.Random(seed).shuffle(splits)
    return dict(zip(images, splits, strict=True))


def plain_split(split: str, where: str = "") -> str:
    """The name of a split, which names files, too.

    Raises:
        ValueError: it is none; the message begins with `where`.

    >>> plain_split("dev")
    'dev'
    >>> plain_split("../dev", "mine.csv: ")
    Traceback (most recent call last):
    ...
    ValueError: mine.csv: split '../dev' is no name for a file; use letters, digits, -, _ and .
    """
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise ValueError(f"{where}split {split!r} is no name for a file; use letters, digits, -, _ and .")
    return split


def _size(split: str, given: float, num_images: int) -> int:
    if 0 < given < 1:
        return max(1, round(given * num_images))
    if not math.isfinite(given) or given < 0 or given != int(given):
        raise ValueError(f"--{split} is {given}, wanted a share below 1 or a whole number of images")
    return int(given)
