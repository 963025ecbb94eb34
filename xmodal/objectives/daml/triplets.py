"""Triplets of a batch: which images are compared with which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from xmodal.objectives.choices import check_choice
from xmodal.objectives.metric import check_pairs

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor


TripletLayout = Literal["cyclic", "random", "thirds"]


class Triplets(NamedTuple):
    """Rows of a batch: every pair of an anchor and a positive, and the negatives that it is compared with."""

    anchor: Int[Tensor, " pair"]
    positive: Int[Tensor, " pair"]
    negative: Int[Tensor, "pair negative"]


def batch_triplets(
    labels: Int[Tensor, " image"],
    *,
    layout: TripletLayout = "cyclic",
    negatives: int | None = 1,
    generator: torch.Generator | None = None,
) -> Triplets:
    """Triplets of a batch.

    Args:
        labels: class of every image.
        layout: `cyclic` makes every image an anchor: its positive is the next image of its class and its negatives are
            the next ones of other classes, counting on from the end of the batch to its start. `random` does so on a
            shuffled batch. `thirds` is the released layout: a third of anchors, their positives, their negatives,
            each in the same order, with one negative a pair.
        negatives: how many for each pair; None takes as many as every image has. Without effect on `thirds`.
        generator: shuffles; None is torch's global generator of the device.

    Raises:
        ValueError: if an image has no positive or too few negatives, or the labels do not have the layout.

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import batch_triplets
        >>> triplets = batch_triplets(torch.tensor([0, 0, 1, 1]))
        >>> triplets.positive.tolist(), triplets.negative.tolist()
        ([1, 0, 3, 2], [[2], [2], [0], [0]])
    """
    check_choice("layout", layout, TripletLayout)
    places = torch.arange(len(labels), device=labels.device)
    if layout == "thirds":
        anchor, positive, negative = places.tensor_split(3)
        whole = len(anchor) == len(negative)
        if not (whole and (labels[anchor] == labels[positive]).all() and (labels[anchor] != labels[negative]).all()):
            raise ValueError(
                "layout 'thirds' needs a batch of anchors, then positives of the same classes, then negatives of "
                f"others, equally many of each; got labels {labels.tolist()}"
            )
        return Triplets(anchor, positive, negative[:, None])
    check_pairs(labels)
    order = places
    if layout == "random":
        order = torch.randperm(len(labels), device=labels.device, generator=generator)
    shuffled = labels[order]
    same = shuffled[:, None] == shuffled[None, :]
    fewest = int((~same).sum(dim=1).min())
    if negatives is not None and not 1 <= negatives <= fewest:
        raise ValueError(f"negatives must be in 1..{fewest} for every image of the batch to have them, got {negatives}")
    ahead = (places[None, :] - places[:, None]) % len(labels)
    positive = ahead.masked_fill(~same | (ahead == 0), len(labels)).argmin(dim=1)
    negative = ahead.masked_fill(same, len(labels)).argsort(dim=1)[:, : negatives or fewest]
    return Triplets(order, order[positive], order[negative])
