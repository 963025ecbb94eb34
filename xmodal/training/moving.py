"""Batches on their way to the device, beside what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import send_to_device

from xmodal.masks import note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Batch = TypeVar("Batch")


def moved(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a device, in their order.

    On CUDA the copies run in a stream of their own, while the batches before are computed with; from pinned memory they
    need not wait for anything else.

    >>> from xmodal.data import RegionBatch
    >>> batches = [RegionBatch(torch.ones(2, 36, 8), torch.ones(2, 36) > 0)]
    >>> [batch.regions.device for batch in moved(batches, torch.device("cpu"))]
    [device(type='cpu')]
    """
    if device.type != "cuda":
        for batch in batches:
            copy: Any = send_to_device(batch, device)
            yield copy
        return
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            copy = send_to_device(batch, device, non_blocking=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        for tensor in _tensors(copy):  # made in one stream, used in another: its memory is free after both
            tensor.record_stream(computing)
        yield noted(copy, batch)


def noted(copy: Batch, batch: Batch) -> Batch:
    """A copy of a batch; what its masks hold is noted by those of the batch, so that the device need not be asked.

    >>> mask = torch.tensor([[True, False]])
    >>> noted((mask.clone(),), (mask,))
    (tensor([[ True, False]]),)
    """
    for tensor, host in zip(_tensors(copy), _tensors(batch), strict=True):
        if host.dtype == torch.bool and host.ndim == 2:
            note(tensor, host)
    return copy


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of nested tuples and lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
