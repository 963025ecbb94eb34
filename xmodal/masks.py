"""What masks hold, known without reading them: a device is read only when it has done all that it was asked for.

A mask is made on the host and copied to a device with its batch. Whoever copies it can `note` what it holds, and then
the questions here are answered on the host, so that a training step asks nothing of a device that computes. Of any
other mask they are answered by reading it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from jaxtyping import Bool, Int
    from torch import Tensor


class _Held(NamedTuple):
    counts: list[int]
    """Real items of every set."""
    ends: list[int]
    """One past the last real item of every set."""
    version: int
    """Of the mask: one that was written to since is read again."""


_noted: MutableMapping[Tensor, _Held] = WeakTensorKeyDictionary()


def note(mask: Bool[Tensor, "set item"], same: Bool[Tensor, "set item"]) -> Bool[Tensor, "set item"]:
    """The mask; what it holds is noted, by one on the host that is the same.

    Example:
        >>> import torch
        >>> from xmodal.masks import lengths, note
        >>> host = torch.tensor([[True, False]])
        >>> lengths(note(host.clone(), host))
        [1]
    """
    return _note(mask, same.sum(dim=1).tolist(), _ends(same).tolist())


def note_full(mask: Bool[Tensor, "set item"]) -> Bool[Tensor, "set item"]:
    """The mask; it is noted that all items are real.

    Example:
        >>> import torch
        >>> from xmodal.masks import counts, note_full
        >>> counts(note_full(torch.ones(1, 3, dtype=torch.bool)))
        [3]
    """
    sets, items = mask.shape
    return _note(mask, [items] * sets, [items] * sets)


def is_full(mask: Bool[Tensor, "set item"]) -> bool:
    """Whether all items are real.

    Example:
        >>> import torch
        >>> from xmodal.masks import is_full
        >>> is_full(torch.tensor([[True, True], [True, False]]))
        False
    """
    held = _held(mask)
    return bool(mask.all()) if held is None else all(count == mask.shape[1] for count in held.counts)


def first_empty(mask: Bool[Tensor, "set item"]) -> int | None:
    """The first set without a real item; None if every set has one.

    Example:
        >>> import torch
        >>> from xmodal.masks import first_empty
        >>> first_empty(torch.tensor([[True, True], [False, False]]))
        1
    """
    held = _held(mask)
    if held is None and bool(mask.any(dim=1).all()):
        return None
    found = counts(mask)
    return found.index(0) if 0 in found else None


def comes_first(mask: Bool[Tensor, "set item"]) -> bool:
    """Whether in every set the real items come before the padding.

    Example:
        >>> import torch
        >>> from xmodal.masks import comes_first
        >>> comes_first(torch.tensor([[True, False], [False, True]]))
        False
    """
    held = _held(mask)
    return not bool((mask[:, 1:] & ~mask[:, :-1]).any()) if held is None else held.counts == held.ends


def counts(mask: Bool[Tensor, "set item"]) -> list[int]:
    """The real items of every set.

    Example:
        >>> import torch
        >>> from xmodal.masks import counts
        >>> counts(torch.tensor([[True, True], [True, False]]))
        [2, 1]
    """
    held = _held(mask)
    return mask.sum(dim=1).tolist() if held is None else held.counts


def lengths(mask: Bool[Tensor, "set item"]) -> list[int]:
    """One past the last real item of every set; real items may have gaps between them.

    Example:
        >>> import torch
        >>> from xmodal.masks import lengths
        >>> lengths(torch.tensor([[True, False, True, False], [True, False, False, False]]))
        [3, 1]
    """
    held = _held(mask)
    return _ends(mask).tolist() if held is None else held.ends


def real_places(mask: Bool[Tensor, "set item"]) -> Int[Tensor, " real"]:
    """Where the real items are among all of all sets, one after the other; on the device of the mask.

    Example:
        >>> import torch
        >>> from xmodal.masks import real_places
        >>> real_places(torch.tensor([[True, False], [True, True]]))
        tensor([0, 2, 3])
    """
    held = _held(mask)
    if held is None or held.counts != held.ends:  # of gaps nothing is known
        return mask.flatten().nonzero()[:, 0]
    first = enumerate(held.counts)
    places = [torch.arange(count, device="cpu") + number * mask.shape[1] for number, count in first]
    return torch.cat(places).to(mask.device, non_blocking=True)


def taken(mask: Bool[Tensor, "set item"], order: Sequence[int]) -> Bool[Tensor, "some item"]:
    """Some sets of a mask, with what is known of them.

    Example:
        >>> import torch
        >>> from xmodal.masks import taken
        >>> taken(torch.tensor([[True, True], [True, False]]), [1])
        tensor([[ True, False]])
    """
    some, held = mask[torch.tensor(order, device=mask.device)], _held(mask)
    return some if held is None else _note(some, [held.counts[n] for n in order], [held.ends[n] for n in order])


def split(mask: Bool[Tensor, "set item"], size: int) -> list[Bool[Tensor, "some item"]]:
    """A mask in parts of at most so many sets, each without the padding that all its sets share.

    Example:
        >>> import torch
        >>> from xmodal.masks import split
        >>> split(torch.tensor([[True, False], [True, True]]), 1)
        [tensor([[True]]), tensor([[True, True]])]
    """
    held, parts = _held(mask), []
    for number, part in enumerate(mask.split(size)):
        if held is None:
            parts.append(part[:, : int(_ends(part).max())])
        else:
            some = slice(number * size, (number + 1) * size)
            parts.append(part[:, : max(held.ends[some])])
            _note(parts[-1], held.counts[some], held.ends[some])
    return parts


def _note(mask: Tensor, counts: list[int], ends: list[int]) -> Tensor:
    if not mask.is_inference():  # tensors of inference mode do not count how often they were written to
        _noted[mask] = _Held(counts, ends, mask._version)
    return mask


def _held(mask: Tensor) -> _Held | None:
    if torch.compiler.is_compiling() or mask.is_inference():  # a graph is for all masks
        return None
    held = _noted.get(mask)
    return held if held is not None and held.version == mask._version else None


def _ends(mask: Tensor) -> Int[Tensor, " set"]:
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)
