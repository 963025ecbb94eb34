"""Ranking objectives on any score matrix: triplet hinge with all or the hardest negatives, and InfoNCE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.numerics import at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Reduction = Literal["sum", "mean"]


def hinge_ranking_loss(
    scores: Float[Tensor, "pair pair"],
    *,
    margin: float = 0.2,
    hardest: bool | float = True,
    reduction: Reduction = "sum",
    caption_image: Int[Tensor, " pair"] | None = None,
) -> Float[Tensor, ""]:
    """Bidirectional triplet hinge loss (VSE++, Faghri et al. 2018, eq. 5-6; SCAN eq. 10-11).

    Args:
        scores: every image (row) of a batch against every caption (column); row i and column i are a matched pair.
        margin: alpha, by which a match must beat a mismatch.
        hardest: True keeps only the hardest negative of each image and caption, False sums over all negatives; a
            number in [0, 1] mixes the two, `(1 - hardest) * all + hardest * hardest`, for a gradual warm-up.
        reduction: `sum` over the batch, as published, or `mean` (divided by the number of pairs).
        caption_image: image id of every caption; a caption of the same image is not counted as a negative when an
            image occurs more than once in the batch. None counts it, as the released code does.

    Returns:
        The loss, in at least float32.

    Raises:
        ValueError: if `scores` is not square, `caption_image` does not fit or an option is unknown.

    Example:
        >>> import torch
        >>> from xmodal.objectives import hinge_ranking_loss
        >>> scores = torch.tensor([[0.9, 0.8], [0.1, 0.7]])
        >>> hinge_ranking_loss(scores)  # caption 1 is too close to image 0, in both directions
        tensor(0.4000)
    """
    scores, negatives = _square_scores(scores, caption_image)
    if not 0 <= hardest <= 1:
        raise ValueError(f"hardest must be a boolean or a number in [0, 1], got {hardest}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}; got {reduction!r}")
    matched = scores.diag()
    caption_cost = (margin + scores - matched[:, None]).clamp_min(0).masked_fill(~negatives, 0)
    image_cost = (margin + scores - matched[None, :]).clamp_min(0).masked_fill(~negatives, 0)
    loss = scores.new_zeros(())
    if hardest < 1:
        loss = loss + (1 - hardest) * (caption_cost.sum() + image_cost.sum())
    if hardest > 0:
        # max(dim) picks one index, so that the gradient of a tie reaches one negative only, as published.
        loss = loss + hardest * (caption_cost.max(dim=1).values.sum() + image_cost.max(dim=0).values.sum())
    return loss if reduction == "sum" else loss / len(scores)


def info_nce_loss(
    scores: Float[Tensor, "pair pair"],
    *,
    temperature: float | Tensor = 0.05,
    caption_image: Int[Tensor, " pair"] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE (van den Oord et al. 2018; the CLIP loss): mean cross entropy of rows and of columns.

    Args:
        scores: every image (row) of a batch against every caption (column); row i and column i are a matched pair.
        temperature: divides the scores, > 0; may be a learned scalar tensor.
        caption_image: image id of every caption; other captions of the same image leave the softmax instead of
            counting as negatives.

    Raises:
        ValueError: if `scores` is not square, `caption_image` does not fit or `temperature` is not positive.

    Example:
        >>> import torch
        >>> from xmodal.objectives import info_nce_loss
        >>> info_nce_loss(torch.zeros(4, 4))  # chance: log 4
        tensor(1.3863)
    """
    scores, negatives = _square_scores(scores, caption_image)
    if not isinstance(temperature, torch.Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    logits = (scores / temperature).masked_fill(~(negatives | diagonal), float("-inf"))
    targets = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


class HingeRanking(nn.Module):
    """`hinge_ranking_loss` with a warm-up from all negatives to the hardest.

    The hardest negatives of an untrained model give no direction: the loss settles at 2 * margin a pair and stays
    (seen with the published settings on small data). During the first `warmup_steps` calls in training mode the
    weight of the hardest negatives grows linearly from 0 to `hardest`.

    Example:
        >>> import torch
        >>> from xmodal.objectives import HingeRanking
        >>> HingeRanking(margin=0.2)(torch.eye(3), step=0)["total"]
        tensor(0.)
    """

    def __init__(
        self,
        margin: float = 0.2,
        hardest: float = 1.0,
        reduction: Reduction = "sum",
        warmup_steps: int = 0,
        mask_false_negatives: bool = True,
    ) -> None:
        super().__init__()
        self.margin = margin
        self.hardest = float(hardest)
        self.reduction: Reduction = reduction
        self.warmup_steps = warmup_steps
        self.mask_false_negatives = mask_false_negatives

    def forward(
        self, scores: Float[Tensor, "pair pair"], caption_image: Int[Tensor, " pair"] | None = None, *, step: int
    ) -> dict[str, Float[Tensor, ""]]:
        """Named terms of the loss at an optimizer step (0-based); `total` is what training minimizes."""
        warmth = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        loss = hinge_ranking_loss(
            scores,
            margin=self.margin,
            hardest=warmth * self.hardest,
            reduction=self.reduction,
            caption_image=caption_image if self.mask_false_negatives else None,
        )
        return {"total": loss}


class InfoNCE(nn.Module):
    """`info_nce_loss` with a temperature that may be learned (kept as its logarithm, as CLIP does).

    Example:
        >>> import torch
        >>> from xmodal.objectives import InfoNCE
        >>> InfoNCE(temperature=1.0)(torch.zeros(4, 4), step=0)["total"]
        tensor(1.3863)
    """

    def __init__(
        self, temperature: float = 0.05, learn_temperature: bool = False, mask_false_negatives: bool = True
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        log_temperature = torch.tensor(temperature).log()
        if learn_temperature:
            self.log_temperature = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature)
        self.mask_false_negatives = mask_false_negatives

    def forward(
        self, scores: Float[Tensor, "pair pair"], caption_image: Int[Tensor, " pair"] | None = None, *, step: int
    ) -> dict[str, Float[Tensor, ""]]:
        """Named terms of the loss; `total` is what training minimizes."""
        loss = info_nce_loss(
            scores,
            temperature=self.log_temperature.exp(),
            caption_image=caption_image if self.mask_false_negatives else None,
        )
        return {"total": loss}


def _square_scores(
    scores: Tensor, caption_image: Tensor | None
) -> tuple[Float[Tensor, "pair pair"], Bool[Tensor, "pair pair"]]:
    """The scores in at least float32 and the mask of true negatives."""
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"scores must be (pair, pair) with matched pairs on the diagonal, got {tuple(scores.shape)}")
    if caption_image is None:
        negatives = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    elif caption_image.shape != scores.shape[:1]:
        raise ValueError(f"caption_image must have shape ({len(scores)},), got {tuple(caption_image.shape)}")
    else:
        negatives = caption_image[:, None] != caption_image[None, :]
    return at_least_float32(scores), negatives
