"""Arithmetic in half precision is for products; what follows them here is done in at least float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def at_least_float32(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision, in which squares overflow or lose their digits, as float32; anything else as it is.

    Example:
        >>> import torch
        >>> from xmodal.objectives.precision import at_least_float32
        >>> at_least_float32(torch.full((1,), 300.0, dtype=torch.float16)).square()
        tensor([90000.])
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
