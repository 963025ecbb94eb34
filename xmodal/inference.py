"""Using a model without leaving a trace in it."""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn


Options = ParamSpec("Options")
Result = TypeVar("Result")


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards every submodule is in the mode it was in, also on an error.

    So no running statistic moves, nothing depends on the mode that the caller left the model in, and what is computed
    are ordinary tensors, which may be trained on and written to, even where the caller is in torch's inference mode.
    The modes are set without calling `train`, which some modules take as a sign to rearrange their weights.

    Example:
        >>> import torch
        >>> from xmodal.inference import evaluating
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> with evaluating(norm):
        ...     result = norm(torch.ones(3, 2))
        >>> norm.training, norm.running_mean, result.requires_grad, result.is_inference()
        (True, tensor([0., 0.]), False, False)
    """
    modes = [(module, module.training) for root in modules for module in root.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def comparing(head: nn.Module, *devices: torch.device) -> Iterator[None]:
    """`evaluating`, and autocast off: scores are in the precision of what is compared, whatever surrounds the call.

    Args:
        head: what compares.
        devices: where it does, beside the CPU.

    Example:
        >>> import torch
        >>> from xmodal.heads import Cosine
        >>> from xmodal.inference import comparing
        >>> with torch.autocast("cpu", torch.bfloat16), comparing(Cosine()):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    with evaluating(head), ExitStack() as stack:
        for kind in {"cpu", *(device.type for device in devices)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def without_autocast(function: Callable[Options, Result]) -> Callable[Options, Result]:
    """A function whose products on the CPU are in the precision of what is multiplied, whatever surrounds the call.

    Example:
        >>> import torch
        >>> from xmodal.inference import without_autocast
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     without_autocast(torch.mm)(torch.ones(2, 2), torch.ones(2, 2)).dtype
        torch.float32
    """

    @functools.wraps(function)
    def exactly(*given: Options.args, **options: Options.kwargs) -> Result:
        with torch.autocast("cpu", enabled=False):
            return function(*given, **options)

    return exactly
