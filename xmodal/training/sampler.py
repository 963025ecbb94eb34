"""The order of the data: a function of seed, epoch and step alone, so that a run can go on where it stopped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized

    from jaxtyping import Int
    from torch import Tensor


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


def steps_in_epoch(batches: Sized, accumulate: int) -> int:
    """Optimizer steps of an epoch, each along the gradient averaged over so many batches; the last one has the rest.

    >>> steps_in_epoch(ShuffledBatches(33, batch_size=8, seed=0), accumulate=3)
    2
    """
    return math.ceil(len(batches) / accumulate)


class ClassBatches:
    """Batches of some images from each of some classes, the images of a class side by side.

    Classes are drawn evenly, whatever their size, and a batch has no class twice. Of a class that has too few images,
    some come more than once. Each process gets its equal share of the classes of every batch, so that an image and its
    positives stay together.

    Args:
        labels: class of every image.
        classes_per_batch: classes in a batch over all processes; a multiple of `processes`.
        images_per_class: images of each.
        seed: with the epoch and the number of the batch, decides what is drawn.
        process: rank of this process.
        processes: number of processes.
        batches: batches in an epoch; None for as many as it takes to draw as many images as there are.

    Raises:
        ValueError: there are fewer classes than a batch wants, or another argument is out of range.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])
        >>> batches = ClassBatches(labels, classes_per_batch=2, images_per_class=2, seed=0)
        >>> all(len(set(labels[batch].tolist())) == 2 for batch in batches.epoch(0))
        True
    """

    def __init__(
        self,
        labels: Int[Tensor, "image"],
        classes_per_batch: int,
        images_per_class: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        batches: int | None = None,
    ) -> None:
        if classes_per_batch < 1 or classes_per_batch % processes:
            raise ValueError(
                f"classes_per_batch {classes_per_batch} must be a positive multiple of the number of processes, "
                f"{processes}"
            )
        if images_per_class < 1 or classes_per_batch * images_per_class < 2:
            raise ValueError(
                f"images_per_class is {images_per_class} and classes_per_batch {classes_per_batch}; wanted at least "
                "one image of each and two images a batch"
            )
        if batches is not None and batches < 1:
            raise ValueError(f"batches is {batches}; wanted at least one an epoch, or None")
        order = torch.argsort(labels, stable=True)
        sizes = torch.unique(labels, return_counts=True)[1].tolist()
        if len(sizes) < classes_per_batch:
            raise ValueError(
                f"classes_per_batch is {classes_per_batch} and the training images have {len(sizes)} classes; "
                "lower classes_per_batch"
            )
        self.images = [images.numpy() for images in order.split(sizes)]
        self.classes_per_batch, self.images_per_class, self.seed = classes_per_batch, images_per_class, seed
        self.process, self.processes = process, processes
        self.batches = batches or max(1, len(labels) // (classes_per_batch * images_per_class))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """This process's share of the batches of an epoch, from batch number `start` on."""
        share = self.classes_per_batch // self.processes
        for number in range(start, len(self)):
            generator = np.random.default_rng([self.seed, epoch, number])
            classes = generator.choice(len(self.images), self.classes_per_batch, replace=False)
            drawn = [np.resize(generator.permutation(self.images[c]), self.images_per_class) for c in classes]
            yield np.concatenate(drawn[self.process * share : (self.process + 1) * share]).tolist()
