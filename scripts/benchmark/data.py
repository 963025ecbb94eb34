"""Shuffled mini-batches from the region store, from a mapped array and in the published way."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from scripts.benchmark.measure import in_fresh_process, memory
from scripts.benchmark.readers import DIM, READERS, REGIONS, Joined, write
from xmodal.data.pairs import whole_batch

IMAGES, BATCH = 768, 128


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
    before, most = memory("RssAnon"), 0
    dataset = reader(Path(f"{path}{reader.suffix}"))
    for indices in np.random.default_rng(0).permutation(len(dataset)).reshape(-1, BATCH):
        batch = dataset.__getitems__(indices)
        most = max(most, memory("RssAnon") - before)
        del batch
    return most / 1024


def run(repetitions: int) -> None:
    """Images a second without and with workers, warm and cold, and memory for a set and for one twice as large."""
    print(f"{IMAGES} images, {REGIONS} x {DIM}, batches of {BATCH}, shuffled")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for dtype in ("float32", "float16"):
            path = write(Path(folder), dtype, IMAGES)
            print(f"\n{dtype:24}{'images/s':>12}{'time / mapped':>16}")
            for workers in (0, 1, 2):
                for cold in (False, True):
                    print(f"{workers or 'no'} worker{'s' * (workers != 1)}, {'cold' if cold else 'warm'}")
                    print_speeds(path, workers, repetitions, cold=cold)
        print_memory(path, write(Path(folder), "float16", 2 * IMAGES))


def print_speeds(path: Path, workers: int, repetitions: int, *, cold: bool) -> None:
    """Of each reader's repetitions the fastest counts: whatever else the machine does can only make one slower."""
    best = dict.fromkeys(READERS, 0.0)
    for _ in range(repetitions):  # in turns, so that other load falls on all alike
        for name, reader in READERS.items():
            best[name] = max(best[name], images_per_second(reader, path, workers, cold=cold))
    for name, speed in best.items():
        print(f"  {name:22}{speed:12.0f}{best['mapped array'] / speed:15.2f}x")


def print_memory(once: Path, twice: Path) -> None:
    """What every reader takes for a set and for one twice as large."""
    print(f"\n{'own memory, float16':24}{f'{IMAGES} images':>14}{f'{2 * IMAGES} images':>14}")
    for name, reader in READERS.items():
        sizes = [in_fresh_process(own_memory, reader, path) for path in (once, twice)]
        print(f"{name:24}{sizes[0]:11.0f} MB{sizes[1]:11.0f} MB")
