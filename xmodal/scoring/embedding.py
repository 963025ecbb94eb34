"""The per-item work of a head: once an item, in blocks, in at least float32."""

from __future__ import annotations

import itertools
from copy import deepcopy
from typing import TYPE_CHECKING

import torch

from xmodal.numerics import full_mask
from xmodal.scoring.allocations import measured
from xmodal.scoring.sides import Side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.heads import Head
    from xmodal.scoring.plan import Plan


LONGEST = 1e19
"""What the length of a vector must be below for all products in float32 to be numbers."""


def check_lengths(vectors: Float[Tensor, "row dim"], owner: Callable[[int], str]) -> None:
    """Make sure that the products of vectors are numbers, so that they can be put in order.

    Args:
        vectors: of items or queries.
        owner: whose a row is, in words.

    Raises:
        ValueError: a vector has a NaN, or is infinite or nearly so; whose it is is named.

    >>> check_lengths(torch.tensor([[3.0, 4.0], [float("nan"), 0.0]]), lambda row: f"image {row}")
    Traceback (most recent call last):
    ...
    ValueError: image 1 is embedded as a vector of length nan; wanted one below 1e+19. Look at what it is made of: ...
    """
    short = vectors.norm(dim=1) < LONGEST
    if not bool(short.all()):
        row = int((~short).nonzero()[0])
        raise ValueError(
            f"{owner(row)} is embedded as a vector of length {float(vectors[row].norm())}; wanted one below "
            f"{LONGEST:g}. Look at what it is made of: features or weights that are NaN, infinite or huge"
        )


def in_dtype(head: Head, dtype: torch.dtype) -> Head:
    """The head, or where its parameters and buffers have another dtype a copy in this one; the head stays as it was.

    Raises:
        ValueError: for a head that cannot be copied.

    >>> from xmodal.heads import SCAN, VSRN
    >>> scan, vsrn = SCAN(), VSRN(dim=4)
    >>> in_dtype(scan, torch.bfloat16) is scan, in_dtype(vsrn, torch.float32) is vsrn
    (True, True)
    >>> in_dtype(vsrn, torch.bfloat16).rnn.weight_hh_l0.dtype, vsrn.rnn.weight_hh_l0.dtype
    (torch.bfloat16, torch.float32)
    """
    state = itertools.chain(head.parameters(), head.buffers())
    if {tensor.dtype for tensor in state if tensor.is_floating_point()} <= {dtype}:
        return head
    try:
        return deepcopy(head).to(dtype)
    except Exception as error:  # whatever a head is made of may refuse in its own way
        raise ValueError(
            f"scoring in {dtype} takes a copy of the parameters of {type(head).__name__} in that dtype, and it cannot "
            f"be copied: {error}; leave dtype out, or convert features and head to {dtype} first"
        ) from error


def embedded_parts(
    embed: Callable[[Tensor, Tensor], Tensor],
    side: Side,
    plan: Plan,
    *,
    sets: Int[Tensor, " set"] | None = None,
    held_bytes: int | None = None,
) -> Iterator[tuple[Int[Tensor, " set"], Side]]:
    """What `Head.embed_images` or `embed_captions` makes of a side, as much at a time as may be held.

    A side that is left as it is comes as it is, in one part and without a copy.

    Args:
        embed: the method, of a head whose parameters are at least float32.
        side: as it was encoded.
        plan: on which device, and how much memory: a quarter of the budget for the work, beside what is held.
        sets: those that are asked for; by default all.
        held_bytes: of the results at a time; None for all.

    >>> from xmodal.heads import Cosine
    >>> from xmodal.scoring.plan import Plan
    >>> plan = Plan(1 << 20, torch.float32, torch.device("cpu"), "eager")
    >>> parts = embedded_parts(Cosine().embed_images, Side(torch.randn(5, 36, 8), None), plan, held_bytes=64)
    >>> [(sets.tolist(), part.items.shape) for sets, part in parts]
    [([0, 1], torch.Size([2, 8])), ([2, 3], torch.Size([2, 8])), ([4], torch.Size([1, 8]))]
    """
    sets = torch.arange(len(side), device="cpu") if sets is None else sets
    if not len(sets):
        yield sets, side
        return
    one = side.take(sets[:1], plan.device, plan.exact_dtype)
    first, peak = measured(embed, one.items, one.mask)
    if first is one.items:
        yield torch.arange(len(side), device="cpu"), side
        return
    step = max(1, plan.budget_bytes // 4 // (peak + one.items.nbytes))
    held = len(sets) if held_bytes is None else max(1, held_bytes // first.nbytes)
    for number, part in enumerate(sets.split(held)):
        items = first.new_empty(len(part), *first.shape[1:])
        start = 0
        if number == 0:  # whose first set is embedded already
            items[:1], start = first, 1
        for some in range(start, len(part), step):
            block = side.take(part[some : some + step], plan.device, plan.exact_dtype)
            items[some : some + step] = embed(block.items, block.mask)
        # The mask of what came in, which what was made of it may have no shape for.
        mask = full_mask(side.items, side.mask)
        yield part, Side(items, mask[part.to(mask.device)])
