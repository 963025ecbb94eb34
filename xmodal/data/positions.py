"""Positions of images in what gives them, looked at before anything is read by them; and positions by name."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int


def as_positions(
    indices: Sequence[int] | Tensor, count: int, where: object, kind: str = "images"
) -> Int[np.ndarray, "image"]:
    """Some positions, in any order, repeated or not.

    Args:
        indices: whole numbers from 0.
        count: how many things there are.
        where: what holds them, for errors.
        kind: what they are.

    Raises:
        IndexError: one is not among them; none counts from the end.
        ValueError: there is none, or they are no list of whole numbers: a mask, say.

    >>> as_positions([2, 0], 3, "train.h5")
    array([2, 0])
    >>> as_positions([True, False, True], 3, "train.h5")
    Traceback (most recent call last):
    ...
    ValueError: indices of train.h5 are bool of shape (3,); wanted a list of whole numbers. ...
    """
    given = indices.numpy(force=True) if isinstance(indices, Tensor) else np.asarray(indices)
    if given.size == 0:
        raise ValueError(f"a batch of {where} needs at least one index")
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ValueError(
            f"indices of {where} are {given.dtype} of shape {given.shape}; wanted a list of whole numbers. "
            "Of a mask, take mask.nonzero().flatten()."
        )
    least, most = given.min(), given.max()
    if least < 0 or most >= count:
        raise IndexError(f"indices run from {least} to {most}; {where} holds {count} {kind}")
    return given.astype(np.int64, copy=False)


def position_by_name(names: Sequence[str], where: object) -> dict[str, int]:
    """Where each name is in a list.

    Args:
        names: of images, say.
        where: what holds them, for errors.

    Raises:
        ValueError: a name comes twice, and so does not say which one is meant.

    >>> position_by_name(["cat", "dog"], "train.h5")
    {'cat': 0, 'dog': 1}
    >>> position_by_name(["cat", "cat"], "train.h5")
    Traceback (most recent call last):
    ...
    ValueError: train.h5 has 'cat' more than once; each needs a name of its own
    """
    position = {name: place for place, name in enumerate(names)}
    if len(position) < len(names):
        repeated = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{where} has {repeated!r} more than once; each needs a name of its own")
    return position
