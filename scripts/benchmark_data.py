"""Shuffled mini-batches from the region store, from a mapped array and in the published way."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.data.joined import join_stores
from xmodal.data.pairs import whole_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

IMAGES, REGIONS, DIM, BATCH, PART = 768, 36, 2048, 128, 64


class Store(Dataset):
    """The region store of the package."""

    suffix = ".h5"

    def __init__(self, path: Path) -> None:
        self.store = RegionStore(path)

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
        return torch.from_numpy(self.array[indices].astype(np.float32, copy=False))


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


def forget(path: Path) -> None:
    """Drop a file, or the files below a folder, from the page cache."""
    if path.is_dir():
        for file in path.iterdir():
            forget(file)
        return
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def images_per_second(reader: type[Any], path: Path, workers: int, *, cold: bool) -> float:
    """Speed over one shuffled epoch, from the first batch on: starting the workers does not count."""
    file = Path(f"{path}{reader.suffix}")
    dataset = reader(file)
    if cold:
        forget(path.with_name(f"{path.name}_parts") if reader is Joined else file)
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, collate_fn=whole_batch)  # type: ignore[arg-type]
    batches = iter(loader)
    next(batches)
    start = perf_counter()
    count = sum(len(batch) for batch in batches)
    return count / (perf_counter() - start)


def own_memory(reader: type[Any], path: Path) -> float:
    """The most memory that reading takes, without the page cache, in MB; call in a fresh process (Linux)."""
    before, most = anonymous(), 0
    dataset = reader(Path(f"{path}{reader.suffix}"))
    for indices in np.random.default_rng(0).permutation(len(dataset)).reshape(-1, BATCH):
        batch = dataset.__getitems__(indices)
        most = max(most, anonymous() - before)
        del batch
    return most / 1024


def anonymous() -> int:
    """This process's memory that is no file's, in KB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def data(repetitions: int) -> None:
    """Images a second for 1 and 2 workers, warm and cold, and memory for a set and for one twice as large.

    Of each case's repetitions the fastest counts: whatever else the machine does can only make one slower.
    """
    print(f"{IMAGES} images, {REGIONS} x {DIM}, batches of {BATCH}, shuffled")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for dtype in ("float32", "float16"):
            path = write(Path(folder), dtype, IMAGES)
            print(f"\n{dtype:24}{'images/s':>12}{'time / mapped':>16}")
            for workers in (1, 2):
                for cold in (False, True):
                    best = dict.fromkeys(READERS, 0.0)
                    for _ in range(repetitions):  # in turns, so that other load falls on all alike
                        for name, reader in READERS.items():
                            best[name] = max(best[name], images_per_second(reader, path, workers, cold=cold))
                    print(f"{workers} worker{'s' * (workers > 1)}, {'cold' if cold else 'warm'}")
                    for name, speed in best.items():
                        print(f"  {name:22}{speed:12.0f}{best['mapped array'] / speed:15.2f}x")
        twice = write(Path(folder), "float16", 2 * IMAGES)
        print(f"\n{'own memory, float16':24}{f'{IMAGES} images':>14}{f'{2 * IMAGES} images':>14}")
        for name, reader in READERS.items():
            sizes = []
            for each in (path, twice):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                    sizes.append(fresh.submit(own_memory, reader, each).result())
            print(f"{name:24}{sizes[0]:11.0f} MB{sizes[1]:11.0f} MB")
