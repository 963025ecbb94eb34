"""GPO: the generalized pooling operator of VSE-infinity (Chen et al., CVPR 2021, arXiv 2011.04305)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from xmodal.heads.pooling.base import Pooler
from xmodal.heads.recurrent import read_in_order
from xmodal.masks import counts, note
from xmodal.numerics import Positive, Size, at_least_float32, check_count, check_number

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def gpo_pool(
    items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"], weights: Float[Tensor, "set item"]
) -> Float[Tensor, "set dim"]:
    """The sum over ranks k of weights_k times the k-th largest value of every channel (GPO eq. 3).

    Weights (1, 0, 0, ...) are the maximum, equal ones the mean.

    Args:
        items: to be pooled.
        mask: True = real item.
        weights: of the ranks 1, 2, ...; those beyond the number of real items must be zero.

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import gpo_pool
        >>> items, real = torch.tensor([[[1.0, 8.0], [5.0, 2.0], [9.0, 9.0]]]), torch.tensor([[True, True, False]])
        >>> gpo_pool(items, real, torch.tensor([[0.75, 0.25, 0.0]]))
        tensor([[4.0000, 6.5000]])
    """
    ranked = items.masked_fill(~mask[..., None], float("-inf")).sort(dim=1, descending=True).values
    beyond = torch.arange(mask.shape[1], device=mask.device) >= mask.sum(dim=1, keepdim=True)
    return (ranked.masked_fill(beyond[..., None], 0.0) * weights[..., None]).sum(dim=1)


def position_codes(length: int, dim: int) -> Float[Tensor, "position dim"]:
    """Sines (even channels) and cosines (odd ones) of positions 0, 1, ... (Vaswani et al. 2017, sec. 3.5).

    Example:
        >>> from xmodal.heads.pooling.gpo import position_codes
        >>> position_codes(2, 4)
        tensor([[0.0000, 1.0000, 0.0000, 1.0000],
                [0.8415, 0.5403, 0.0100, 1.0000]], dtype=torch.float64)
    """
    rates = torch.exp(torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") * (-math.log(10000.0) / dim))
    angles = torch.arange(length, device="cpu")[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class GPO(Pooler):
    """`gpo_pool` with weights that a bi-GRU gives the ranks of a set, which depend on its size alone.

    A code of every rank goes through the bi-GRU, the mean of its directions through a linear layer without bias, and
    the softmax over the ranks that the set has gives the weights (GPO eq. 4-6). The codes start at 0, and the
    temperature, which the paper does not give, is that of the released code (vse_infty, lib/modules/aggr/gpo.py).

    Args:
        code_dim: dim of the codes of ranks; even (32 as published).
        hidden_dim: dim of each direction of the GRU (32 as published).
        temperature: divides what the softmax takes, > 0 (0.1 as released).

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import GPO
        >>> GPO()(torch.randn(4, 36, 256)).shape
        torch.Size([4, 256])
    """

    def __init__(self, code_dim: Size = 32, hidden_dim: Size = 32, temperature: Positive = 0.1) -> None:
        super().__init__()
        check_count("code_dim", code_dim)
        if code_dim % 2:
            raise ValueError(f"code_dim must be even and at least 2, got {code_dim}")
        check_number("temperature", temperature, above=0)
        check_count("hidden_dim", hidden_dim)
        self.code_dim = code_dim
        self.temperature = temperature
        self.rnn = nn.GRU(code_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(hidden_dim, 1, bias=False)

    def weights(self, sizes: Int[Tensor, " set"], length: int) -> Float[Tensor, "set item"]:
        """The weights of the ranks in sets of these sizes, best given on the host, padded with zeros to a length."""
        if torch.compiler.is_exporting():  # how many different sizes there are depends on values
            distinct, which, longest = sizes, torch.arange(sizes.shape[0], device=sizes.device), length
        else:
            distinct, which = sizes.unique(return_inverse=True)  # sets of one size share their weights
            longest = int(distinct.max())
        codes = position_codes(longest, self.code_dim).to(self.linear.weight)
        there = torch.arange(longest, device=sizes.device) < distinct[:, None]
        real = there if torch.compiler.is_exporting() else note(there.to(codes.device), there)
        states = read_in_order(self.rnn, codes.expand(distinct.shape[0], -1, -1), real)
        forward, backward = states.chunk(2, dim=-1)
        logits = at_least_float32(self.linear((forward + backward) / 2)[..., 0]) / self.temperature
        weights = logits.masked_fill(~real, float("-inf")).softmax(dim=1)
        return nn.functional.pad(weights, (0, length - longest))[which.to(codes.device)]

    def pool(self, items, mask):  # noqa: D102
        sizes = mask.sum(dim=1) if torch.compiler.is_exporting() else torch.tensor(counts(mask), device="cpu")
        return gpo_pool(items, mask, self.weights(sizes, mask.shape[1]).to(items.dtype))

    def __repr__(self) -> str:
        return f"GPO(temperature={self.temperature})"
