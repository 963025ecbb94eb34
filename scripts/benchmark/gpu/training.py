"""Training steps of the published heads on a GPU, and how fast their data gets there."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader

from scripts.benchmark.sets import random_word_mask
from scripts.benchmark.step import descend
from scripts.experiments.addr.settings import HEADS, TOWERS
from xmodal.data import PairBatch, RegionBatch, RegionStore, RegionStoreWriter
from xmodal.data.image_source import in_float32
from xmodal.data.pairs import whole_batch
from xmodal.model import Matcher
from xmodal.objectives import HingeRanking
from xmodal.training.moving import moved
from xmodal.training.step import MatchingStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from scripts.benchmark.gpu.kernel import Row
    from scripts.benchmark.gpu.machine import Machine

FUSED = ("SCAN t-i LSE", "BFAN prob")
"""Heads that the kernel trains, too."""


def steps(machine: Machine, repetitions: int) -> Iterator[Row]:
    """Loss, gradients, clipping and Adam, in float32 and with bfloat16 autocast, with and without the fused kernel."""
    for name in HEADS:
        for how in ("eager", "triton") if name in FUSED else ("eager",):
            for precision in ("float32", "bfloat16"):
                case = training_step(machine, name, how, precision)
                time, peak = machine.milliseconds_and_megabytes(case, repetitions)
                speed = 1000 * machine.pairs / time
                yield {"head": name, "scores": how, "precision": precision, "ms": time, "pairs/s": speed, "MB": peak}


def training_step(machine: Machine, name: str, how: Any, precision: str) -> Callable[[], None]:
    """A step over the same batch, which is on the device."""
    towers = {"dim": machine.dim, **TOWERS.get(name, {})}
    image = {"name": "regions", "input_dim": machine.input_dim, **towers}
    text = {"name": "gru", "word_dim": 300, "bidirectional": True, **towers}
    matcher = Matcher(image, text, HEADS[name], vocabulary=[str(number) for number in range(machine.words)])
    step = MatchingStep(matcher, HingeRanking(), scoring=how).to(machine.device)
    optimizer = torch.optim.Adam(step.parameters(), 2e-4)
    batch = random_pairs(machine)

    def loss() -> Tensor:
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return step(batch, 0)["total"]

    return partial(descend, step, optimizer, loss)


def random_pairs(machine: Machine) -> PairBatch:
    """A batch on the device."""
    generator = torch.Generator().manual_seed(0)
    mask = random_word_mask(machine.pairs, generator, shortest=3, longest=50)
    tokens = torch.randint(4, machine.words, mask.shape, generator=generator) * mask
    features = torch.rand(machine.pairs, machine.regions, machine.input_dim, generator=generator)
    images = RegionBatch(features, torch.ones(features.shape[:2], dtype=torch.bool))
    pair = torch.arange(machine.pairs)
    batch: Any = send_to_device(PairBatch(images, tokens, mask, image=pair, caption=pair), machine.device)
    return batch


class _Regions:
    """Batches of a store, as training reads them."""

    def __init__(self, path: Path) -> None:
        self.store = RegionStore(path, "stored")

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, indices: Sequence[int]) -> RegionBatch:
        return self.store.batch(indices)


def loading(machine: Machine, repetitions: int) -> Iterator[Row]:
    """From a float16 store on disk to float32 on the device, copies beside the computation."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.h5"
        features = np.random.default_rng(0).random((machine.regions, machine.input_dim), np.float32)
        options = {"dim": machine.input_dim, "max_regions": machine.regions, "dtype": "float16", "extractor": "random"}
        with RegionStoreWriter(path, **options) as writer:
            for image in range(machine.stored):
                writer.write(str(image), np.roll(features, image))
        for workers in (0, 2, 8) if machine.is_gpu else (0, 2):
            speeds = [images_per_second(machine, path, workers) for _ in range(max(1, repetitions // 2))]
            yield {"workers": float(workers), "images/s": max(speeds)}


def images_per_second(machine: Machine, path: Path, workers: int) -> float:
    """Over one epoch in order, from the first batch on: starting the workers does not count."""
    loader = DataLoader(
        _Regions(path),  # type: ignore[arg-type]
        machine.pairs,
        num_workers=workers,
        collate_fn=whole_batch,
        pin_memory=machine.is_gpu,
    )
    batches = moved(loader, machine.device)
    in_float32(next(batches))
    start = perf_counter()
    count = sum(len(in_float32(batch).regions) for batch in batches)
    machine.wait()
    return count / (perf_counter() - start)
