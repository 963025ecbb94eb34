"""Matching means: a control of ADDR that is ours, without discriminators.

The encoders' gradient of ADDR with `ridge` and no L_reg has nearly the direction of that of the squared distance
between the mean word and the mean region of a pair. This is that distance by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xmodal.numerics import unit_means
from xmodal.objectives.addr.base import DomainObjective, Learn, Reduction
from xmodal.objectives.addr.batch import check_features
from xmodal.objectives.checks import check_matched
from xmodal.objectives.choices import check_choice

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.objectives.addr.batch import DomainFeatures


def mean_match_loss(
    words: Float[Tensor, "pair word dim"],
    regions: Float[Tensor, "pair region dim"],
    word_mask: Bool[Tensor, "pair word"] | None = None,
    region_mask: Bool[Tensor, "pair region"] | None = None,
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Squared distance between the mean word and the mean region of every pair, of items divided by their lengths.

    Args:
        words: word features of matched pairs, of any length.
        regions: region features in the same space.
        word_mask: True = real word; None means that all are real.
        region_mask: True = real region; None means that all are real.
        reduction: `mean` over the pairs, or `sum`.

    Raises:
        ValueError: for shapes or masks that do not fit, a pair without a real word or region or an unknown reduction.

    Example:
        >>> import torch
        >>> from xmodal.objectives import mean_match_loss
        >>> mean_match_loss(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [0.0, 5.0]]]))
        tensor(2.)
    """
    check_choice("reduction", reduction, Reduction)
    check_matched(words, regions, word_mask, region_mask, look=True)
    return _mean_match(words, regions, word_mask, region_mask, reduction)


def _mean_match(
    words: Tensor, regions: Tensor, word_mask: Tensor | None, region_mask: Tensor | None, reduction: Reduction
) -> Tensor:
    with torch.autocast(words.device.type, enabled=False):
        gaps = (unit_means(words, word_mask) - unit_means(regions, region_mask)).square().sum(dim=1)
        return gaps.sum() if reduction == "sum" else gaps.mean()


class MeanMatch(DomainObjective):
    """`mean_match_loss` of a batch as what the encoders minimize, times beta; nothing learns against them.

    Args:
        beta: weight of the loss; 0 is the baseline.
        beta_warmup_steps: as for `ADDR`.
        beta_hold_steps: as for `ADDR`.
        beta_decay_steps: as for `ADDR`.
        reduction: as for `ADDR`.

    Example:
        >>> import torch
        >>> from xmodal.objectives import MeanMatch
        >>> from xmodal.objectives.addr import DomainFeatures
        >>> words, regions = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> real = torch.ones(1, 1, dtype=torch.bool)
        >>> MeanMatch(beta=10.0)(DomainFeatures(words, regions, real, real))["total"]
        tensor(20.)
    """

    log_name = "mean_match"

    def forward(
        self,
        features: DomainFeatures,
        scores: Float[Tensor, "pair pair"] | None = None,
        step: int | None = None,
        learn: Learn | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """`total` is beta(step) times the sum or mean over pairs; `gap` is the mean, whatever the reduction."""
        check_features(features)
        beta = self.beta_at(step)
        words, regions, word_mask, region_mask = features[:4]
        if not beta:
            words, regions = words.detach(), regions.detach()
        loss = _mean_match(words, regions, word_mask, region_mask, self.reduction)
        gap = loss.detach() / (len(words) if self.reduction == "sum" else 1)
        return {"gap": gap, "beta": torch.full_like(gap, beta), "total": beta * loss}
