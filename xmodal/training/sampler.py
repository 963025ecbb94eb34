"""The order of the data: a function of seed, epoch and step alone, so that a run can go on where it stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


class ShuffledBatches:
    """Batches of shuffled indices; each process gets its equal share of every batch.

    Args:
        count: number of items.
        batch_size: items in a batch over all processes; a multiple of `processes`.
        seed: with the epoch, decides the order.
        process: rank of this process.
        processes: number of processes.

    The last batch of an epoch is kept although it is smaller (as the published loaders do), cut to a multiple of
    `processes`; a single pair, which has no negatives, is left out.

    Example:
        >>> batches = ShuffledBatches(5, batch_size=2, seed=0)
        >>> [len(batch) for batch in batches.epoch(0)]
        [2, 2]
        >>> list(batches.epoch(1))[1:] == list(batches.epoch(1, start=1))
        True
    """

    def __init__(self, count: int, batch_size: int, seed: int, process: int = 0, processes: int = 1) -> None:
        if batch_size < 2 or batch_size % processes:
            raise ValueError(
                f"batch_size {batch_size} must be at least 2 and a multiple of the number of processes, {processes}"
            )
        if count < max(2, processes):
            raise ValueError(f"{count} training pairs are too few to make a batch over {processes} processes")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        """Batches in an epoch."""
        rest = self.count % self.batch_size
        return self.count // self.batch_size + (rest - rest % self.processes >= 2)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """This process's share of the batches of an epoch, from batch number `start` on."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.count, generator=generator)
        for number in range(start, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            share = len(batch) // self.processes
            yield batch[self.process * share : (self.process + 1) * share].tolist()
