"""DAML's losses: five metric losses that take synthetic negatives as well as real ones, and the generator's three."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from xmodal.numerics import Angle, NotNegative, at_least_float32, check_number, normalize
from xmodal.objectives.checks import check_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor


def triplet_on_synthetic(
    anchor: Float[Tensor, "pair dim"],
    positive: Float[Tensor, "pair dim"],
    negative: Float[Tensor, "pair negative dim"],
    *,
    margin: NotNegative = 1.0,
) -> Float[Tensor, ""]:
    """Mean of [|a - p|^2 - |a - n|^2 + margin]_+; the released code halves it.

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import triplet_on_synthetic
        >>> anchor, positive, negative = torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[[1.5]]])
        >>> triplet_on_synthetic(anchor, positive, negative)
        tensor(0.)
    """
    check_number("margin", margin, least=0)
    _check_triplets(anchor, positive, negative)
    return (_squared(anchor, positive)[:, None] - _squared(anchor[:, None], negative) + margin).clamp_min(0).mean()


def contrastive_on_synthetic(
    anchor: Float[Tensor, "pair dim"],
    positive: Float[Tensor, "pair dim"],
    negative: Float[Tensor, "pair negative dim"],
    *,
    margin: NotNegative = 1.0,
) -> Float[Tensor, ""]:
    """Mean of |a - p|^2 plus mean of [margin - |a - n|^2]_+.

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import contrastive_on_synthetic
        >>> anchor, positive, negative = torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[[0.5]]])
        >>> contrastive_on_synthetic(anchor, positive, negative)
        tensor(1.7500)
    """
    check_number("margin", margin, least=0)
    _check_triplets(anchor, positive, negative)
    return _squared(anchor, positive).mean() + (margin - _squared(anchor[:, None], negative)).clamp_min(0).mean()


def n_pair_on_synthetic(
    anchor: Float[Tensor, "pair dim"],
    positive: Float[Tensor, "pair dim"],
    negative: Float[Tensor, "pair negative dim"],
    *,
    l2_weight: NotNegative = 0.0,
) -> Float[Tensor, ""]:
    """Mean of log(1 + sum_n exp(a.n - a.p)) (Sohn 2016), plus l2_weight times half the mean of |a|^2 + |p|^2.

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import n_pair_on_synthetic
        >>> anchor, positive, negative = torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[[2.0]]])
        >>> n_pair_on_synthetic(anchor, positive, negative)
        tensor(0.6931)
    """
    check_number("l2_weight", l2_weight, least=0)
    _check_triplets(anchor, positive, negative)
    excess = torch.einsum("pd,pnd->pn", anchor, negative) - (anchor * positive).sum(dim=1, keepdim=True)
    length = (anchor.square() + positive.square()).sum(dim=1).mean() / 2
    return F.softplus(excess.logsumexp(dim=1)).mean() + l2_weight * length


def lifted_on_synthetic(
    anchor: Float[Tensor, "pair dim"],
    positive: Float[Tensor, "pair dim"],
    negative: Float[Tensor, "pair negative dim"],
    *,
    margin: NotNegative = 1.0,
) -> Float[Tensor, ""]:
    """Half the mean of [log sum_n (exp(margin - |a - n|) + exp(margin - |p - n|)) + |a - p|]_+^2 (Song et al. 2016).

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import lifted_on_synthetic
        >>> anchor, positive, negative = torch.tensor([[0.0]]), torch.tensor([[0.0]]), torch.tensor([[[1.0]]])
        >>> lifted_on_synthetic(anchor, positive, negative)
        tensor(0.2402)
    """
    check_number("margin", margin, least=0)
    _check_triplets(anchor, positive, negative)
    both = torch.stack([anchor, positive], dim=1)
    distances = torch.linalg.vector_norm(both[:, :, None] - negative[:, None], dim=-1)
    pulled = torch.linalg.vector_norm(anchor - positive, dim=-1)
    return ((margin - distances).flatten(1).logsumexp(dim=1) + pulled).clamp_min(0).square().mean() / 2


def angular_on_synthetic(
    anchor: Float[Tensor, "pair dim"],
    positive: Float[Tensor, "pair dim"],
    negative: Float[Tensor, "pair negative dim"],
    *,
    alpha: Angle = 45.0,
) -> Float[Tensor, ""]:
    """Mean of log(1 + sum_n exp(4 tan^2(alpha) (a + p).n - 2 (1 + tan^2(alpha)) a.p)) on unit vectors.

    The batch form of angular loss (Wang et al. 2017); alpha in degrees.

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import angular_on_synthetic
        >>> anchor = positive = torch.tensor([[1.0, 0.0]])
        >>> easy, hard = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])
        >>> angular_on_synthetic(anchor, positive, easy), angular_on_synthetic(anchor, positive, hard)
        (tensor(0.0181), tensor(4.0181))
    """
    check_number("alpha", alpha, above=0, below=90)
    _check_triplets(anchor, positive, negative)
    anchor, positive, negative = (normalize(x) for x in (anchor, positive, negative))
    squared_tangent = math.tan(math.radians(alpha)) ** 2
    repelled = 4 * squared_tangent * torch.einsum("pd,pnd->pn", anchor + positive, negative)
    pulled = 2 * (1 + squared_tangent) * (anchor * positive).sum(dim=1, keepdim=True)
    return F.softplus((repelled - pulled).logsumexp(dim=1)).mean()


SYNTHETIC_LOSSES: dict[str, Callable[..., Any]] = {
    "triplet": triplet_on_synthetic,
    "contrastive": contrastive_on_synthetic,
    "n_pair": n_pair_on_synthetic,
    "lifted": lifted_on_synthetic,
    "angular": angular_on_synthetic,
}
"""J_m by name: a metric loss of anchors, positives and any negatives, synthetic or real."""


def generator_losses(
    anchor: Float[Tensor, "pair feature"],
    negative: Float[Tensor, "pair negative feature"],
    synthetic: Float[Tensor, "pair negative feature"],
    embedded_anchor: Float[Tensor, "pair dim"],
    embedded_positive: Float[Tensor, "pair dim"],
    embedded_synthetic: Float[Tensor, "pair negative dim"],
    *,
    margin: NotNegative = 1.0,
) -> dict[str, Float[Tensor, ""]]:
    """J_hard, J_reg and J_adv (DAML, CVPR 2018), each a mean over the synthetic negatives g.

    Args:
        anchor: features of the anchors.
        negative: features of the real negatives.
        synthetic: features of the synthetic negatives.
        embedded_anchor: embeddings of the anchors.
        embedded_positive: embeddings of the positives.
        embedded_synthetic: embeddings of the synthetic negatives.
        margin: alpha, in squared distances.

    Returns:
        `hard`, |g - a|^2 in feature space; `regularization`, |g - n|^2 in feature space; `adversarial`,
        [|g - a|^2 - |p - a|^2 - margin]_+ of the embeddings (which the released code halves).

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import generator_losses
        >>> a, n, g = torch.zeros(1, 2), torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.5)
        >>> generator_losses(a, n, g, a, a, g, margin=0.25)
        {'hard': tensor(0.5000), 'regularization': tensor(0.5000), 'adversarial': tensor(0.2500)}
    """
    check_number("margin", margin, least=0)
    check_shape("negative", negative, tuple(synthetic.shape))
    check_shape("anchor", anchor, tuple(synthetic[:, 0].shape))
    _check_triplets(embedded_anchor, embedded_positive, embedded_synthetic)
    to_synthetic = _squared(embedded_anchor[:, None], embedded_synthetic)
    to_positive = _squared(embedded_anchor, embedded_positive)[:, None]
    return {
        "hard": _squared(synthetic, anchor[:, None]).mean(),
        "regularization": _squared(synthetic, negative).mean(),
        "adversarial": (to_synthetic - to_positive - margin).clamp_min(0).mean(),
    }


def _check_triplets(anchor: Tensor, positive: Tensor, negative: Tensor) -> None:
    """Refuse what would be stretched to fit, and nothing at all."""
    pairs = (negative.ndim, *negative.shape[:1], *negative.shape[2:])
    if anchor.ndim != 2 or positive.shape != anchor.shape or pairs != (3, *anchor.shape) or not negative.numel():
        raise ValueError(
            "anchor and positive must be (pair, dim) and negative (pair, negative, dim), at least one of each; "
            f"got {tuple(anchor.shape)}, {tuple(positive.shape)} and {tuple(negative.shape)}"
        )


def _squared(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances of the last dimension's vectors."""
    return at_least_float32(first - second).square().sum(dim=-1)
