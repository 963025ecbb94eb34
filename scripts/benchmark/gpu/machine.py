"""The device that is measured, and how much of everything; or a CPU that stands in for it, in a rehearsal."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Machine:
    """A device and the sizes of what it is given."""

    device: torch.device
    images: int = 5000
    captions: int = 25_000
    regions: int = 36
    dim: int = 1024
    input_dim: int = 2048
    words: int = 8000
    pairs: int = 128
    stored: int = 2048
    """Images of the store that is loaded from."""

    @classmethod
    def at_hand(cls) -> Machine:
        """The first GPU.

        Raises:
            SystemExit: torch sees no CUDA device.
        """
        if not torch.cuda.is_available():
            raise SystemExit("this suite needs a CUDA device, and torch sees none; --dry-run rehearses it on a CPU")
        return cls(torch.device("cuda"))

    @classmethod
    def rehearsed(cls) -> Machine:
        """A CPU, and next to nothing of everything: Triton interprets."""
        small = {"images": 6, "captions": 8, "regions": 4, "dim": 16, "input_dim": 8, "words": 20}
        return cls(torch.device("cpu"), **small, pairs=4, stored=12)

    @property
    def name(self) -> str:
        """What it calls itself."""
        return torch.cuda.get_device_name() if self.is_gpu else f"a rehearsal on {platform.machine()}"

    @property
    def is_gpu(self) -> bool:
        """Whether this is meant."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until all that was asked for is done."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def milliseconds(self, case: Callable[[], object], repetitions: int) -> float:
        """Median time of a call; the first one, which compiles, is not counted."""
        times = []
        for _ in range(repetitions + 1):
            self.wait()
            start = perf_counter()
            case()
            self.wait()
            times.append(1000 * (perf_counter() - start))
        return median(times[1:])

    def milliseconds_and_megabytes(self, case: Callable[[], object], repetitions: int) -> tuple[float, float]:
        """Median time of a call, and the memory of the device that it takes beyond what is taken already."""
        if not self.is_gpu:
            return self.milliseconds(case, repetitions), 0.0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        time = self.milliseconds(case, repetitions)
        return time, (torch.cuda.max_memory_allocated() - before) / 2**20
