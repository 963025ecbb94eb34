"""Ranking objectives on any score matrix: triplet hinge with all or the hardest negatives, and InfoNCE.

Both take a batch in one of three forms:

- square scores, row i and column i a matched pair (the published form). `caption_image` then gives image ids, and keeps
  captions of one image from being each other's negatives;
- scores of other shapes, such as 8 images against 40 captions: `caption_image` gives the row of every caption's image;
- any scores with `positives`, the mask of all right pairs: an image may have many captions and a caption many images.

Every right pair is compared with the wrong captions of its image and with the wrong images of its caption. Other right
answers are not in its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.numerics import DropShare, NotNegative, Positive, Size, Steps, at_least_float32, check_number
from xmodal.objectives.checks import check_shape
from xmodal.objectives.choices import check_choice
from xmodal.objectives.warmup import Hardness

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Reduction = Literal["sum", "mean"]


def hinge_ranking_loss(
    scores: Float[Tensor, "image caption"],
    *,
    margin: float = 0.2,
    hardest: bool | float = True,
    reduction: Reduction = "sum",
    caption_image: Int[Tensor, " caption"] | None = None,
    positives: Bool[Tensor, "image caption"] | None = None,
) -> Float[Tensor, ""]:
    """Bidirectional triplet hinge loss (VSE++, Faghri et al. 2018, eq. 5-6; SCAN eq. 10-11).

    Args:
        scores: every image (row) of a batch against every caption (column). Where they are square and `positives` is
            not given, row i and column i are a matched pair.
        margin: alpha, by which a match must beat a mismatch, >= 0.
        hardest: True keeps only the hardest negative of each image and caption, False sums over all negatives; a
            number in [0, 1] mixes the two, `(1 - hardest) * all + hardest * hardest`, for a gradual warm-up.
        reduction: `sum` over the right pairs, as published, or `mean` (divided by their number).
        caption_image: of square scores, the image id of every caption: a caption of the same image is not counted as
            a negative when an image occurs more than once in the batch; None counts it, as the released code does. Of
            other scores, the row of every caption's image.
        positives: True = the image and the caption belong together; all others do not.

    Returns:
        The loss, in at least float32.

    Raises:
        ValueError: if the right pairs of `scores` are not known, `caption_image` or `positives` does not fit or an
            option is unknown.

    Example:
        >>> import torch
        >>> from xmodal.objectives import hinge_ranking_loss
        >>> scores = torch.tensor([[0.9, 0.8], [0.1, 0.7]])
        >>> hinge_ranking_loss(scores)  # caption 1 is too close to image 0, in both directions
        tensor(0.4000)
        >>> hinge_ranking_loss(torch.randn(8, 40), caption_image=torch.arange(8).repeat_interleave(5)).shape
        torch.Size([])
    """
    pairs = _right_pairs(scores, caption_image, positives)
    check_number("margin", margin, least=0)
    check_number("hardest", hardest, least=0, most=1)
    check_choice("reduction", reduction, Reduction)
    matched = pairs.scores
    caption_cost = (margin + pairs.captions - matched[:, None]).clamp_min(0).masked_fill(~pairs.wrong_captions, 0)
    image_cost = (margin + pairs.images - matched[None, :]).clamp_min(0).masked_fill(~pairs.wrong_images, 0)
    loss = matched.new_zeros(())
    if hardest < 1:
        loss = loss + (1 - hardest) * (caption_cost.sum() + image_cost.sum())
    if hardest > 0:
        # max(dim) picks one index, so that the gradient of a tie reaches one negative only, as published.
        loss = loss + hardest * (caption_cost.max(dim=1).values.sum() + image_cost.max(dim=0).values.sum())
    return loss if reduction == "sum" else loss / len(matched)


def info_nce_loss(
    scores: Float[Tensor, "image caption"],
    *,
    temperature: float | Tensor = 0.05,
    caption_image: Int[Tensor, " caption"] | None = None,
    positives: Bool[Tensor, "image caption"] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE (van den Oord et al. 2018; the CLIP loss): mean cross entropy of rows and of columns.

    Args:
        scores: every image (row) of a batch against every caption (column). Where they are square and `positives` is
            not given, row i and column i are a matched pair.
        temperature: divides the scores, > 0; may be a learned scalar tensor.
        caption_image: of square scores, the image id of every caption: other captions of the same image leave the
            softmax instead of counting as negatives. Of other scores, the row of every caption's image.
        positives: True = the image and the caption belong together; all others do not. The mean is over right pairs,
            and from the softmax of each the others of the same row, or column, are left out.

    Raises:
        ValueError: if the right pairs of `scores` are not known, `caption_image` or `positives` does not fit or
            `temperature` is not positive.

    Example:
        >>> import torch
        >>> from xmodal.objectives import info_nce_loss
        >>> info_nce_loss(torch.zeros(4, 4))  # chance: log 4
        tensor(1.3863)
        >>> info_nce_loss(torch.zeros(2, 4), caption_image=torch.tensor([0, 0, 1, 1]))  # log 3 and log 2
        tensor(0.8959)
    """
    if not isinstance(temperature, torch.Tensor):  # of a learned one, looking would wait for the device
        check_number("temperature", temperature, above=0)
    scores = at_least_float32(scores)
    # Minus infinity, the score of pairs that a head left out, is no number that a temperature could learn from.
    left_out = scores == float("-inf")
    logits = (scores.masked_fill(left_out, 0.0) / temperature).masked_fill(left_out, float("-inf"))
    pairs = _right_pairs(logits, caption_image, positives)

    captions, images = (torch.arange(count, device=scores.device) for count in scores.T.shape)
    rivals = pairs.wrong_captions | (captions == pairs.caption[:, None])
    caption_logits = pairs.captions.masked_fill(~rivals, float("-inf"))
    rivals = pairs.wrong_images | (images[:, None] == pairs.image)
    image_logits = pairs.images.masked_fill(~rivals, float("-inf"))
    return (F.cross_entropy(caption_logits, pairs.caption) + F.cross_entropy(image_logits.T, pairs.image)) / 2


class HingeRanking(nn.Module):
    """`hinge_ranking_loss` with a warm-up from all negatives to the hardest.

    The hardest negatives of an untrained model give no direction: the loss settles at 2 * margin a pair and stays
    (seen with the published settings on small data). While `step`, the optimizer's, is below `warmup_steps`, the weight
    of the hardest negatives grows linearly from 0 to `hardest`; calls count for nothing.

    With `mask_false_negatives=False` the image ids of square scores are ignored.

    Args:
        margin: by which a match must beat a mismatch.
        hardest: weight of the hardest negatives against all of them, in [0, 1], at the end of the warm-up.
        reduction: `sum` over the pairs, as published, or `mean`.
        warmup_steps: optimizer steps of the warm-up; 0 for none.
        curriculum: the weight of the hardest negatives after t steps is 1 - curriculum^t (0.991 in ADAPT); 0 for none.
        all_negatives_epochs: epochs in which all negatives count alike, before the hardest do (1 in vse_infty).
        steps_per_epoch: filled in by training; only needed for `all_negatives_epochs`.
        mask_false_negatives: keep the captions of one image from being each other's negatives.

    Example:
        >>> import torch
        >>> from xmodal.objectives import HingeRanking
        >>> HingeRanking(margin=0.2)(torch.eye(3))["total"]
        tensor(0.)
    """

    def __init__(
        self,
        margin: NotNegative = 0.2,
        hardest: float | bool = 1.0,
        reduction: Reduction = "sum",
        warmup_steps: Steps = 0,
        mask_false_negatives: bool = True,
        curriculum: DropShare = 0.0,
        all_negatives_epochs: Steps = 0,
        steps_per_epoch: Size | None = None,
    ) -> None:
        super().__init__()
        check_number("margin", margin, least=0)
        check_number("hardest", hardest, least=0, most=1)
        check_choice("reduction", reduction, Reduction)
        self.hardness = Hardness(warmup_steps, curriculum, all_negatives_epochs, steps_per_epoch)
        self.margin = margin
        self.hardest = float(hardest)
        self.reduction: Reduction = reduction
        self.mask_false_negatives = mask_false_negatives

    def forward(
        self,
        scores: Float[Tensor, "image caption"],
        caption_image: Int[Tensor, " caption"] | None = None,
        *,
        positives: Bool[Tensor, "image caption"] | None = None,
        step: int | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Named terms of the loss at an optimizer step (0-based); `total` is what training minimizes.

        Scores, `caption_image` and `positives` are those of `hinge_ranking_loss`. Without a `step` the warm-up is over:
        the full loss.
        """
        loss = hinge_ranking_loss(
            scores,
            margin=self.margin,
            hardest=self.hardness(step) * self.hardest,
            reduction=self.reduction,
            caption_image=_used_ids(scores, caption_image, self.mask_false_negatives),
            positives=positives,
        )
        return {"total": loss}


class InfoNCE(nn.Module):
    """`info_nce_loss` with a temperature that may be learned (as its logarithm, as CLIP does).

    With `mask_false_negatives=False` the image ids of square scores are ignored.

    Args:
        temperature: of the softmax over the scores, positive; where it is learned, its start.
        learn_temperature: whether training moves the temperature.
        mask_false_negatives: keep the captions of one image from being each other's negatives.

    Example:
        >>> import torch
        >>> from xmodal.objectives import InfoNCE
        >>> InfoNCE(temperature=1.0)(torch.zeros(4, 4))["total"]
        tensor(1.3863)
    """

    def __init__(
        self, temperature: Positive = 0.05, learn_temperature: bool = False, mask_false_negatives: bool = True
    ) -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        self.temperature = temperature
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log()) if learn_temperature else None
        self.register_load_state_dict_pre_hook(_without_option)
        self.mask_false_negatives = mask_false_negatives

    def forward(
        self,
        scores: Float[Tensor, "image caption"],
        caption_image: Int[Tensor, " caption"] | None = None,
        *,
        positives: Bool[Tensor, "image caption"] | None = None,
        step: int | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Named terms of the loss; `total` is what training minimizes. It is the same at every step.

        Scores, `caption_image` and `positives` are those of `info_nce_loss`.
        """
        loss = info_nce_loss(
            scores,
            temperature=self.temperature if self.log_temperature is None else self.log_temperature.exp(),
            caption_image=_used_ids(scores, caption_image, self.mask_false_negatives),
            positives=positives,
        )
        return {"total": loss}


def _without_option(objective: InfoNCE, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Older checkpoints have a fixed temperature, too; it is an option, as the margin of others."""
    if objective.log_temperature is None:
        state.pop(f"{prefix}log_temperature", None)


class _RightPairs(NamedTuple):
    """All right pairs of a batch, and what each is compared with."""

    image: Int[Tensor, " pair"]
    caption: Int[Tensor, " pair"]
    scores: Float[Tensor, " pair"]
    """In at least float32."""
    captions: Float[Tensor, "pair caption"]
    """Scores of each pair's image and all captions."""
    wrong_captions: Bool[Tensor, "pair caption"]
    """Which of them are wrong answers. Right answers other than the pair itself are not in its way."""
    images: Float[Tensor, "image pair"]
    """Scores of all images and each pair's caption."""
    wrong_images: Bool[Tensor, "image pair"]


def _used_ids(scores: Tensor, caption_image: Tensor | None, mask_false_negatives: bool) -> Tensor | None:
    """`caption_image`, unless it only says which negatives of square scores are false, and these are to count."""
    return caption_image if mask_false_negatives or scores.ndim != 2 or scores.shape[0] != scores.shape[1] else None


def _right_pairs(
    scores: Float[Tensor, "image caption"],
    caption_image: Int[Tensor, " caption"] | None,
    positives: Bool[Tensor, "image caption"] | None,
) -> _RightPairs:
    """The right pairs of scores, in any of the three forms.

    Raises:
        ValueError: see `hinge_ranking_loss`.
    """
    if scores.ndim != 2 or (scores.shape[0] != scores.shape[1] and caption_image is None and positives is None):
        raise ValueError(
            f"scores must be (pair, pair) with matched pairs on the diagonal, got {tuple(scores.shape)}; with "
            "(image, caption) of other shapes give caption_image, the row of every caption's image, or positives"
        )
    if not scores.numel():
        raise ValueError(f"scores must be of at least one image and one caption, got {tuple(scores.shape)}")
    if caption_image is not None and positives is not None:
        raise ValueError("caption_image and positives both say which pairs belong together; give one of them")
    scores = at_least_float32(scores)
    if positives is None and scores.shape[0] == scores.shape[1]:
        own = torch.arange(len(scores), device=scores.device)
        wrong = _wrong_of_square(scores, caption_image)
        return _RightPairs(own, own, scores.diag(), scores, wrong, scores, wrong)
    if positives is None:
        assert caption_image is not None
        positives = _positives(scores, caption_image)
    if positives.shape != scores.shape or positives.dtype != torch.bool:
        raise ValueError(
            f"positives must be booleans of the shape of the scores, {tuple(scores.shape)}; got {positives.dtype} of "
            f"shape {tuple(positives.shape)}"
        )
    image, caption = positives.nonzero(as_tuple=True)
    if not len(image):
        raise ValueError("positives has no pair that belongs together")
    return _RightPairs(
        image,
        caption,
        scores[image, caption],
        scores[image],
        ~positives[image],
        scores[:, caption],
        ~positives[:, caption],
    )


def _wrong_of_square(
    scores: Float[Tensor, "pair pair"], caption_image: Int[Tensor, " pair"] | None
) -> Bool[Tensor, "pair pair"]:
    if caption_image is None:
        return ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    check_shape("caption_image", caption_image, (len(scores),))
    return caption_image[:, None] != caption_image[None, :]


def _positives(
    scores: Float[Tensor, "image caption"], caption_image: Int[Tensor, " caption"]
) -> Bool[Tensor, "image caption"]:
    images, captions = scores.shape
    check_shape("caption_image", caption_image, (captions,))
    outside = ((caption_image < 0) | (caption_image >= images)).nonzero()
    if len(outside):
        caption = int(outside[0])
        raise ValueError(
            f"caption_image[{caption}] is {int(caption_image[caption])}; for scores of {images} images and {captions} "
            f"captions it must be the row of the caption's image, from 0 to {images - 1}"
        )
    return caption_image == torch.arange(images, device=caption_image.device)[:, None]
