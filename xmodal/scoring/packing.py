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

PACK_COST = 8
"""The fixed cost of one more pack, in padded places: what splitting must save before it pays (measured on a CPU)."""


class Pack(NamedTuple):
    """Some sets of a collection, ready for the kernel: the rows of a product and what goes with them.

    Rows run over (set, place), or over (place, set) where the pack was asked for place by place.
    """

    sets: Int[Tensor, " set"]
    rows: Float[Tensor, "row dim"]
    mask: Bool[Tensor, "place set"]
    norms: Float[Tensor, "place set"]
    gram: Float[Tensor, "set place place"]
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
        """The sets in parts of like length and at most `max_rows` rows, or of one set where that has more."""
        parts = []
        for group in group_by_length(self.lengths[sets], pack_cost=pack_cost):
            size = max(1, max_rows // int(self.lengths[sets[group[-1]]]))
            parts += sets[group].tensor_split(-(-len(group) // size))  # of nearly one size: no small one at the end
        return parts

    def rows_of(self, sets: Int[Tensor, " set"]) -> int:
        """Rows of the pack of these sets."""
        return len(sets) * int(self.lengths[sets].max())

    def pack(self, sets: Int[Tensor, " set"], *, place_first: bool) -> Pack:
        """The real items of some sets."""
        length = int(self.lengths[sets].max())
        mask = torch.arange(length) < self.lengths[sets][:, None]
        padded = not bool(mask.all())
        mask = mask.to(self.device)
        items = self._gather(sets, length).to(self.device)
        if padded:
            items = items.masked_fill(~mask[..., None], 0.0)
        exact = at_least_float32(items)
        gram = exact @ exact.transpose(1, 2)
        norms = safe_sqrt(gram.diagonal(dim1=1, dim2=2))
        rows = items.to(self.dtype)
        if place_first:
            rows = rows.transpose(0, 1)
        return Pack(sets, rows.reshape(-1, rows.shape[-1]), mask.T, norms.T.contiguous(), gram, padded)

    def _gather(self, sets: Tensor, length: int) -> Float[Tensor, "set place dim"]:
        """The items in the first `length` real places of some sets; without a copy where that is a slice."""
        first, last = int(sets[0]), int(sets[-1])
        neighbors = last - first + 1 == len(sets) and bool((sets.diff() == 1).all())
        if self.places is None and neighbors:
            return self.items[first : last + 1]
        width = self.items.shape[1]
        places = torch.arange(length).expand(len(sets), -1) if self.places is None else self.places[sets, :length]
        rows = (sets[:, None] * width + places).flatten().to(self.items.device)
        return self.items.flatten(0, 1).index_select(0, rows).view(len(sets), length, -1)


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
