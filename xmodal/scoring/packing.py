"""Sets of different lengths, packed so that a matrix product touches their real items and next to nothing else.

Sets of nearly one length share a pack. A pack is dense except for the few places that its shorter sets leave empty, and
those are zero. Zero items drop out of all that is summed with attention weights (see `tiles`), so that hardly any pass
over a tile has to look at a mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.heads.attention import at_least_float32, safe_sqrt

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

PACK_COST = 32
"""The fixed cost of one more pack, in padded places: what splitting must save before it pays (measured on a CPU)."""


class Use(NamedTuple):
    """What a head does with the packs of one side: the order of rows it wants, and whether it attends over them."""

    place_first: bool
    context: bool


CONTEXT = Use(place_first=False, context=True)
QUERY = Use(place_first=True, context=False)
BOTH = Use(place_first=True, context=True)


class Pack(NamedTuple):
    """Some sets of a collection, ready for the kernel: the rows of a product and what goes with them.

    Rows run over (place, set), or over (set, place) if the use is not `place_first`. Only a context has a Gram matrix.
    """

    sets: Int[Tensor, " set"]
    rows: Float[Tensor, "row dim"]
    mask: Bool[Tensor, "place set"]
    norms: Float[Tensor, "place set"]
    gram: Float[Tensor, "set place place"] | None
    padded: bool


class Collection:
    """Images or captions with their masks: what packs are cut from.

    Args:
        items: all sets, padded to the longest, wherever they are kept.
        mask: True = real, anywhere in a row; None means that all are real.
        dtype: of the items in a pack, and so of the products.
        device: of the packs.
    """

    def __init__(
        self,
        items: Float[Tensor, "set place dim"],
        mask: Bool[Tensor, "set place"] | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.items, self.dtype, self.device = items, dtype, device
        count, width, _ = items.shape
        if mask is None or bool(mask.all()):
            self.places = None
            self.lengths = torch.full((count,), width)
        else:
            self.places = (~mask).to(torch.uint8).argsort(dim=1, stable=True).cpu()
            self.lengths = mask.sum(dim=1).cpu()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def pack_bytes(self) -> int:
        """Memory of one set in a pack, with what it takes to make one."""
        width = self.items.shape[1]
        return width * (self.row_bytes + 4 * width)

    @property
    def row_bytes(self) -> int:
        """Memory of one row of a pack, with what it takes to make it."""
        return self.items.shape[-1] * (self.items.element_size() + self.dtype.itemsize)

    def divide(
        self, sets: Int[Tensor, " set"], max_rows: int, *, pack_cost: int = PACK_COST
    ) -> list[Int[Tensor, " set"]]:
        """Positions in `sets`, in parts of like length and at most `max_rows` rows, or of one set that has more."""
        parts = []
        for group in group_by_length(self.lengths[sets], pack_cost=pack_cost):
            size = max(1, max_rows // int(self.lengths[sets[group[-1]]]))
            parts += group.tensor_split(-(-len(group) // size))  # of nearly one size: no small one at the end
        return parts

    def rows_of(self, sets: Int[Tensor, " set"]) -> int:
        """Rows of the pack of these sets."""
        return len(sets) * int(self.lengths[sets].max())

    def pack(self, sets: Int[Tensor, " set"], use: Use) -> Pack:
        """The real items of some sets."""
        length = int(self.lengths[sets].max())
        mask = torch.arange(length)[:, None] < self.lengths[sets]
        padded = not bool(mask.all())
        mask = mask.to(self.device)
        items = self._gather(sets, length, use.place_first).to(self.device)
        if padded:
            items.masked_fill_(~(mask if use.place_first else mask.T)[..., None], 0.0)
        exact = at_least_float32(items)
        gram = None
        if use.context:
            each = exact.transpose(0, 1) if use.place_first else exact
            gram = each @ each.transpose(1, 2)
            norms = safe_sqrt(gram.diagonal(dim1=1, dim2=2).T.contiguous())
        else:
            norms = safe_sqrt(exact.square().sum(dim=-1))
            norms = norms if use.place_first else norms.T
        return Pack(sets, items.to(self.dtype).flatten(0, 1), mask, norms, gram, padded)

    def _gather(self, sets: Tensor, length: int, place_first: bool) -> Tensor:
        """The items in the first `length` real places of some sets; where that is a slice, without a copy."""
        first, last = int(sets[0]), int(sets[-1])
        if self.places is None and not place_first and bool((sets.diff() == 1).all()):
            return self.items[first : last + 1]
        places = torch.arange(length).expand(len(sets), -1) if self.places is None else self.places[sets, :length]
        rows = sets[:, None] * self.items.shape[1] + places
        rows = rows.T if place_first else rows
        chosen = rows.flatten().to(self.items.device)
        return self.items.flatten(0, 1).index_select(0, chosen).view(*rows.shape, -1)


def group_by_length(lengths: Int[Tensor, " set"], *, pack_cost: int = PACK_COST) -> list[Int[Tensor, " set"]]:
    """Divide sets into groups of near-equal length, shortest first.

    The division is the cheapest one, where a set costs as many places as the longest of its group has and a group
    `pack_cost` places more. It depends on nothing but the lengths.

    >>> group_by_length(torch.tensor([9, 2, 9, 2, 8]), pack_cost=4)
    [tensor([1, 3]), tensor([4, 0, 2])]
    """
    order = lengths.argsort(stable=True)
    values, counts = lengths[order].unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    longest = values.tolist()
    cheapest, cuts = [0], [0]
    for stop in range(len(longest)):
        costs = [
            (cheapest[start] + pack_cost + longest[stop] * (ends[stop] - starts[start]), start)
            for start in range(stop + 1)
        ]
        cost, cut = min(costs)
        cheapest.append(cost)
        cuts.append(cut)
    groups, stop = [], len(longest)
    while stop:
        groups.append(order[starts[cuts[stop]] : ends[stop - 1]])
        stop = cuts[stop]
    return groups[::-1]
