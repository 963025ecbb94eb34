"""What heads and objectives share: half precision is for products, what follows them is at least float32; masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def at_least_float32(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision, in which squares overflow or lose their digits, as float32; anything else as it is.

    Example:
        >>> import torch
        >>> from xmodal.numerics import at_least_float32
        >>> at_least_float32(torch.full((1,), 300.0, dtype=torch.float16)).square()
        tensor([90000.])
        >>> at_least_float32(torch.ones(1).double()).dtype
        torch.float64
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def full_mask(items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"] | None) -> Bool[Tensor, "set item"]:
    """The mask of some sets; where there is none, one that says that all items are real.

    Example:
        >>> import torch
        >>> from xmodal.numerics import full_mask
        >>> full_mask(torch.randn(1, 3, 8), None)
        tensor([[True, True, True]])
    """
    return torch.ones(items.shape[:2], dtype=torch.bool, device=items.device) if mask is None else mask
