"""Ways to read shuffled batches of features: the region store's, a mapped array's and the published one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.data.joined import join_stores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

REGIONS, DIM, PART = 36, 2048, 64


class Store(Dataset):
    """The region store of the package, as training reads it: what is float16 becomes float32 on the device."""

    suffix = ".h5"

    def __init__(self, path: Path) -> None:
        self.store = RegionStore(path, "stored")

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return self.store.batch(indices).regions


class Joined(Store):
    """The same, joined virtually of stores of `PART` images."""

    suffix = "_joined.h5"


class Mapped(Dataset):
    """A mapped array, gathered a batch at a time: as few steps as there can be."""

    suffix = ".npy"

    def __init__(self, path: Path) -> None:
        self.array = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.array)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.array[indices])


class Whole(Dataset):
    """The array loaded whole, a tensor an image, stacked: how the published code does it."""

    suffix = ".npy"

    def __init__(self, path: Path) -> None:
        self.array = np.load(path)

    def __len__(self) -> int:
        return len(self.array)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([torch.Tensor(self.array[index]) for index in indices])


READERS: dict[str, type[Any]] = {
    "mapped array": Mapped,
    "region store": Store,
    "region store, joined": Joined,
    "array loaded whole": Whole,
}


def write(folder: Path, dtype: str, images: int) -> Path:
    """The same random features as a store, as a joined one and as an array; the path lacks its suffix."""
    path, generator = folder / f"{dtype}_{images}", np.random.default_rng(0)
    array = np.lib.format.open_memmap(f"{path}.npy", "w+", np.dtype(dtype), (images, REGIONS, DIM))
    for image in tqdm(range(images), desc=f"writing {dtype}", leave=False):
        array[image] = generator.random((REGIONS, DIM), np.float32)
    array.flush()
    write_store(Path(f"{path}{Store.suffix}"), array, range(images))
    starts = range(0, images, PART)
    parts = [folder / f"{path.name}_parts" / f"{start:06}.h5" for start in starts]
    for part, start in zip(parts, starts, strict=True):
        write_store(part, array, range(start, min(start + PART, images)))
    join_stores(parts, f"{path}{Joined.suffix}")
    return path


def write_store(path: Path, array: np.ndarray, images: range) -> None:
    """Some images of the array as a region store."""
    options = {"dim": DIM, "max_regions": REGIONS, "dtype": array.dtype.name, "extractor": "random"}
    with RegionStoreWriter(path, **options) as writer:
        for image in images:
            writer.write(str(image), array[image])
