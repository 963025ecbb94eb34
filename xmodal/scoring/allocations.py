"""What a computation allocates, counted while it runs: the same on every device and in every run."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it, for as long as they live.

    What an operation takes inside of itself, and gives back before it returns, is not seen.

    >>> with Allocations() as allocations:
    ...     total = (torch.ones(1000) + torch.ones(1000)).sum()  # float32: three of 4000 bytes at a time
    >>> allocations.peak
    12000
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not by a decorator of torch's, which takes seconds to import the compiler."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for given in _storages((args, kwargs or {})):
            self._watch(given, 0)  # was there before, or is counted already
        result = func(*args, **(kwargs or {}))
        for made in _storages(result):
            self._watch(made, made.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _watch(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive.add(key)
        self._now += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


def measured(compute: Callable[..., Result], *inputs: Any) -> tuple[Result, int]:
    """What a function returns, and the most bytes of tensors that it held at a time beside its inputs.

    >>> measured(torch.square, torch.ones(2))
    (tensor([1., 1.]), 8)
    """
    with Allocations() as allocations:
        result = compute(*inputs)
    return result, allocations.peak


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
