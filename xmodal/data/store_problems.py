"""What is wrong with the contents of a region store."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from xmodal.data.store_checks import CHECKSUM, COLUMNS, StoreError, checksum, some

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

    if not (features.chunks is None or features.chunks == (1, max_regions, dim)):
        yield (
            f"features are stored in chunks of {features.chunks}, slow to read at random: "
            "RegionStoreWriter makes one an image"
        )
    unreadable, changed, not_finite, all_zero, outside = np.zeros((5, len(features)), bool)
    size = max(1, BLOCK_BYTES // (max_regions * dim * features.dtype.itemsize))
    with tqdm(total=len(features), desc=f"checking {name}", unit="image", delay=2) as progress:
        for start in range(0, len(features), size):
            block = slice(start, min(start + size, len(features)))
            real = np.arange(max_regions) < num_regions[block, None]
            columns = {name: store.file[name][block] for name in (*COLUMNS, CHECKSUM) if name in store.file}
            images = np.zeros((len(real), *features.shape[1:]), features.dtype)
            for place, index in enumerate(range(block.start, block.stop)):
                try:
                    images[place] = store.image(index)
                except StoreError:
                    unreadable[index] = True
                    continue
                if CHECKSUM in columns:
                    row = {name: values[place] for name, values in columns.items()}
                    changed[index] = checksum(store.image_id[index], images[place], row) != row[CHECKSUM]
            rows = torch.from_numpy(images)
            largest = rows.abs().amax(dim=2).numpy()  # NaN where there is any, and 0 where there is nothing else
            not_finite[block] = (real & ~np.isfinite(largest)).any(axis=1)
            all_zero[block] = (real & (largest == 0)).any(axis=1) & ~unreadable[block]
            if "boxes" in store.file:
                outside[block] = (real & ~_inside(store, block)).any(axis=1)
            progress.update(len(rows))
    if unreadable.any():
        yield f"{named(unreadable)} that cannot be read: the file is damaged there"
    if changed.any():
        yield f"{named(changed)} whose checksum is wrong: the file was damaged or changed since it was written"
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
