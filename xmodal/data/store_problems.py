"""What is wrong with the contents of a region store."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xmodal.data.store_file import StoreFile

BLOCK_BYTES = 2**22
"""Features looked at together: what fits the caches of a CPU."""


def find_problems(store: StoreFile, name: str) -> Iterator[str]:
    """Read everything and say what is wrong with it, one sentence a kind of problem.

    Args:
        store: the open store.
        name: what the progress bar calls it.

    >>> from pathlib import Path
    >>> from xmodal.data import RegionStoreWriter
    >>> from xmodal.data.store_file import StoreFile
    >>> with RegionStoreWriter("train.h5", dim=2, extractor="by hand") as writer:
    ...     writer.write("cat", [[1, 0], [0, 0]])
    >>> list(find_problems(StoreFile(Path("train.h5")), "train.h5"))
    ["1 image ('cat') with a region whose features are all zero"]
    """
    features, num_regions = store.features, store.num_regions
    _, max_regions, dim = features.shape
    repeated = [image_id for image_id, count in Counter(store.image_id).items() if count > 1]
    if repeated:
        yield f"{some(repeated)} more than once in the store"

    def named(bad: np.ndarray) -> str:
        return some([store.image_id[index] for index in np.flatnonzero(bad)])

    bad_count = (num_regions < 1) | (num_regions > max_regions)
    if bad_count.any():
        yield f"{named(bad_count)} with a count outside 1..{max_regions}"
    if not (features.chunks is None or features.chunks == (1, max_regions, dim)):
        yield (
            f"features are stored in chunks of {features.chunks}, slow to read at random: "
            "RegionStoreWriter makes one an image"
        )
    not_finite, all_zero, outside = np.zeros((3, len(features)), bool)
    size = max(1, BLOCK_BYTES // (max_regions * dim * features.dtype.itemsize))
    with tqdm(total=len(features), desc=f"checking {name}", unit="image", delay=2) as progress:
        for start in range(0, len(features), size):
            block = slice(start, min(start + size, len(features)))
            real = np.arange(max_regions) < num_regions[block, None]
            rows = torch.from_numpy(np.stack([store.image(index) for index in range(block.start, block.stop)]))
            largest = rows.abs().amax(dim=2).numpy()  # NaN where there is any, and 0 where there is nothing else
            not_finite[block] = (real & ~np.isfinite(largest)).any(axis=1)
            all_zero[block] = (real & (largest == 0)).any(axis=1)
            if "boxes" in store.file:
                outside[block] = (real & ~_inside(store, block)).any(axis=1)
            progress.update(len(rows))
    if not_finite.any():
        yield f"{named(not_finite)} with NaN or infinite features"
    if all_zero.any():
        yield f"{named(all_zero)} with a region whose features are all zero"
    if outside.any():
        yield f"{named(outside)} with a box that is empty or reaches outside the image"


def _inside(store: StoreFile, images: slice) -> np.ndarray:
    """Whether each box has x1 <= x2 and y1 <= y2 and lies in its image, up to a pixel or a thousandth."""
    corner, opposite = np.split(store.file["boxes"][images], 2, axis=2)
    if store.file.attrs["box_convention"] == "xyxy relative":
        limit, slack = np.float32(1), 1e-3
    elif "image_size" in store.file:
        limit, slack = store.file["image_size"][images][:, None], 1.0
    else:
        limit, slack = np.float32(np.inf), 1.0
    return ((corner >= -slack) & (corner <= opposite) & (opposite <= limit + slack)).all(axis=2)


def some(names: list[str]) -> str:
    """How many images, and the first few of them.

    >>> some(["a", "b"])
    "2 images ('a', 'b')"
    """
    shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} image{'s' * (len(names) > 1)} ({shown})"
