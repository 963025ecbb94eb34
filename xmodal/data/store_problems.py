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

PROBLEMS = UNREADABLE, CHANGED, NOT_FINITE, ALL_ZERO, OUTSIDE = (
    "that cannot be read: the file is damaged there",
    "whose checksum is wrong: the file was damaged or changed since it was written",
    "with NaN or infinite features",
    "with a region whose features are all zero",
    "with a box that is empty or reaches outside the image",
)
"""What can be wrong with an image, in the order in which it is told."""


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
    features = store.features
    _, max_regions, dim = features.shape
    repeated = [image_id for image_id, count in Counter(store.image_id).items() if count > 1]
    if repeated:
        yield f"{some(repeated)} more than once in the store"
    if not (features.chunks is None or features.chunks == (1, max_regions, dim)):
        yield (
            f"features are stored in chunks of {features.chunks}, slow to read at random: "
            "RegionStoreWriter makes one an image"
        )
    bad = {problem: np.zeros(len(features), bool) for problem in PROBLEMS}
    size = max(1, BLOCK_BYTES // (max_regions * dim * features.dtype.itemsize))
    with tqdm(total=len(features), desc=f"checking {name}", unit="image", delay=2) as progress:
        for start in range(0, len(features), size):
            block = slice(start, min(start + size, len(features)))
            for problem, images in _problems_of(store, block).items():
                bad[problem][block] = images
            progress.update(block.stop - block.start)
    for problem, images in bad.items():
        if images.any():
            yield f"{some([store.image_id[index] for index in np.flatnonzero(images)])} {problem}"


def _problems_of(store: StoreFile, block: slice) -> dict[str, np.ndarray]:
    """Which of these images have which problem."""
    images, unreadable, changed = _read(store, block)
    real = np.arange(images.shape[1]) < store.num_regions[block, None]
    largest = (
        torch.from_numpy(images).abs().amax(dim=2).numpy()
    )  # NaN where there is any, 0 where there is nothing else
    found = {
        UNREADABLE: unreadable,
        CHANGED: changed,
        NOT_FINITE: (real & ~np.isfinite(largest)).any(axis=1),
        ALL_ZERO: (real & (largest == 0)).any(axis=1) & ~unreadable,
    }
    if "boxes" in store.file:
        found[OUTSIDE] = (real & ~_inside(store, block)).any(axis=1)
    return found


def _read(store: StoreFile, block: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The features of these images, which of them cannot be read, and whose checksum is wrong."""
    columns = {name: store.file[name][block] for name in (*COLUMNS, CHECKSUM) if name in store.file}
    features = np.zeros((block.stop - block.start, *store.features.shape[1:]), store.features.dtype)
    unreadable, changed = np.zeros((2, len(features)), bool)
    for place, index in enumerate(range(block.start, block.stop)):
        try:
            features[place] = store.image(index)
        except StoreError:
            unreadable[place] = True
            continue
        if CHECKSUM in columns:
            row = {name: values[place] for name, values in columns.items()}
            changed[place] = checksum(store.image_id[index], features[place], row) != row[CHECKSUM]
    return features, unreadable, changed


def _inside(store: StoreFile, images: slice) -> np.ndarray:
    """Whether each box has x1 <= x2 and y1 <= y2 and lies in its image, up to a pixel or a thousandth."""
    corner, opposite = np.split(store.file["boxes"][images], 2, axis=2)
    if store.file.attrs["box_convention"] == "xyxy relative":
        limit, slack = np.float32(1), 1e-3
    elif "image_size" in store.file:
        limit, slack = store.file["image_size"][images][:, None], 1.0
    else:
        limit, slack = np.float32(np.inf), 1.0
    in_order = (corner >= -slack) & (corner <= opposite) & (opposite <= limit + slack)
    return (in_order & (limit > 0)).all(axis=2)  # in an image without pixels there is no box
