"""Chebyshev series of what a softmax makes of sets, as functions of the scale that multiplies their values.

A channel of a set with values v_r under a scale s has the softmax weights exp(s v_r) / Z(s), Z(s) = sum_r exp(s v_r).
As functions of s they are smooth: Z has no zeros near the real line, none with |Im s| below pi over the spread of the
values, and none in a cone around the line either, where the greatest value outweighs the others. So in t = asinh(s
spread / pi) whatever is made of the weights is analytic in a strip of constant width, and its Chebyshev series over the
scales that occur converges by a constant factor a term. Series end where their terms stay below the rounding of the
products that they are for; of a channel whose series does not end soon enough, nothing is gained.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.heads.attention import tile_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

LENGTHS = (8, 16, 32, 64, 128, 256)
"""Of series that are tried, one after another, while there are `FEWEST` scales for every term."""

FEWEST = 4

TERMS = 2048
"""Of all series that are made at once: longer ones of fewer channels, in the same memory."""

PRECISION = {torch.float32: 3e-7, torch.float64: 1e-12}
"""What a term is at least of the largest value, to be kept."""


STRIP = 0.7
"""How far from the real line t may go before a series stops to converge: about, to guess how long it will be."""


class Domain(NamedTuple):
    """Between which scales series hold, by channels: from `start` on, twice `half`, in t = asinh(scale / bend)."""

    bend: Float[Tensor, " channel"]
    start: Float[Tensor, " channel"]
    half: Float[Tensor, " channel"]

    @classmethod
    def of(
        cls,
        values: Float[Tensor, "set item channel"],
        mask: Bool[Tensor, "set item"],
        scales: Float[Tensor, "query channel"],
    ) -> Domain:
        """All scales that occur."""
        least, greatest = values[mask].double().aminmax(dim=0)
        bend = math.pi / (greatest - least).clamp_min(1e-6)
        low, high = (torch.asinh(edge.double() / bend) for edge in scales.aminmax(dim=0))
        return cls(bend, low, ((high - low) / 2).clamp_min(1e-6))

    def channels(self, chosen: Tensor) -> Domain:
        """Some channels."""
        return Domain(*(field[chosen] for field in self))

    def lengths(self, dtype: torch.dtype) -> Float[Tensor, " channel"]:
        """About how many terms it takes: the ellipse of convergence goes to the edge of the strip."""
        width = STRIP / self.half
        return -math.log(PRECISION[dtype]) / torch.asinh(width)


class Series(NamedTuple):
    """Series of some functions of the scale, of every set and of some channels, and where they hold."""

    domain: Domain
    terms: Float[Tensor, "function term set channel"]
    floors: Float[Tensor, "function channel"]
    """How small terms must be to drop out."""

    @classmethod
    def fit(
        cls,
        compute: Callable[[Tensor, Tensor, Tensor], Float[Tensor, "function set point channel"]],
        values: Float[Tensor, "set item channel"],
        mask: Bool[Tensor, "set item"],
        domain: Domain,
        length: int,
    ) -> Series:
        """From the functions at as many of Chebyshev's points, in float64.

        Args:
            compute: the functions, of (values, mask, points) in float64; a point is a scale a channel.
            values: finite, padding too.
            mask: True = real item.
            domain: between which scales.
            length: of the series.
        """
        bend, start, half = domain
        angles = math.pi * (torch.arange(length, dtype=torch.float64, device=values.device) + 0.5) / length
        points = bend * torch.sinh(start + half * (1 + angles.cos()[:, None]))
        found = torch.cat([compute(some, real, points) for _, some, real in parts(values.double(), mask)], dim=1)
        transform = (2 / length) * (torch.arange(length, device=values.device)[:, None] * angles).cos()
        transform[0] /= 2
        floors = PRECISION[values.dtype] * found.abs().amax(dim=(1, 2)).clamp_min(1e-30)
        return cls(domain, torch.einsum("jk,fskc->fjsc", transform, found), floors)

    def ended(self) -> Bool[Tensor, " channel"]:
        """Whether the last two terms of all functions drop out."""
        return (self.terms[:, -2:].abs().amax(dim=(1, 2)) <= self.floors).all(dim=0)

    def channels(self, chosen: Bool[Tensor, " channel"]) -> Series:
        """Some channels."""
        return Series(self.domain.channels(chosen), self.terms[..., chosen], self.floors[:, chosen])

    def kept(self, dtype: torch.dtype) -> Float[Tensor, "function term set channel"]:
        """The terms up to the last one that does not drop out, at least one."""
        needed = (self.terms.abs().amax(dim=2) > self.floors[:, None]).any(dim=0).any(dim=1).nonzero()
        return self.terms[:, : int(needed[-1]) + 1 if len(needed) else 1].to(dtype)

    def polynomials(
        self, scales: Float[Tensor, "query channel"], count: int
    ) -> Iterator[Float[Tensor, "query channel"]]:
        """The first Chebyshev polynomials at some scales, which the terms are to be multiplied with."""
        bend, start, half = self.domain
        x = ((torch.asinh(scales.double() / bend) - start) / half - 1).clamp_(-1, 1).to(scales)
        before, polynomial = x, torch.ones_like(x)
        for _ in range(count):
            yield polynomial
            before, polynomial = polynomial, 2 * x * polynomial - before


def series_of(
    compute: Callable[[Tensor, Tensor, Tensor], Float[Tensor, "function set point channel"]],
    values: Float[Tensor, "set item channel"],
    mask: Bool[Tensor, "set item"],
    scales: Float[Tensor, "query channel"],
) -> Iterator[tuple[Int[Tensor, " channel"], Series | None]]:
    """Channels and their series, in parts; None for those whose series do not end while they are worth it.

    Arguments are those of `Series.fit`; the series hold between the least and the greatest scale of a channel.

    Example:
        >>> import torch
        >>> from xmodal.heads.chebyshev import series_of
        >>> def weight_of_the_first(values, mask, points):
        ...     return (points[None, :, None] * values[:, None]).softmax(dim=2)[None, :, :, 0]
        >>> _ = torch.manual_seed(1)  # of other numbers, one channel's series may not end
        >>> values, scales = torch.randn(2, 5, 3), 10 + torch.rand(40, 3)
        >>> ((channels, series),) = series_of(weight_of_the_first, values, torch.ones(2, 5).bool(), scales)
        >>> terms = series.kept(torch.float32)[0]
        >>> weights = sum(t[:, None] * p for t, p in zip(terms, series.polynomials(scales, len(terms))))
        >>> torch.allclose(weights, (scales[None, :, None] * values[:, None]).softmax(dim=2)[:, :, 0], atol=1e-5)
        True
    """
    left = torch.arange(values.shape[-1], device=values.device)
    if not len(left):
        return
    domain = Domain.of(values, mask, scales)
    guessed = domain.lengths(values.dtype)
    for length in LENGTHS:
        if FEWEST * length > len(scales) or not len(left):
            break
        likely = guessed[left] <= 1.5 * length  # the guess is on the safe side
        unended = [left[~likely]]
        for some in left[likely].split(TERMS // length):
            series = Series.fit(compute, values[..., some], mask, domain.channels(some), length)
            ended = series.ended()
            if bool(ended.any()):
                yield some[ended], series.channels(ended)
            unended.append(some[~ended])
        left = torch.cat(unended)
    if len(left):
        yield left, None


def parts(
    values: Float[Tensor, "set item channel"], mask: Bool[Tensor, "set item"]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """So many sets at a time that passes over their items stay in the cache.

    Example:
        >>> import torch
        >>> from xmodal.heads.chebyshev import parts
        >>> [(rows, len(some)) for rows, some, _ in parts(torch.ones(3, 36, 8), torch.ones(3, 36).bool())]
        [(slice(0, 682, None), 3)]
    """
    step = max(1, tile_bytes(values.device) // 4 // max(1, values[0].nbytes))
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        yield rows, values[rows], mask[rows]
