"""Foveated means of all sets under all queries as matrix products: what ADAPT compares, without a number per item.

Under a scale s, a channel of a set with values v_r has the foveated mean

    f(s) = sum_r softmax_r(s v_r) v_r.

ADAPT modulates the values to (1 + gain) v_r + shift and takes their softmax at an inverse temperature gamma. A shift
drops out of a softmax, and its weights sum to one, so that the modulated, foveated mean is (1 + gain) f(s) + shift with
s = gamma (1 + gain): all that a query does to a channel of a set goes through one number. As a function of s, f is
smooth. It is the derivative of log Z(s), Z(s) = sum_r exp(s v_r), and Z has no zeros near the real line: none with
|Im s| below pi over the spread of the values, and none in a cone around the line either, where the greatest value
outweighs the others. So in t = asinh(s spread / pi) it is analytic in a strip of constant width, and its Chebyshev
series over the scales that occur converges by a constant factor a term. With f = sum_j a_j T_j, sums over channels of f
or f^2 times something of the query are sums over j of matrix products: (set, channel) coefficients by (channel, query)
Chebyshev polynomials. The series are cut where their terms stay below the rounding of the products; a channel whose
series does not end soon enough is computed item by item.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.heads.attention import tile_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

LENGTHS = (8, 16, 32, 64, 128, 256)
"""Of series that are tried, one after another, while there are `FEWEST` queries for every term."""

FEWEST = 4

TERMS = 2048
"""Of all series that are made at once: longer ones of fewer channels, in the same memory."""

PRECISION = {torch.float32: 3e-7, torch.float64: 1e-12}
"""What a term is at least of the largest value, to be kept."""


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
    padded = None if bool(mask.all()) else ~mask[..., None]
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
    left = torch.arange(values.shape[-1], device=values.device)
    for length in LENGTHS:
        if FEWEST * length > shape[1]:
            break
        unended = []
        for some in left.split(TERMS // length):
            asked = fovea.channels(some)
            series = _Series.of(values[..., some], mask, asked.scales, length)
            ended = series.ended()
            if bool(ended.any()):
                series.channels(ended).add(sums, asked.channels(ended))
            unended.append(some[~ended])
        left = torch.cat(unended)
        if not len(left):
            return sums
    _add_directly(sums, values[..., left], mask, fovea.channels(left))
    return sums


def _add_directly(
    sums: tuple[Tensor, Tensor],
    values: Float[Tensor, "set item channel"],
    mask: Bool[Tensor, "set item"],
    fovea: Fovea,
) -> None:
    """Query by query, from every item."""
    for number, scale in enumerate(fovea.scales):
        for rows, some, real in _parts(values, mask):
            f = foveated_means(some, real, scale[None])[:, 0]
            sums[0][rows, number] += f @ fovea.linear[number]
            sums[1][rows, number] += f @ fovea.cross[number] + f.square() @ fovea.square[number]


class _Series(NamedTuple):
    """Chebyshev series of f and f^2 of some channels, and between which scales they hold."""

    bend: Float[Tensor, " channel"]
    start: Float[Tensor, " channel"]
    half: Float[Tensor, " channel"]
    plain: Float[Tensor, "term set channel"]
    squared: Float[Tensor, "term set channel"]
    floors: Float[Tensor, "two channel"]
    """How small terms of either must be to drop out."""

    @classmethod
    def of(
        cls,
        values: Float[Tensor, "set item channel"],
        mask: Bool[Tensor, "set item"],
        scales: Float[Tensor, "query channel"],
        length: int,
    ) -> _Series:
        """From f at as many of Chebyshev's points, in float64."""
        real = values.double().masked_fill(~mask[..., None], math.nan).flatten(0, 1)
        bend = math.pi / (real.nan_to_num(-math.inf).amax(dim=0) - real.nan_to_num(math.inf).amin(dim=0)).clamp_min(
            1e-6
        )
        low, high = (torch.asinh(edge.double() / bend) for edge in scales.aminmax(dim=0))
        start, half = low, ((high - low) / 2).clamp_min(1e-6)
        angles = math.pi * (torch.arange(length, dtype=torch.float64, device=values.device) + 0.5) / length
        points = bend * torch.sinh(start + half * (1 + angles.cos()[:, None]))
        f = torch.cat([foveated_means(some, m, points) for _, some, m in _parts(values.double(), mask)])
        transform = (2 / length) * (torch.arange(length, device=values.device)[:, None] * angles).cos()
        transform[0] /= 2
        plain, squared = (torch.einsum("jk,skc->jsc", transform, each) for each in (f, f.square()))
        largest = f.abs().amax(dim=(0, 1)).clamp_min(1e-30)
        floors = PRECISION[values.dtype] * torch.stack([largest, largest.square()])
        return cls(bend, start, half, plain, squared, floors)

    def ended(self) -> Bool[Tensor, " channel"]:
        """Whether the last two terms of both series drop out."""
        last = torch.stack([each[-2:].abs().amax(dim=(0, 1)) for each in (self.plain, self.squared)])
        return (last <= self.floors).all(dim=0)

    def channels(self, chosen: Bool[Tensor, " channel"]) -> _Series:
        """Some channels."""
        return _Series(*(field[..., chosen] for field in self))

    def add(self, sums: tuple[Tensor, Tensor], fovea: Fovea) -> None:
        """Add what the channels contribute to both sums: three products a term."""
        t = torch.asinh(fovea.scales.double() / self.bend)
        x = ((t - self.start) / self.half - 1).clamp_(-1, 1).to(sums[0])
        series = torch.stack([self.plain, self.squared])
        needed = (series.abs().amax(dim=2) > self.floors[:, None]).any(dim=0).any(dim=1).nonzero()
        plain, squared = series.to(sums[0])
        before, polynomial = x, torch.ones_like(x)
        for term in range(int(needed[-1]) + 1 if len(needed) else 1):
            sums[0].addmm_(plain[term], (fovea.linear * polynomial).T)
            sums[1].addmm_(plain[term], (fovea.cross * polynomial).T)
            sums[1].addmm_(squared[term], (fovea.square * polynomial).T)
            before, polynomial = polynomial, 2 * x * polynomial - before


def _parts(
    values: Float[Tensor, "set item channel"], mask: Bool[Tensor, "set item"]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """So many sets at a time that passes over their items stay in the cache."""
    step = max(1, tile_bytes(values.device) // 4 // max(1, values[0].nbytes))
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        yield rows, values[rows], mask[rows]
