"""What steps came to, left on the device until it is read for many of them at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


class ReadStep(NamedTuple):
    """A step whose numbers have been read."""

    step: int
    """How many steps were done with this one."""
    items: str
    """What it was trained on, in words."""
    losses: dict[str, float]
    """Loss terms, averaged over the batches of the step."""
    others: dict[str, float]
    """What else was measured on the device."""
    learning_rate: float
    seconds: float
    """How long it took, its share of the time that reading waited for the device included."""


@dataclass(frozen=True)
class UnreadStep:
    """A step whose numbers may still be on their way."""

    step: int
    items: str
    losses: Sequence[Mapping[str, Tensor]]
    """Loss terms of each of its batches."""
    others: Mapping[str, Tensor]
    learning_rate: float
    seconds: float
    """How long it took to ask for it."""


class UnreadSteps:
    """Steps that were not read yet: reading a number waits for the device, so it is done for many steps in one go.

    >>> steps = UnreadSteps()
    >>> steps.add(UnreadStep(1, "images [3]", [{"total": torch.tensor(2.0)}], {"norm": torch.tensor(9.0)}, 0.1, 0.5))
    >>> (read,) = steps.read()
    >>> read.losses, read.others, steps.read()
    ({'total': 2.0}, {'norm': 9.0}, [])
    """

    def __init__(self) -> None:
        self._steps: list[UnreadStep] = []

    def add(self, step: UnreadStep) -> None:
        """Remember a step."""
        self._steps.append(step)

    def read(self) -> list[ReadStep]:
        """The steps since the last reading, in order."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        tensors = [tensor for step in steps for terms in (*step.losses, step.others) for tensor in terms.values()]
        started = time.perf_counter()
        values = iter(torch.stack([tensor.detach().double() for tensor in tensors]).tolist())
        waited = (time.perf_counter() - started) / len(steps)

        def named(terms: Mapping[str, Tensor]) -> dict[str, float]:
            return {name: next(values) for name in terms}

        read = []
        for step in steps:
            losses = [named(terms) for terms in step.losses]
            means = {name: sum(terms[name] for terms in losses) / len(losses) for name in losses[0]}
            timed = step.seconds + waited
            read.append(ReadStep(step.step, step.items, means, named(step.others), step.learning_rate, timed))
        return read
