"""The two sides of a comparison, wherever they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.heads.base import check_inputs
from xmodal.numerics import full_mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def as_tensor(array: Any) -> Tensor:
    """A tensor as it is; anything else as a tensor on the host, whatever device somebody made the default.

    Example:
        >>> import numpy as np
        >>> from xmodal.scoring.sides import as_tensor
        >>> as_tensor(np.ones(2, np.float32))
        tensor([1., 1.])
    """
    return array if isinstance(array, torch.Tensor) else torch.as_tensor(array, device="cpu")


class Taken(NamedTuple):
    """Some images or captions, where they are compared."""

    items: Float[Tensor, "set ..."]
    mask: Bool[Tensor, "set place"]


@dataclass(frozen=True)
class Side:
    """Images or captions, encoded or embedded, and which of their items are real; None where all are."""

    items: Float[Tensor, "set ..."]
    mask: Bool[Tensor, "set place"] | None

    def __len__(self) -> int:
        return len(self.items)

    def take(
        self,
        sets: Int[Tensor, " set"] | slice,
        device: torch.device,
        dtype: torch.dtype | None = None,
        places: int | None = None,
    ) -> Taken:
        """Some sets on a device, with a mask; of sequences, the first places."""
        mask = full_mask(self.items, None) if self.mask is None else self.mask
        items, mask = (field if places is None else field[:, :places] for field in (self.items, mask))
        items, mask = (field[_index(sets, field.device)] for field in (items, mask))
        return Taken(items.to(device, dtype), mask.to(device))


class Sides(NamedTuple):
    """Images and captions, which are to be compared."""

    images: Side
    captions: Side

    @classmethod
    def checked(
        cls,
        regions: Float[Tensor, "image region dim"],
        words: Float[Tensor, "caption word dim"],
        region_mask: Bool[Tensor, "image region"] | None = None,
        word_mask: Bool[Tensor, "caption word"] | None = None,
    ) -> Sides:
        """What was encoded, tensors or numpy arrays, once it fits together.

        Errors are those of `xmodal.heads.base.check_inputs`.
        """
        regions, words = as_tensor(regions), as_tensor(words)
        region_mask, word_mask = (None if mask is None else as_tensor(mask) for mask in (region_mask, word_mask))
        check_inputs(regions, words, region_mask, word_mask)
        return cls(Side(regions, region_mask), Side(words, word_mask))

    @property
    def shape(self) -> tuple[int, int]:
        """Of the scores."""
        return len(self.images), len(self.captions)


def _index(sets: Tensor | slice, device: torch.device) -> Tensor | slice:
    return sets.to(device) if isinstance(sets, torch.Tensor) else sets
