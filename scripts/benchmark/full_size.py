"""Everything once at COCO's full size, nothing extrapolated: `python -m scripts.benchmark full-size`.

A region store of 113,287 images (36 x 2048 in float16, 16.7 GB) and 566,435 captions are made, verified and read in
shuffled batches as training reads them; then 5,000 images are scored against 25,000 captions at dim 1024, from encoded
features to metrics, in float32 and exactly from bfloat16. What each stage took is on the page and kept beside it as the
stage ends, and a run that was stopped goes on with the next one; the store is removed at the end. `--dry-run` does all
of it with a handful of images, in seconds, and writes nothing down.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from preprocess.verify import Config as VerifyConfig
from preprocess.verify import main as verify
from scripts.benchmark.data import forget
from scripts.benchmark.history import commit
from scripts.benchmark.measure import in_fresh_process, memory
from scripts.benchmark.sets import random_sets
from xmodal.data import Caption, PairDataset, RegionStore, RegionStoreWriter, Vocabulary, save_captions
from xmodal.data.atomic import written_whole
from xmodal.data.pairs import whole_batch
from xmodal.data.split import CAPTIONS, split_captions
from xmodal.data.tokenized import KeptTokens
from xmodal.evaluation import evaluate_retrieval
from xmodal.evaluation.report import markdown_table
from xmodal.heads import BFAN, SCAN
from xmodal.products import chosen_product
from xmodal.scoring import evaluate_exact, score_all
from xmodal.training.sampler import ShuffledBatches

if TYPE_CHECKING:
    from collections.abc import Callable

    from xmodal.heads import Head

RESULTS, PAGE = "full_size.json", "full_size.md"
OUTPUT = Path("docs/results")


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    images: int = 113_287
    captions_per_image: int = 5
    regions: int = 36
    input_dim: int = 2048
    steps: int = 1000
    batch: int = 128
    tested_images: int = 5000
    tested_captions: int = 25_000
    dim: int = 1024

    @property
    def bytes(self) -> int:
        """Of the features on disk."""
        return 2 * self.images * self.regions * self.input_dim


TINY = Size(images=40, regions=4, input_dim=8, steps=3, batch=16, tested_images=10, tested_captions=50, dim=8)

MINUTES = {"write": 1, "captions": 3, "verify": 2, "read": 1, "SCAN": 11, "BFAN": 13, "SCAN exact": 7, "BFAN exact": 11}
"""About how long each stage takes on two cores, said before it starts."""

WORDS = ("a", "man", "woman", "dog", "cat", "on", "the", "with", "of", "in", "street", "red", "sits", "holds", "near")


def run(repetitions: int, *, dry_run: bool = False) -> None:
    """All stages that have not been recorded, one after another; `repetitions` is not used: each runs once."""
    size = TINY if dry_run else Size()
    folder = Path("full_size_data") if not dry_run else Path(tempfile.mkdtemp())
    output = folder if dry_run else OUTPUT
    known = json.loads((output / RESULTS).read_text()) if (output / RESULTS).exists() else {}
    stages = stages_of(folder, size)
    left = [name for name in stages if name not in known]
    announce(left, folder, size)
    for name in left:
        print(f"\n{name}", flush=True)
        known[name] = {**stages[name](), "commit": commit()}
        print(", ".join(f"{what} {value}" for what, value in known[name].items()))
        for file, text in {RESULTS: json.dumps(known, indent=1) + "\n", PAGE: page(known)}.items():
            with written_whole(output / file) as temporary:
                temporary.write_text(text)
    shutil.rmtree(folder, ignore_errors=True)
    if not dry_run:
        print(f"wrote {OUTPUT / PAGE}")


def announce(left: list[str], folder: Path, size: Size) -> None:
    """Say what it will take, and refuse to start what there is no room for.

    Raises:
        OSError: the disk has too little room.
    """
    wanted = int(1.05 * size.bytes) if {"write", "verify", "read"} & set(left) else 0
    free = shutil.disk_usage(Path(folder).absolute().parent).free
    minutes = sum(MINUTES[name] for name in left) if size == Size() else 0
    print(f"{len(left)} stages, about {minutes} minutes on two cores, {wanted / 1e9:.1f} GB of disk in {folder}")
    if free < wanted:
        raise OSError(f"{folder.absolute()} has {free / 1e9:.1f} GB free; wanted {wanted / 1e9:.1f} GB")


def stages_of(folder: Path, size: Size) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is done, in this order; what is needed of an earlier stage is made again if it is not there."""
    scoring: dict[str, tuple[Head, bool]] = {
        "SCAN": (SCAN(), False),
        "BFAN": (BFAN(), False),
        "SCAN exact": (SCAN(), True),
        "BFAN exact": (BFAN(), True),
    }
    stages = {name: partial(stage, folder, size) for name, stage in DATA_STAGES.items()}
    return stages | {name: partial(alone, size, score, *how, size) for name, how in scoring.items()}


def write(folder: Path, size: Size) -> dict[str, Any]:
    """Write the store, image by image, as the converters do."""
    generator = np.random.default_rng(0)
    block = generator.random((64 + size.regions, size.input_dim), np.float32).astype(np.float16)
    options = {"dim": size.input_dim, "max_regions": size.regions, "dtype": "float16", "extractor": "random"}
    start = perf_counter()
    with RegionStoreWriter(folder / "train.h5", **options, overwrite=True) as writer:
        for image in tqdm(range(size.images), "writing", unit="image"):
            first = image % 64
            writer.write(str(image), block[first : first + size.regions])
    took = perf_counter() - start
    return {"seconds": round(took, 1), "images a second": round(size.images / took), "GB": round(size.bytes / 1e9, 2)}


def write_captions(folder: Path, size: Size) -> dict[str, Any]:
    """Write the captions, and tokenize them twice: as the first start of a training does, and as the second does."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(7, 14, size.images * size.captions_per_image)
    captions = [
        Caption(str(number // size.captions_per_image), str(number), " ".join(generator.choice(WORDS, length)), "train")
        for number, length in enumerate(tqdm(lengths.tolist(), "making captions", unit="caption", delay=2))
    ]
    start = perf_counter()
    save_captions(folder / CAPTIONS, captions)
    saved = perf_counter() - start
    first, second = (alone(size, seconds_to_start, folder, size) for _ in range(2))
    return {
        "captions": len(captions),
        "seconds to save": round(saved, 1),
        "seconds of a first start": round(first, 1),
        "seconds of a later start": round(second, 1),
    }


def alone(size: Size, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process that holds nothing else; a rehearsal saves itself the start of one."""
    return in_fresh_process(function, *arguments) if size == Size() else function(*arguments)


def seconds_to_start(folder: Path, size: Size) -> float:
    """How long it takes from the folder to a dataset that gives batches."""
    start = perf_counter()
    open_dataset(folder, size)
    return perf_counter() - start


def open_dataset(folder: Path, size: Size) -> PairDataset:
    """The training data as the trainer opens it."""
    ensure_store(folder, size)
    vocabulary = Vocabulary([*WORDS])
    captions = split_captions(folder, "train")
    kept = KeptTokens(folder, vocabulary.identity())
    return PairDataset(RegionStore(folder / "train.h5", "stored"), captions, vocabulary, kept=kept)


def ensure_store(folder: Path, size: Size) -> None:
    """Write what a stage that was done earlier, elsewhere, would have left."""
    if not (folder / "train.h5").exists():
        write(folder, size)
    if not (folder / CAPTIONS).exists():
        write_captions(folder, size)


def check(folder: Path, size: Size) -> dict[str, Any]:
    """`xmodal prepare verify`: every number of the store is read."""
    ensure_store(folder, size)
    forget(folder / "train.h5")
    start = perf_counter()
    verify(VerifyConfig(folder))
    took = perf_counter() - start
    return {"seconds": round(took, 1), "GB a second": round(size.bytes / 1e9 / took, 2)}


def read(folder: Path, size: Size) -> dict[str, Any]:
    """Shuffled batches, from a cold page cache on."""
    ensure_store(folder, size)
    forget(folder / "train.h5")
    return in_fresh_process(time_batches, folder, size)


def time_batches(folder: Path, size: Size) -> dict[str, Any]:
    """What a step waits for its data, and the memory that is not the page cache's; in a fresh process."""
    dataset = open_dataset(folder, size)
    order = ShuffledBatches(len(dataset), size.batch, seed=0)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=order.epoch(0),
        collate_fn=whole_batch,  # type: ignore[arg-type]
    )
    before, most, count, batches = memory("RssAnon"), 0, 0, iter(loader)
    start = perf_counter()
    for _, batch in zip(tqdm(range(size.steps), "reading", unit="step"), batches, strict=False):
        count += len(batch.image)
        most = max(most, memory("RssAnon") - before)
    took = perf_counter() - start
    return {
        "steps": size.steps,
        "milliseconds a step": round(1000 * took / size.steps, 1),
        "images a second": round(count / took),
        "own memory, MB": round(most / 1024),
    }


DATA_STAGES: dict[str, Callable[[Path, Size], dict[str, Any]]] = {
    "write": write,
    "captions": write_captions,
    "verify": check,
    "read": read,
}


def score(head: Head, exactly: bool, size: Size) -> dict[str, Any]:
    """From encoded features to metrics; in a fresh process."""
    sets = random_sets(size.tested_images, size.tested_captions, dim=size.dim)
    start = perf_counter()
    if exactly:
        metrics = evaluate_exact(head, *sets.inputs, caption_image=sets.caption_image, progress=True)
    else:
        metrics = evaluate_retrieval(score_all(head, *sets.inputs, progress=True), sets.caption_image)
    minutes = (perf_counter() - start) / 60
    return {
        "minutes": round(minutes, 2),
        "rsum": round(metrics["rsum"], 3),
        "threads": torch.get_num_threads(),
        "product": chosen_product(),
        "peak memory, GB": round(memory("VmHWM") / 2**20, 1),
    }


def page(known: dict[str, dict[str, Any]]) -> str:
    """The page of what was measured."""
    rows = [
        [name, "; ".join(f"{what} {value}" for what, value in known[name].items() if what != "commit")]
        for name in MINUTES
        if name in known
    ]
    size = Size()
    return (
        "# At COCO's full size\n\n"
        "Written by `python -m scripts.benchmark full-size`, which runs every stage once and extrapolates nothing.\n"
        f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}, torch {torch.__version__}; "
        f"{size.images:,} images of {size.regions} x {size.input_dim} float16 features; evaluation of "
        f"{size.tested_images:,} images\nand {size.tested_captions:,} captions at dim {size.dim}.\n\n"
        f"{markdown_table([['stage', 'measured'], *rows])}\n"
    )
