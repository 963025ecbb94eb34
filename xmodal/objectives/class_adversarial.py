"""Class-invariant features by an adversary (after Al-Kaabi, Monsefi & Zabihzadeh, Applied Intelligence 2022).

Only the paper's abstract was at hand, and no code: a class adversary on top of a metric loss is this project's reading
of it. A classifier learns to tell the training classes from the features; behind a gradient-reversal layer (Ganin &
Lempitsky, ICML 2015) the features learn to leave it nothing to tell. The attention over intermediate feature maps of
the same paper belongs to the backbone and works without this.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.numerics import NotNegative, Positive, Size, Steps, check_count, check_number
from xmodal.objectives.choices import check_choice
from xmodal.objectives.metric import AS_GIVEN, METRIC_LOSSES, check_labels, metric_loss
from xmodal.objectives.warmup import warmth

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Int
    from torch import Tensor

AdversaryInput = Literal["features", "embedding"]


def reverse_gradient(x: Float[Tensor, "*shape"], scale: float) -> Float[Tensor, "*shape"]:
    """x itself going forward; going back, the gradient times -scale (Ganin & Lempitsky 2015, eq. 6-7).

    Example:
        >>> import torch
        >>> from xmodal.objectives import reverse_gradient
        >>> x = torch.ones(2, requires_grad=True)
        >>> reverse_gradient(x, 0.5).sum().backward()
        >>> x.grad
        tensor([-0.5000, -0.5000])
    """
    check_number("scale", scale)
    return _ReverseGradient.apply(x, scale)  # type: ignore[return-value]


def reversal_ramp(progress: float, gamma: float = 10.0) -> float:
    """Strength of the reversal, from 0 toward 1: 2 / (1 + exp(-gamma progress)) - 1.

    Args:
        progress: share of the ramp that is done; more than 1 counts as 1.
        gamma: steepness, > 0.

    Raises:
        ValueError: for a negative progress or a gamma that is not positive.

    Example:
        >>> from xmodal.objectives import reversal_ramp
        >>> [round(reversal_ramp(progress), 4) for progress in (0.0, 0.1, 1.0)]
        [0.0, 0.4621, 0.9999]
    """
    check_number("progress", progress, least=0)
    check_number("gamma", gamma, above=0)
    return 2 / (1 + math.exp(-gamma * min(1.0, progress))) - 1


class ClassAdversary(nn.Module):
    """A metric loss, and a classifier of the training classes that the features learn to fool.

    The classifier minimizes its cross entropy at full strength; what reaches the features is that gradient times
    -weight * `reversal_ramp`.

    Args:
        feature_dim: length of the backbone's pooled features.
        dim: length of an embedding.
        classes: number of training classes.
        metric: the metric loss by `name` with its options, see `MetricLoss`.
        weight: strength of the reversal at the end of the ramp. Complete invariance to the class contradicts the metric
            loss, so it should be small where the adversary reads the embedding.
        on: what the adversary reads: the `features`, which the embedding layer can still recover classes from, or
            the `embedding` itself.
        hidden_dim: width of the classifier's one hidden layer.
        gamma: as for `reversal_ramp`.
        ramp_steps: optimizer steps until the ramp is done; 0 reverses at full strength from the start.

    Raises:
        ValueError: as `MetricLoss`, or for an unknown `on` or negative steps.

    Example:
        >>> import torch
        >>> from xmodal.objectives import ClassAdversary
        >>> objective = ClassAdversary(feature_dim=4, dim=2, classes=2, metric={"name": "binomial"})
        >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> objective(features, labels, embed=torch.nn.Linear(4, 2)).keys()
        dict_keys(['metric', 'adversary', 'total'])
    """

    parts: ClassVar[dict[str, Any]] = {"metric": METRIC_LOSSES}
    """The options that are options of something else."""

    def __init__(
        self,
        feature_dim: Size,
        dim: Size,
        classes: Size,
        metric: Mapping[str, Any],
        weight: NotNegative = 0.1,
        on: AdversaryInput = "features",
        hidden_dim: Size = 512,
        gamma: Positive = 10.0,
        ramp_steps: Steps = 10_000,
    ) -> None:
        super().__init__()
        check_choice("on", on, AdversaryInput)
        for name, value in {
            "feature_dim": feature_dim,
            "dim": dim,
            "classes": classes,
            "hidden_dim": hidden_dim,
        }.items():
            check_count(name, value)
        check_count("ramp_steps", ramp_steps, least=0)
        check_number("weight", weight, least=0)
        check_number("gamma", gamma, above=0)
        self.metric = metric_loss(metric, dim, classes)
        self.weight = weight
        self.on: AdversaryInput = on
        self.gamma = gamma
        self.ramp_steps = ramp_steps
        self.classes = classes
        input_dim = feature_dim if on == "features" else dim
        self.classifier = nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, classes))

    def forward(
        self,
        features: Float[Tensor, "image feature"],
        labels: Int[Tensor, " image"],
        *,
        embed: nn.Module = AS_GIVEN,
        step: int | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Named terms of a batch at an optimizer step (0-based); `total` is what training minimizes.

        Without a `step` every warm-up is over; without `embed` the features are the embeddings.

        Raises:
            ValueError: as `MetricLoss.forward`, and for labels that are no training class.
        """
        embeddings = embed(features)
        check_labels(embeddings, labels, classes=self.classes)
        read = features if self.on == "features" else embeddings
        scale = self.weight * reversal_ramp(warmth(step, self.ramp_steps), self.gamma)
        terms = {
            "metric": self.metric(embeddings, labels),
            "adversary": F.cross_entropy(self.classifier(reverse_gradient(read, scale)), labels.long()),
        }
        return {**terms, "total": terms["metric"] + terms["adversary"]}


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None
