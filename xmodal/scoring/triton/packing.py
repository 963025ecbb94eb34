"""Sides packed for the kernels: the real items of all sets one behind the other, cut into tiles of whole sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from xmodal.numerics import full_mask, no_autocast

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

MAX_SETS = 16
"""Images or captions in one side of a tile, as in `device`."""


class Packed(NamedTuple):
    """One side of the comparison: the real items of all sets one behind the other, cut into tiles of whole sets.

    The order is that of the kernels' arguments.
    """

    items: Float[Tensor, "item dim"]
    sets: Int[Tensor, "tile size"]
    """The set of every item counted within its tile, -1 after the last one."""
    start: Int[Tensor, " tile+1"]
    """The first item of every tile."""
    first_set: Int[Tensor, " tile+1"]
    """The first set of every tile."""
    norms: Float[Tensor, " item"]
    grams: Float[Tensor, "tile size size"]
    """Products of the items of a tile with one another in float32, zero between different sets."""


def longest(items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"] | None) -> int:
    """Real items of the longest set; 0 where there is none.

    Example:
        >>> import torch
        >>> from xmodal.scoring.triton.packing import longest
        >>> longest(torch.ones(2, 3, 8), torch.tensor([[True, False, False], [True, True, False]]))
        2
    """
    return items.shape[1] if mask is None else int(mask.sum(dim=1).max().item() if len(mask) else 0)


def pack(
    items: Float[Tensor, "set item dim"],
    mask: Bool[Tensor, "set item"] | None,
    size: int,
    depth: int,
    *,
    with_grams: bool = True,
) -> Packed:
    """Drop the padding and cut the sets, in their order, into tiles of at most `size` items.

    The dim is filled up with zeros to a multiple of `depth`, which changes no product. `with_grams=False` leaves the
    Gram matrices out, for a side that only attends.

    Example:
        >>> import torch
        >>> from xmodal.scoring.triton.packing import pack
        >>> words, real = torch.ones(2, 3, 8), torch.tensor([[True, False, False], [True, True, False]])
        >>> side = pack(words, real, size=4, depth=16)
        >>> side.items.shape, side.sets, side.norms
        (torch.Size([3, 16]), tensor([[ 0,  1,  1, -1]], dtype=torch.int32), tensor([2.8284, 2.8284, 2.8284]))
    """
    mask = full_mask(items, mask).to(items.device)
    lengths = mask.sum(dim=1).cpu()
    first_set = torch.tensor(tile_boundaries(lengths.tolist(), size), device="cpu")
    first_item = F.pad(lengths.cumsum(0), (1, 0))
    start = first_item[first_set]
    sets = torch.full((len(start) - 1, size), -1, device="cpu")
    tile_of_set = torch.repeat_interleave(torch.arange(len(sets), device="cpu"), first_set.diff())
    ordinal = torch.arange(len(lengths), device="cpu") - first_set[tile_of_set]
    tile_of_item, ordinal = tile_of_set.repeat_interleave(lengths), ordinal.repeat_interleave(lengths)
    sets[tile_of_item, torch.arange(len(ordinal), device="cpu") - start[tile_of_item]] = ordinal
    packed = F.pad(items[mask], (0, -items.shape[2] % depth)).contiguous()
    norms = packed.float().square().sum(dim=1).sqrt()
    sets, start, first_set = (index.to(items.device, torch.int32) for index in (sets, start, first_set))
    grams = torch.empty(len(sets) if with_grams else 0, size, size, device=items.device)
    side = Packed(packed, sets, start, first_set, norms, grams)
    if with_grams:
        with no_autocast(items.device):
            for tiles, _, members, together in tile_items(side):
                grams[tiles] = (members @ members.transpose(1, 2)).masked_fill_(~together, 0.0)
    return side


def tile_items(side: Packed) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Some tiles at a time: which, the places of their items among all, the items, and who shares a set with whom.

    Places after a tile's last item repeat another item and share a set with nobody.

    >>> import torch
    >>> side = pack(torch.ones(2, 3, 8), None, size=4, depth=16, with_grams=False)
    >>> ((_, places, items, together),) = tile_items(side)
    >>> places, items.shape, together.sum(dim=(1, 2))
    (tensor([[0, 1, 2, 3],
            [3, 4, 5, 5]]), torch.Size([2, 4, 16]), tensor([9, 9]))
    """
    count, size = side.sets.shape
    for first in range(0, count, 64):
        tiles = slice(first, min(first + 64, count))
        places = side.start[:-1][tiles, None] + torch.arange(size, device=side.items.device)
        places = places.clamp_max(len(side.items) - 1)
        sets = side.sets[tiles]
        together = (sets[:, :, None] == sets[:, None, :]) & (sets >= 0)[:, None, :]
        yield tiles, places, side.items[places].float(), together


def tile_boundaries(lengths: Sequence[int], size: int) -> list[int]:
    """The first set of every tile, and the number of sets at the end: each tile takes what still fits, in order.

    Raises:
        ValueError: where a set is longer than a tile.

    Example:
        >>> tile_boundaries([36, 36, 36, 36, 100], size=128)
        [0, 3, 4, 5]
    """
    if max(lengths) > size:
        raise ValueError(
            f"an image or caption has {max(lengths)} items, more than the {size} of a tile of the Triton kernel; "
            "use another backend"
        )
    boundaries, filled = [0], 0
    for number, length in enumerate(lengths):
        if filled + length > size or number - boundaries[-1] == MAX_SETS:
            boundaries.append(number)
            filled = 0
        filled += length
    return [*boundaries, len(lengths)]


def unpack(
    packed: Float[Tensor, "item packed_dim"], like: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"] | None
) -> Float[Tensor, "set item dim"]:
    """Packed gradients to the padded shape and dtype of the input; padding gets zero.

    Example:
        >>> import torch
        >>> from xmodal.scoring.triton.packing import unpack
        >>> unpack(torch.ones(1, 16), torch.randn(1, 2, 3), torch.tensor([[False, True]]))
        tensor([[[0., 0., 0.],
                 [1., 1., 1.]]])
    """
    padded = torch.zeros_like(like)
    padded[full_mask(like, mask).to(like.device)] = packed[:, : like.shape[2]].to(like.dtype)
    return padded
