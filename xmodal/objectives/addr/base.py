"""What every objective is that draws the two domains of matched pairs together, ADDR and its controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from torch import Tensor, nn

from xmodal.numerics import NotNegative, Steps, check_count, check_number
from xmodal.objectives.choices import check_choice
from xmodal.objectives.warmup import rise_and_fall

if TYPE_CHECKING:
    from jaxtyping import Float

    from xmodal.objectives.addr.batch import DomainFeatures

Reduction = Literal["sum", "mean"]

Learn: TypeAlias = Callable[[Tensor], None]
"""Takes the loss of what learns against the encoders, and makes a step along its gradient."""


class DomainObjective(nn.Module):
    """A term beside the ranking loss that brings words and regions together, with a weight that may come and go.

    A subclass gives `forward`, and calls `learn` on the loss of its own parameters, if it has any, before it judges the
    encoders.

    Args:
        beta: weight of the term. 0 leaves the encoders alone: the baseline, bit for bit.
        beta_warmup_steps: optimizer steps over which the weight grows linearly from 0 to beta; 0 starts at beta.
        beta_hold_steps: steps at beta between the warm-up and the decay.
        beta_decay_steps: steps over which the weight falls linearly from beta to 0, where it stays and nothing is
            computed any more; 0 keeps it at beta for good.
        reduction: `sum` over the pairs, beside a ranking loss that sums, or `mean` beside one that averages.

    Raises:
        ValueError: for an option that is unknown or out of range.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import DomainFeatures
        >>> from xmodal.objectives.addr.base import DomainObjective
        >>> class Shrink(DomainObjective):
        ...     log_name = "shrink"
        ...
        ...     def forward(self, features, scores, step, learn):
        ...         return {"total": self.beta_at(step) * features.words.square().sum()}
        >>> words, real = torch.ones(1, 2, 2), torch.ones(1, 2, dtype=torch.bool)
        >>> shrink = Shrink(beta=0.5, beta_decay_steps=2)
        >>> [shrink(DomainFeatures(words, words, real, real), None, step, None)["total"].item() for step in range(4)]
        [2.0, 1.0, 0.0, 0.0]
        >>> shrink.is_over(1), shrink.is_over(2)
        (False, True)
    """

    log_name: ClassVar[str] = "adversary"
    """Heading of its terms in a log."""

    sparse: bool = False
    """Whether the gradients of its parameters are."""

    def __init__(
        self,
        beta: NotNegative = 1.0,
        beta_warmup_steps: Steps = 0,
        beta_hold_steps: Steps = 0,
        beta_decay_steps: Steps = 0,
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, Reduction)
        check_not_negative(beta=beta)
        check_count("beta_warmup_steps", beta_warmup_steps, least=0)
        check_count("beta_hold_steps", beta_hold_steps, least=0)
        check_count("beta_decay_steps", beta_decay_steps, least=0)
        self.beta = beta
        self.beta_warmup_steps = beta_warmup_steps
        self.beta_hold_steps = beta_hold_steps
        self.beta_decay_steps = beta_decay_steps
        self.reduction: Reduction = reduction

    def forward(
        self,
        features: DomainFeatures,
        scores: Float[Tensor, "pair pair"],
        step: int | None = None,
        learn: Learn | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """What the encoders minimize at an optimizer step (0-based), `total`, and terms to be logged.

        Args:
            features: of matched pairs; gradients flow back to words and regions.
            scores: every image against every caption of these pairs.
            step: optimizer step; None is between warm-up and decay.
            learn: makes a step of the parameters of this Module; None leaves them as they are.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward: write what the encoders minimize")

    def scale_at(self, step: int | None) -> float:
        """The share of its full weight that the term has at an optimizer step; None is between warm-up and decay."""
        return rise_and_fall(step, self.beta_warmup_steps, self.beta_hold_steps, self.beta_decay_steps)

    def beta_at(self, step: int | None) -> float:
        """The weight at an optimizer step."""
        return self.beta * self.scale_at(step)

    def is_over(self, step: int) -> bool:
        """Whether the weight has decayed to zero for good."""
        end = self.beta_warmup_steps + self.beta_hold_steps + self.beta_decay_steps
        return self.beta_decay_steps > 0 and step >= end


def check_not_negative(**values: float) -> None:
    """Refuse options below zero.

    Example:
        >>> from xmodal.objectives.addr.base import check_not_negative
        >>> check_not_negative(alpha=0.1, beta=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: beta must be at least 0, got -1.0
    """
    for name, value in values.items():
        check_number(name, value, least=0)
