"""Foveated maxima of all sets under all queries: what ADAPT compares where images ask, from two items a channel.

ADAPT takes the greatest p_w x_w of a channel, where x_w = (1 + gain) v_w + shift are the modulated values and p_w their
softmax at an inverse temperature gamma. Let x_top and x_bottom be the greatest and the least of them. Where x_top > 0,
the maximum is p_top x_top, for p grows with x. Else all products are negative, and -p x is t exp(-gamma t) of t = -x,
up to a factor, which rises and then falls: the least of them is that of the top or that of the bottom. Of a set, a
channel's maximum so depends on its two extreme values and on p_top; p_bottom = p_top exp(-gamma (x_top - x_bottom)).
And p_top depends on the query by the scale s = gamma (1 + gain) alone: it is a Chebyshev series in it
(`xmodal.heads.chebyshev`), so that a small matrix product a channel gives it for all pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.heads.attention import tile_bytes
from xmodal.heads.chebyshev import parts, series_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.heads.chebyshev import Series

QUERIES = 256
"""That are computed at once."""


class Asked(NamedTuple):
    """What queries ask of every set, channel by channel."""

    scales: Float[Tensor, "query channel"]
    """gamma (1 + gain)."""
    widths: Float[Tensor, "query channel"]
    """1 + gain."""
    shifts: Float[Tensor, "query channel"]
    directions: Float[Tensor, "query channel"]
    """What the maxima are multiplied with."""

    def channels(self, chosen: Int[Tensor, " channel"]) -> Asked:
        """Some channels."""
        return Asked(*(field[:, chosen] for field in self))


class Extremes(NamedTuple):
    """The greatest and the least real value of every channel of every set."""

    top: Float[Tensor, "set channel"]
    bottom: Float[Tensor, "set channel"]

    @classmethod
    def of(cls, values: Float[Tensor, "set item channel"], mask: Bool[Tensor, "set item"]) -> Extremes:
        """Of sets with padding."""
        padding = ~mask[..., None]
        top, bottom = values.masked_fill(padding, -torch.inf), values.masked_fill(padding, torch.inf)
        return cls(top.amax(dim=1), bottom.amin(dim=1))


def maxima_sums(
    values: Float[Tensor, "set item channel"], mask: Bool[Tensor, "set item"], asked: Asked
) -> tuple[Float[Tensor, "set query"], Float[Tensor, "set query"]]:
    """Sums over the channels of the maxima times the directions, and of their squares, of every set and query.

    Args:
        values: finite, padding too; float32 or float64.
        mask: True = real item.
        asked: by the queries.

    Example:
        >>> import torch
        >>> from xmodal.heads.foveal_maxima import Asked, maxima_sums
        >>> values, real = torch.randn(3, 12, 8), torch.ones(3, 12, dtype=torch.bool)
        >>> widths, shifts, directions = 1 + torch.rand(99, 8), torch.randn(99, 8), torch.randn(99, 8)
        >>> dots, _ = maxima_sums(values, real, Asked(10 * widths, widths, shifts, directions))
        >>> x = values[:, None] * widths[:, None] + shifts[:, None]
        >>> maxima = ((10 * x).softmax(dim=2) * x).amax(dim=2)
        >>> torch.allclose(dots, (maxima * directions).sum(dim=-1), atol=1e-4)
        True
    """
    shape = (len(values), len(asked.scales))
    sums = (values.new_zeros(shape), values.new_zeros(shape))
    upright, upside_down = (asked.scales >= 0).all(dim=0), (asked.scales <= 0).all(dim=0)
    _add(sums, values, mask, asked, upright.nonzero()[:, 0])
    turned = asked._replace(scales=-asked.scales, widths=-asked.widths)  # and the values: all else stays as it is
    _add(sums, -values, mask, turned, (upside_down & ~upright).nonzero()[:, 0])
    mixed = (~upright & ~upside_down).nonzero()[:, 0]
    _add_directly(sums, values[..., mixed], mask, asked.channels(mixed))
    return sums


def _add(
    sums: tuple[Tensor, Tensor],
    values: Float[Tensor, "set item channel"],
    mask: Bool[Tensor, "set item"],
    asked: Asked,
    chosen: Int[Tensor, " channel"],
) -> None:
    """Add what channels without negative scales contribute: by series of p_top, else item by item."""
    values, asked = values[..., chosen], asked.channels(chosen)
    extremes = Extremes.of(values, mask)
    for some, series in series_of(_weights_of_tops, values, mask, asked.scales):
        if series is None:
            _add_directly(sums, values[..., some], mask, asked.channels(some))
        else:
            _add_pairs(sums, series, Extremes(*(edge[:, some] for edge in extremes)), asked.channels(some))


def _weights_of_tops(values: Tensor, mask: Tensor, points: Tensor) -> Float[Tensor, "one set point channel"]:
    """p_top(s) for s >= 0."""
    padding = ~mask[..., None]
    below = values - values.masked_fill(padding, -torch.inf).amax(dim=1, keepdim=True)
    below = below.masked_fill(padding, 0.0)
    weights = []
    for point in points:
        each = (below * point).exp_()
        weights.append(each.masked_fill_(padding, 0.0).sum(dim=1).reciprocal_())
    return torch.stack(weights, dim=1)[None]


def _add_pairs(sums: tuple[Tensor, Tensor], series: Series, extremes: Extremes, asked: Asked) -> None:
    """All pairs of some channels, so many at a time that passes over them stay in the cache."""
    terms = series.kept(sums[0].dtype)[0]
    polynomials = torch.stack(list(series.polynomials(asked.scales, len(terms))))
    terms, polynomials = terms.permute(2, 1, 0).contiguous(), polynomials.permute(2, 0, 1).contiguous()
    top, bottom = (edge.T[:, :, None].contiguous() for edge in extremes)
    step = max(1, tile_bytes(terms.device) // 4 // (len(sums[0]) * QUERIES * terms.element_size()))
    for start in range(0, sums[0].shape[1], QUERIES):
        queries = slice(start, start + QUERIES)
        few = [field[queries].T[:, None].contiguous() for field in asked]
        for first in range(0, len(terms), step):
            some = slice(first, first + step)
            scales, widths, shifts, directions = (field[some] for field in few)
            weights = terms[some] @ polynomials[some, :, queries]
            adapted = torch.baddbmm(shifts, top[some], widths)
            maxima = weights * adapted
            if bool(adapted.amin() <= 0):
                lowest = torch.baddbmm(shifts, bottom[some], widths)
                faded = weights * ((bottom[some] - top[some]) * scales).exp_() * lowest
                maxima = torch.where(adapted <= 0, torch.maximum(maxima, faded), maxima)
            sums[0][:, queries] += torch.mul(maxima, directions, out=adapted).sum(dim=0)
            sums[1][:, queries] += maxima.square_().sum(dim=0)


def _add_directly(
    sums: tuple[Tensor, Tensor], values: Float[Tensor, "set item channel"], mask: Bool[Tensor, "set item"], asked: Asked
) -> None:
    """Query by query, from every item."""
    if not values.shape[-1]:
        return
    padding = ~mask[..., None]
    for rows, some, hidden in parts(values, padding):
        for number, (scale, width, shift, direction) in enumerate(zip(*asked, strict=True)):
            weights = (some * scale).masked_fill_(hidden, -torch.inf).softmax(dim=1)
            maxima = (weights * (some * width + shift)).masked_fill_(hidden, -torch.inf).amax(dim=1)
            sums[0][rows, number] += maxima @ direction
            sums[1][rows, number] += maxima.square().sum(dim=-1)
