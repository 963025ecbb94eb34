"""Sets of different lengths, packed so that a matrix product touches their real items and next to nothing else.

Sets of nearly one length share a pack. A pack is dense except for the few places that its shorter sets leave empty, and
those are zero. Zero items drop out of all that is summed with attention weights (see `tiles`), so that hardly any pass
over a tile has to look at a mask. Packs lie one behind the other in a block, so that products are large where captions
of one length are few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

PACK_COST = 6
"""The fixed cost of one more pack, in padded places: what splitting must save before it pays (measured on a CPU)."""

ALIGNMENT = 16
"""Queries of a block are a multiple of this: rows of products that start within a cache line take half as long
again."""


class Use(NamedTuple):
    """What a head does with one side: its sets attend over the other side, or are attended over, or both."""

    query: bool
    context: bool


CONTEXT = Use(query=False, context=True)
QUERY = Use(query=True, context=False)
BOTH = Use(query=True, context=True)


class Pack(NamedTuple):
    """Some sets of a collection: which rows of their block are theirs, and what goes with them.

    Rows run over (place, set) if the sets are queries, else over (set, place). Only contexts have Gram matrices.
    """

    sets: Int[Tensor, " set"]
    rows: slice
    mask: Bool[Tensor, "place set"]
    padded: bool
    gram: Float[Tensor, "set place place"] | None


class Block(NamedTuple):
    """Packs one behind the other: one side of a matrix product. Rows after the last pack belong to nobody.

    Only queries have norms.
    """

    items: Float[Tensor, "row dim"]
    norms: Float[Tensor, " row"] | None
    packs: list[Pack]

    @property
    def sets(self) -> Int[Tensor, " set"]:
        """The sets of all packs."""
        return torch.cat([pack.sets for pack in self.packs])

    def split(self) -> list[Block]:
        """Every pack in a block of its own."""
        parts = []
        for pack in self.packs:
            norms = None if self.norms is None else self.norms[pack.rows]
            whole = pack._replace(rows=slice(0, pack.mask.numel()))
            parts.append(Block(self.items[pack.rows], norms, [whole]))
        return parts


class Collection:
    """Images or captions with their masks: what packs are cut from.

    Args:
        items: all sets, padded to the longest, wherever they are kept.
        mask: True = real, anywhere in a row; None means that all are real.
        dtype: of the items in a pack, and so of the products.
        device: of the packs.

    >>> words, real = torch.randn(3, 4, 8), torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] * 4])
    >>> captions = Collection(words, real, torch.float32, torch.device("cpu"))
    >>> ((short, long),) = captions.divide(torch.arange(3), max_rows=16, pack_cost=0)
    >>> block = captions.block([short, long], QUERY)
    >>> [(pack.sets.tolist(), pack.rows) for pack in block.packs]
    [([1], slice(0, 2, None)), ([0, 2], slice(2, 10, None))]
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
            self.lengths = torch.full((count,), width, device="cpu")
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
    ) -> list[list[Int[Tensor, " set"]]]:
        """Positions in `sets`: the packs of blocks that have at most `max_rows` rows, or one set that has more."""
        groups = group_by_length(self.lengths[sets], pack_cost=pack_cost)
        longest = [int(self.lengths[sets[group[-1]]]) for group in groups]
        rows = sum(length * len(group) for length, group in zip(longest, groups, strict=True))
        target = -(-rows // -(-rows // max_rows))  # blocks of nearly one size: no small one at the end
        blocks, free = [], 0
        for length, group in zip(longest, groups, strict=True):
            while len(group):
                if free < min(length, max_rows):
                    blocks.append([])
                    free = min(max_rows, target + length - 1)
                part, group = group.tensor_split([max(1, free // length)])
                blocks[-1].append(part)
                free -= length * len(part)
        return blocks

    def rows_of(self, parts: list[Int[Tensor, " set"]]) -> int:
        """Rows of the block of these sets, pack by pack."""
        return sum(len(sets) * int(self.lengths[sets].max()) for sets in parts)

    def block(self, parts: list[Int[Tensor, " set"]], use: Use) -> Block:
        """The real items of some sets, pack by pack."""
        masks = [
            torch.arange(int(self.lengths[sets].max()), device="cpu")[:, None] < self.lengths[sets] for sets in parts
        ]
        ends = torch.tensor([mask.numel() for mask in masks], device="cpu").cumsum(0).tolist()
        real = torch.cat([(mask if use.query else mask.T).flatten() for mask in masks]).to(self.device)
        items = self._gather(parts, masks, use).to(self.device)
        padding = (~real).nonzero().flatten()
        if len(padding):
            items.index_fill_(0, padding, 0.0)  # a copy: a slice holds no padding. Much faster than masked_fill_
        exact = items.to(torch.promote_types(self.dtype, torch.float32))  # as the products, however they were given
        norms = torch.linalg.vector_norm(exact, dim=1) if use.query else None
        packs = []
        for sets, mask, start, end in zip(parts, masks, [0, *ends], ends, strict=False):
            gram = None
            if use.context:
                each = exact[start:end].view(*(mask if use.query else mask.T).shape, -1)
                each = each.transpose(0, 1) if use.query else each
                gram = each @ each.transpose(1, 2)
            padded = not bool(mask.all())
            packs.append(Pack(sets, slice(start, end), mask.to(self.device), padded, gram))
        return Block(items.to(self.dtype), norms, packs)

    def _gather(self, parts: list[Tensor], masks: list[Tensor], use: Use) -> Tensor:
        """The items of some sets in the order of a block; where that is a slice, without a copy."""
        width = self.items.shape[1]
        rows = []
        for sets, mask in zip(parts, masks, strict=True):
            places = torch.arange(len(mask), device="cpu") if self.places is None else self.places[sets, : len(mask)]
            chosen = sets[:, None] * width + places
            rows.append((chosen.T if use.query else chosen).flatten())
        if use.query:
            rows.append(rows[-1][-1:].expand(-sum(map(len, rows)) % ALIGNMENT))
        index = torch.cat(rows)
        items, first = self.items.flatten(0, 1), int(index[0])
        if self.places is None and bool((index.diff() == 1).all()):
            return items[first : first + len(index)]
        return items.index_select(0, index.to(items.device))


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
