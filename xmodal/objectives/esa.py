"""ESA's ranking loss, over several views of every pair (Zhu et al., TCSVT 2023)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from xmodal.numerics import DropShare, NotNegative, Size, Steps, at_least_float32, check_count, check_number
from xmodal.objectives.checks import check_shape
from xmodal.objectives.choices import check_choice
from xmodal.objectives.ranking import Reduction
from xmodal.objectives.warmup import Hardness

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def esa_ranking_loss(
    scores: Float[Tensor, "image caption"],
    *,
    views: int = 2,
    margin: float = 0.2,
    hardest: float = 1.0,
    reduction: Reduction = "sum",
    caption_image: Int[Tensor, " caption"] | None = None,
) -> Float[Tensor, ""]:
    """Triplet hinge loss where every pair is there in several views, and the worst of them must beat the mismatches.

    Rows and columns hold the views of a pair one behind the other. The views of a pair are a block of the scores: a
    view of an image is held against the block's least score in its row, a view of a caption against the least in its
    column, and no score of the block is a mismatch (ESA, lib/loss.py: ContrastiveLoss). With one view this is
    `hinge_ranking_loss`.

    Args:
        scores: of all views of images with all views of captions, square; minus infinity where a head left a pair out,
            which counts neither as a mismatch nor as the worst view.
        views: of a pair, >= 1.
        margin: by which a match must beat a mismatch, >= 0.
        hardest: share of the hardest mismatch of every view, in [0, 1], beside that of all of them.
        reduction: `sum` over the views, as published, or `mean`.
        caption_image: the image id of every column: captions of one image are no mismatches of one another; None counts
            them, as the released code does.

    Raises:
        ValueError: the scores are not square, hold no whole number of pairs, or an option is out of range.

    Example:
        >>> import torch
        >>> from xmodal.objectives import esa_ranking_loss
        >>> scores = torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1)  # two views of each of two pairs
        >>> scores[0] = torch.tensor([0.9, 0.5, 0.0, 0.4])
        >>> esa_ranking_loss(scores)  # 0.4 is too near to 0.5 in its row
        tensor(0.1000)
    """
    check_count("views", views)
    check_number("margin", margin, least=0)
    check_choice("reduction", reduction, Reduction)
    check_number("hardest", hardest, least=0, most=1)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) % views or not len(scores):
        raise ValueError(f"scores must be square with {views} views of every pair, got {tuple(scores.shape)}")
    scores = at_least_float32(scores)
    own = torch.arange(len(scores) // views, device=scores.device)
    blocks = scores.view(len(own), views, len(own), views)[own, :, own]
    pair = own.repeat_interleave(views)
    ids = pair if caption_image is None else caption_image
    check_shape("caption_image", ids, (len(scores),))
    right = (pair[:, None] == pair) | (ids[:, None] == ids)
    matched = _least(blocks, dim=2).flatten(), _least(blocks, dim=1).flatten()
    caption_cost = (margin + scores - matched[0][:, None]).clamp_min(0).masked_fill(right, 0)
    image_cost = (margin + scores - matched[1][None, :]).clamp_min(0).masked_fill(right, 0)
    everything = caption_cost.sum() + image_cost.sum()
    worst = caption_cost.max(dim=1).values.sum() + image_cost.max(dim=0).values.sum()
    loss = (1 - hardest) * everything + hardest * worst
    return loss if reduction == "sum" else loss / len(scores)


def _least(blocks: Float[Tensor, "pair view view"], dim: int) -> Float[Tensor, "pair view"]:
    """The least score of those that a head gave; minus infinity where it gave none."""
    # min(dim) picks one index, so that the gradient of a tie reaches one score only, as published.
    least = blocks.masked_fill(blocks == -math.inf, math.inf).min(dim=dim).values
    return least.masked_fill(least == math.inf, -math.inf)


class ESARanking(nn.Module):
    """`esa_ranking_loss` with the ways of `HingeRanking` from all negatives to the hardest.

    Args:
        margin: by which a match must beat a mismatch.
        reduction: `sum` over the views, as published, or `mean`.
        mask_false_negatives: keep the captions of one image from being each other's negatives.
        views: of a pair; training fills in what `data.views` says.
        warmup_steps: as for `HingeRanking`.
        curriculum: as for `HingeRanking`.
        all_negatives_epochs: as for `HingeRanking` (1 as published).
        steps_per_epoch: as for `HingeRanking`.

    Example:
        >>> import torch
        >>> from xmodal.objectives import ESARanking
        >>> ESARanking()(torch.eye(3).repeat_interleave(2, 0).repeat_interleave(2, 1))["total"]
        tensor(0.)
    """

    def __init__(
        self,
        margin: NotNegative = 0.2,
        reduction: Reduction = "sum",
        mask_false_negatives: bool = True,
        views: Size | None = None,
        warmup_steps: Steps = 0,
        curriculum: DropShare = 0.0,
        all_negatives_epochs: Steps = 1,
        steps_per_epoch: Size | None = None,
    ) -> None:
        super().__init__()
        check_number("margin", margin, least=0)
        check_choice("reduction", reduction, Reduction)
        self.margin = margin
        self.reduction: Reduction = reduction
        self.mask_false_negatives = mask_false_negatives
        self.views = 2 if views is None else views
        check_count("views", self.views)
        self.hardness = Hardness(warmup_steps, curriculum, all_negatives_epochs, steps_per_epoch)

    def forward(
        self,
        scores: Float[Tensor, "image caption"],
        caption_image: Int[Tensor, " caption"] | None = None,
        *,
        step: int | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Named terms of the loss at an optimizer step (0-based); without one, the hardest negatives alone count."""
        loss = esa_ranking_loss(
            scores,
            views=self.views,
            margin=self.margin,
            hardest=self.hardness(step),
            reduction=self.reduction,
            caption_image=caption_image if self.mask_false_negatives else None,
        )
        return {"total": loss}
