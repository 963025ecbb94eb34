"""Foveated means of all sets under all queries as matrix products: what ADAPT compares, without a number per item.

Under a scale s, a channel of a set with values v_r has the foveated mean

    f(s) = sum_r softmax_r(s v_r) v_r.

ADAPT modulates the values to (1 + gain) v_r + shift and takes their softmax at an inverse temperature gamma. A shift
drops out of a softmax, and its weights sum to one, so that the modulated, foveated mean is (1 + gain) f(s) + shift with
s = gamma (1 + gain): all that a query does to a channel of a set goes through one number. With f = sum_j a_j T_j, a
Chebyshev series (`xmodal.heads.chebyshev`), sums over channels of f or f^2 times something of the query are sums over j
of matrix products: (set, channel) terms by (channel, query) polynomials. A channel whose series does not end soon
enough is computed item by item.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.heads.chebyshev import parts, series_of
from xmodal.masks import is_full
from xmodal.products import inner_products

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.heads.chebyshev import Series


class Fovea(NamedTuple):
    """What a query asks of every set; the scales are gamma (1 + gain)."""

    scales: Float[Tensor, "query channel"]
    linear: Float[Tensor, "query channel"]
    """Weights of f in the first sum."""
    cross: Float[Tensor, "query channel"]
    """Weights of f in the second sum."""
    square: Float[Tensor, "query channel"]
    """Weights of f^2 in the second sum."""

    def channels(self, chosen: Int[Tensor, " channel"]) -> Fovea:
        """Some channels."""
        return Fovea(*(field[:, chosen] for field in self))


def foveated_means(
    values: Float[Tensor, "set item channel"],
    mask: Bool[Tensor, "set item"],
    scales: Float[Tensor, "*#set query channel"],
) -> Float[Tensor, "set query channel"]:
    """f(s) of every channel of every set, for every scale of that channel: sums over the items, query by query.

    Args:
        values: finite, padding too.
        mask: True = real item.
        scales: of the queries.

    Example:
        >>> import torch
        >>> from xmodal.heads.foveae import foveated_means
        >>> values, real = torch.tensor([[[1.0], [3.0]]]), torch.ones(1, 2, dtype=torch.bool)
        >>> foveated_means(values, real, torch.tensor([[0.0], [100.0]]))
        tensor([[[2.],
                 [3.]]])
    """
    low = values.masked_fill(~mask[..., None], math.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~mask[..., None], -math.inf).amax(dim=1, keepdim=True)
    below, above = values - high, values - low
    padded = None if is_full(mask) else ~mask[..., None]
    means = []
    for scale in scales.unbind(dim=-2):
        scale = scale if scale.ndim == 1 else scale[:, None]
        weights = torch.where(scale >= 0, below, above).mul_(scale).exp_()  # at most one: nothing overflows
        if padded is not None:
            weights.masked_fill_(padded, 0.0)
        total = weights.sum(dim=1)
        means.append(weights.mul_(values).sum(dim=1).div_(total))
    return torch.stack(means, dim=1)


def foveal_sums(
    values: Float[Tensor, "set item channel"], mask: Bool[Tensor, "set item"], fovea: Fovea
) -> tuple[Float[Tensor, "set query"], Float[Tensor, "set query"]]:
    """Sums over the channels of linear f, and of cross f + square f^2, of every set and query.

    Args:
        values: finite, padding too; float32 or float64.
        mask: True = real item.
        fovea: what the queries ask.

    Example:
        >>> import torch
        >>> from xmodal.heads.foveae import Fovea, foveal_sums, foveated_means
        >>> values, real = torch.randn(3, 36, 8), torch.ones(3, 36, dtype=torch.bool)
        >>> fovea = Fovea(10 + torch.randn(99, 8), *torch.randn(3, 99, 8))
        >>> f = foveated_means(values, real, fovea.scales)
        >>> torch.allclose(foveal_sums(values, real, fovea)[0], (fovea.linear * f).sum(dim=-1), atol=1e-4)
        True
    """
    shape = (len(values), len(fovea.scales))
    sums = (values.new_zeros(shape), values.new_zeros(shape))
    for some, series in series_of(_mean_and_square, values, mask, fovea.scales):
        if series is None:
            _add_directly(sums, values[..., some], mask, fovea.channels(some))
        else:
            _add_products(sums, series, fovea.channels(some))
    return sums


def _mean_and_square(values: Tensor, mask: Tensor, points: Tensor) -> Float[Tensor, "two set point channel"]:
    f = foveated_means(values, mask, points)
    return torch.stack([f, f.square()])


def _add_products(sums: tuple[Tensor, Tensor], series: Series, fovea: Fovea) -> None:
    """Three products a term."""
    plain, squared = series.kept(sums[0].dtype)
    buffer = torch.empty_like(sums[0])
    polynomials = series.polynomials(fovea.scales, len(plain))
    for one, two, polynomial in zip(plain, squared, polynomials, strict=True):
        sums[0].add_(inner_products(one, fovea.linear * polynomial, buffer))
        sums[1].add_(inner_products(one, fovea.cross * polynomial, buffer))
        sums[1].add_(inner_products(two, fovea.square * polynomial, buffer))


def _add_directly(
    sums: tuple[Tensor, Tensor],
    values: Float[Tensor, "set item channel"],
    mask: Bool[Tensor, "set item"],
    fovea: Fovea,
) -> None:
    """Query by query, from every item."""
    for number, scale in enumerate(fovea.scales):
        for rows, some, real in parts(values, mask):
            f = foveated_means(some, real, scale[None])[:, 0]
            sums[0][rows, number] += f @ fovea.linear[number]
            sums[1][rows, number] += f @ fovea.cross[number] + f.square() @ fovea.square[number]
