"""Batches that other processes read ahead: what stops one of them stops the program as if it had read by itself."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import traceback
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset

from xmodal.data.pairs import whole_batch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from multiprocessing.synchronize import Event


@contextlib.contextmanager
def read_ahead(dataset: Any, workers: int, **options: Any) -> Iterator[Iterator[Any]]:
    """Batches of a dataset whose `__getitems__` gives whole ones, read by other processes.

    What a process raises is raised here with its own type and message; its traceback is the cause. Ctrl-C and a
    scheduler's SIGTERM, which reach the processes too, are for this process to act on: as long as it reads, they go on.

    Args:
        dataset: what to read.
        workers: processes that read ahead; with 0, this one reads.
        options: of `torch.utils.data.DataLoader`: what makes a batch, in which order.

    >>> import torch
    >>> from xmodal.data.labelled import LabelledFeatures
    >>> images = LabelledFeatures(torch.eye(3), ["1.jpg", "2.jpg", "3.jpg"], ["wren", "gull", "wren"], ["train"] * 3)
    >>> with read_ahead(images, workers=1, batch_size=2) as batches:
    ...     [batch.labels for batch in batches]
    [tensor([1, 0]), tensor([1])]
    """
    if not workers:
        yield iter(DataLoader(dataset, collate_fn=whole_batch, **options))
        return
    let_go = multiprocessing.Event()
    starts = {"num_workers": workers, "worker_init_fn": partial(_outlive_signals, let_go)}
    batches = _arriving(DataLoader(_Tried(dataset), collate_fn=whole_batch, **starts, **options))
    try:
        yield batches
    finally:
        let_go.set()
        batches.close()  # the workers end now, also where an error's traceback keeps everything else


def _outlive_signals(let_go: Event, _worker: int) -> None:
    """Leave signals to the process that reads, until it has let go.

    From then on SIGTERM ends the worker: that is how multiprocessing ends those that are left when a program exits, and
    it waits for them without a limit.
    """

    def end(_number: int, _frame: object) -> None:
        if let_go.is_set():
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


class _Tried(Dataset[Any]):
    """A dataset that gives its errors instead of raising them: torch would put a traceback into their messages."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        try:
            return self.dataset.__getitems__(indices)
        except Exception as error:
            return _Failure(_sendable(error), traceback.format_exc())


@dataclass(frozen=True)
class _Failure:
    """What another process raised in place of a batch."""

    error: Exception
    traceback: str


class _InAWorkerError(Exception):
    """Where another process raised an error, as the cause of that error."""


def _sendable(error: Exception) -> Exception:
    """An error that arrives in another process, where one that cannot is its nearest built-in kind."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling an error calls its class, which may raise anything
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        return kind(f"{type(error).__name__}: {error}")
    return error


def _arriving(loader: DataLoader[Any]) -> Generator[Any]:
    """What other processes read, up to the first failure."""
    for batch in loader:
        if isinstance(batch, _Failure):
            raise batch.error from _InAWorkerError(f"\n{batch.traceback}")
        yield batch
