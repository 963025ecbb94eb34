"""What the trainer asks of a task: image-text matching, image retrieval, or another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from xmodal.training.adversary import Adversary


class Model(Protocol):
    """A model that can be kept."""

    def save_pretrained(self, save_directory: str | Path, /) -> Any:
        """Write configuration and weights to a folder, in the place of another one if there is one."""
        ...


class Batches(Protocol):
    """The order of the data: a function of seed and epoch alone, so that a run can go on where it stopped."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """This process's share of the batches of an epoch, from batch number `start` on."""
        ...


class Task(Protocol):
    """Data, model and validation of a run; made from its configuration, the device to train on and the number of
    processes that train.

    The dataset's `__getitems__` gives whole batches, named tuples of tensors; `step_module(batch, step)` gives named
    loss terms, of which training minimizes `total`.
    """

    def __init__(self, config: Any, device: torch.device, processes: int = 1) -> None: ...

    @property
    def dataset(self) -> Dataset[Any]:
        """The training data."""
        ...

    @property
    def model(self) -> Model:
        """What is trained and kept."""
        ...

    @property
    def step_module(self) -> nn.Module:
        """The model and its objective, as one Module that can be distributed."""
        ...

    @property
    def adversary(self) -> Adversary | None:
        """What is trained against the model."""
        ...

    @property
    def workers(self) -> int:
        """Processes that read the data."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of what the data is called, in its order: what a resumed run must see again, wherever it is."""
        ...

    def batches(self, process: int, processes: int) -> Batches:
        """The order of the training data."""
        ...

    def prepare(self, batch: Any) -> Any:
        """A batch as training wants it: augmented, where it was read, so that what its masks hold is known there."""
        ...

    def describe(self, group: list[Any]) -> str:
        """Which items a group of batches holds, for an error message."""
        ...

    def warning(self, terms: Mapping[str, float]) -> str | None:
        """What whoever trains should know at once, if anything; asked after every step, with its loss terms."""
        ...

    def validate(self) -> dict[str, Any]:
        """Results on the validation split."""
        ...

    def summary(self, results: dict[str, Any]) -> str:
        """The results of a validation in one line."""
        ...
