"""What heads, objectives and measurements share: half precision is for products only; masks; vectors of unit length and
their means; the ranges of numbers that somebody gives.
"""

from __future__ import annotations

import math
import numbers
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch

from xmodal.masks import is_full, note_full, real_places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from jaxtyping import Bool, Float
    from torch import Tensor, nn


@dataclass(frozen=True)
class Range:
    """What an option may be, beside its type: `Annotated[float, Range(least=0)]`.

    Whoever builds a part from a configuration reads it, as pydantic does with the classes of annotated-types, which
    this one speaks for; nothing else needs that package.

    Example:
        >>> from xmodal.numerics import Range
        >>> list(Range(above=0, most=1))
        [Gt(gt=0), Le(le=1)]
    """

    least: float | None = None
    """The smallest value."""
    above: float | None = None
    """What the value must be larger than."""
    most: float | None = None
    """The largest value."""
    below: float | None = None
    """What the value must be smaller than."""

    __is_annotated_types_grouped_metadata__: ClassVar = True

    def __iter__(self) -> Iterator[Any]:
        from annotated_types import Interval

        return iter(Interval(ge=self.least, gt=self.above, le=self.most, lt=self.below))


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
DropShare = Annotated[float, Range(least=0, below=1)]
"""A share of values that is dropped in training."""
Rate = Annotated[float, Range(above=0, most=1)]
"""A share of the way that is gone in a step."""
Angle = Annotated[float, Range(above=0, below=90)]
"""In degrees."""
Size = Annotated[int, Range(least=1, most=1_000_000)]
"""How many numbers, layers or steps something has."""
SizeOrNone = Annotated[int, Range(least=0, most=1_000_000)]
"""A size, or 0 for what is not there."""
Steps = Annotated[int, Range(least=0, most=10**9)]
"""Steps of the optimizer, 0 for none."""


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


def of_one_dtype(
    first: Float[Tensor, "*first"], second: Float[Tensor, "*second"]
) -> tuple[Float[Tensor, "*first"], Float[Tensor, "*second"]]:
    """Both in the wider of their dtypes, for products of one with the other; under autocast products see to it.

    Example:
        >>> import torch
        >>> from xmodal.numerics import of_one_dtype
        >>> [each.dtype for each in of_one_dtype(torch.ones(1).half(), torch.ones(1))]
        [torch.float32, torch.float32]
    """
    if first.dtype == second.dtype or torch.is_autocast_enabled(first.device.type):
        return first, second
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(dtype)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A block in which nothing is cast to half precision; in a graph that is exported nothing is, and no block stays.

    Example:
        >>> import torch
        >>> from xmodal.numerics import no_autocast
        >>> with torch.autocast("cpu", torch.bfloat16), no_autocast(torch.device("cpu")):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    return nullcontext() if torch.compiler.is_exporting() else torch.autocast(device.type, enabled=False)


def full_mask(items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"] | None) -> Bool[Tensor, "set item"]:
    """The mask of some sets; where there is none, one that says that all items are real.

    Example:
        >>> import torch
        >>> from xmodal.numerics import full_mask
        >>> full_mask(torch.randn(1, 3, 8), None)
        tensor([[True, True, True]])
    """
    if mask is not None:
        return mask
    mask = torch.ones(items.shape[:2], dtype=torch.bool, device=items.device)
    return mask if torch.compiler.is_compiling() else note_full(mask)


def unit_length(vectors: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Divide by the L2 norm along an axis. A zero vector stays zero; its gradient is what it is of a unit vector.

    Example:
        >>> import torch
        >>> from xmodal.numerics import unit_length
        >>> unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    squares = vectors.square().sum(dim=dim, keepdim=True)
    return vectors / squares.masked_fill(squares == 0, 1.0).sqrt()


def normalize(vectors: Float[Tensor, "..."], dim: int = -1, *, floor: float = 1e-12) -> Float[Tensor, "..."]:
    """`torch.nn.functional.normalize`, to the last bit, but for a zero vector, which is divided by 1.

    Divided by the floor its gradient would be 1e12 times as large as that of a unit vector.

    Args:
        vectors: to be divided by their L2 norms.
        dim: the axis of the norms.
        floor: the smallest divisor of all others, `eps` in torch.

    Example:
        >>> import torch
        >>> from xmodal.numerics import normalize
        >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    return vectors / divisors(torch.linalg.vector_norm(vectors, dim=dim, keepdim=True), floor)


def divisors(lengths: Float[Tensor, "*shape"], floor: float) -> Float[Tensor, "*shape"]:
    """What vectors of these lengths are divided by: at least a floor, and 1 where there is no direction.

    Example:
        >>> import torch
        >>> from xmodal.numerics import divisors
        >>> divisors(torch.tensor([5.0, 0.0]), floor=1e-8)
        tensor([5., 1.])
    """
    return lengths.clamp_min(floor).masked_fill(lengths == 0, 1.0)


def without_padding(
    items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]
) -> Float[Tensor, "set item dim"]:
    """The items, with zeros for padding: a weight of zero does not undo a NaN.

    They are not copied where all are known to be real, see `may_pad`.

    Example:
        >>> import torch
        >>> from xmodal.numerics import without_padding
        >>> without_padding(torch.tensor([[[3.0, 4.0], [torch.nan, 9.0]]]), torch.tensor([[True, False]]))
        tensor([[[3., 4.],
                 [0., 0.]]])
    """
    return items.masked_fill(~mask[..., None], 0.0) if may_pad(mask) else items


def may_pad(mask: Bool[Tensor, "set item"]) -> bool:
    """Whether some items may be padding: a mask of a device that computes is not waited for.

    Example:
        >>> import torch
        >>> from xmodal.numerics import may_pad
        >>> may_pad(torch.tensor([[True, True]])), may_pad(torch.tensor([[True, False]]))
        (False, True)
    """
    return mask.device.type != "cpu" or torch.compiler.is_compiling() or not is_full(mask)


def unit_means(
    items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"] | None = None
) -> Float[Tensor, "set dim"]:
    """The mean of the real items of every set, each divided by its length first; a zero vector stays zero.

    Their lengths go into the weights of the mean, so that items are copied only to blot out padding. Half precision
    becomes float32.

    Example:
        >>> import torch
        >>> from xmodal.numerics import unit_means
        >>> unit_means(torch.tensor([[[3.0, 4.0], [0.0, 9.0]]]))
        tensor([[0.3000, 0.9000]])
    """
    mask = full_mask(items, mask)
    items = without_padding(at_least_float32(items), mask)
    lengths = divisors(torch.linalg.vector_norm(items, dim=-1), floor=1e-8)
    weights = mask / (lengths * mask.sum(dim=1, keepdim=True))
    return (weights[:, None] @ items)[:, 0]


def normed_real(
    norm: nn.Module, items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]
) -> Float[Tensor, "set item dim"]:
    """A batch norm of the real items of sets; padding enters no statistics and comes out as zero.

    Example:
        >>> import torch
        >>> from xmodal.numerics import normed_real
        >>> items, real = torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([[True, True, False]])
        >>> normed_real(torch.nn.BatchNorm1d(1), items, real).detach().round().flatten()
        tensor([-1.,  1.,  0.])
    """
    if norm.training:
        places = real_places(mask)
        real = norm(items.flatten(0, 1)[places])
        return real.new_zeros(items.shape).flatten(0, 1).index_copy(0, places, real).view_as(items)
    return norm(items.flatten(0, 1)).view_as(items).masked_fill(~mask[..., None], 0.0)


def check_number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Make sure that an option is a finite number in its range; a tensor must hold one.

    Args:
        name: of the option.
        value: of the option.
        least: the smallest value that it may have.
        above: what it must be larger than.
        most: the largest value that it may have.
        below: what it must be smaller than.

    Raises:
        ValueError: it is no number, NaN, infinite or out of range.

    Example:
        >>> from xmodal.numerics import check_number
        >>> check_number("margin", 0.2, least=0)
        >>> check_number("temperature", float("nan"), above=0)
        Traceback (most recent call last):
        ...
        ValueError: temperature must be positive, got nan
        >>> check_number("share", 1.0, least=0, below=1)
        Traceback (most recent call last):
        ...
        ValueError: share must be at least 0 and below 1, got 1.0
    """
    if not isinstance(value, (float, int, torch.Tensor)) and not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    number: Any = value  # a NaN compares with nothing
    wanted, is_inside = [], True
    if max(least, above) != -math.inf:
        wanted.append(f"above {above}" if above >= least else f"at least {least}")
        is_inside = number >= least and (above == -math.inf or number > above)
    if min(most, below) != math.inf:
        wanted.append(f"below {below}" if below <= most else f"at most {most}")
        is_inside = is_inside and number <= most and (below == math.inf or number < below)
    if not is_inside:
        raise ValueError(f"{name} must be {'positive' if wanted == ['above 0'] else ' and '.join(wanted)}, got {value}")
    if not -math.inf < number < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def check_share(name: str, value: Any) -> None:
    """Make sure that an option is a share that leaves something: from 0 to below 1.

    Raises:
        ValueError: it is none.

    Example:
        >>> from xmodal.numerics import check_share
        >>> check_share("dropout", 0.25)
        >>> check_share("dropout", 1.0)
        Traceback (most recent call last):
        ...
        ValueError: dropout must be at least 0 and below 1, got 1.0
    """
    check_number(name, value, least=0, below=1)


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Make sure that an option is a whole number that is large enough.

    Raises:
        ValueError: it is none.

    Example:
        >>> from xmodal.numerics import check_count
        >>> check_count("layers", 4)
        >>> check_count("layers", 1.5)
        Traceback (most recent call last):
        ...
        ValueError: layers must be a whole number, got 1.5
    """
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
