"""The other player of adversarial training: what it keeps, its optimizer, and the step it takes before each of ours.

What it says is that of a `DomainObjective`: ADDR, or a control that has no other player at all.

It lives beside the Module that is distributed, not in it. Every process sees the joined batch, detached, so that all
of them take the same step from the same start, and its gradients need no reduction.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from xmodal.names import build
from xmodal.numerics import NotNegative  # noqa: TC001  # ranges are read at run time
from xmodal.objectives.addr import ADDR, MeanMatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from torch import Tensor

    from xmodal.objectives.addr import DomainFeatures, DomainObjective

ADVERSARIES: dict[str, type[DomainObjective]] = {"addr": ADDR, "mean_match": MeanMatch}
"""Adversaries by the name that a configuration uses."""


class Adversary:
    """A `DomainObjective` with the optimizer of its own parameters, called inside the forward pass of a training step.

    Args:
        objective: ADDR's discriminators and the terms that both sides minimize, or a control of it.
        learning_rate: of the discriminators' Adam (for the `table` form: SparseAdam, which leaves the rows of absent
            pairs alone). 0 keeps the start of `fast_weights` at zero.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import DomainFeatures
        >>> from xmodal.training.adversary import Adversary
        >>> adversary = Adversary.build({"name": "addr", "form": "amortized", "learning_rate": 1e-3}, dim=8, pairs=100)
        >>> words, regions = torch.randn(4, 12, 8, requires_grad=True), torch.randn(4, 36, 8, requires_grad=True)
        >>> real = torch.ones(4, 36, dtype=torch.bool)
        >>> terms = adversary(DomainFeatures(words, regions, real[:, :12], real), torch.randn(4, 4), step=0)
        >>> sorted(terms)
        ['addr/accuracy', 'addr/adv', 'addr/beta', 'addr/discriminator', 'addr/reg', 'total']
    """

    def __init__(self, objective: DomainObjective, learning_rate: NotNegative = 1e-3) -> None:
        if not learning_rate >= 0:
            raise ValueError(f"learning_rate must be at least 0, got {learning_rate}")
        self.objective = objective
        parameters = list(objective.parameters())
        kind = torch.optim.SparseAdam if objective.sparse else torch.optim.Adam
        self.optimizer = kind(parameters, lr=learning_rate) if parameters else None
        self._gradients = _GradientNorms(objective.log_name)

    @classmethod
    def build(cls, config: Mapping[str, Any], dim: int, pairs: int, device: torch.device | str = "cpu") -> Adversary:
        """The adversary of a configuration: `{name: addr, learning_rate: ..., ...}` with the options of `ADDR`.

        A name of ADVERSARIES, `package.module:Class` or an entry point.

        Args:
            config: name and options.
            dim: dim of the features.
            pairs: pairs in the training set.
            device: where the training is.

        Raises:
            ValueError: for a name or an option that does not exist, naming the nearest one that does, and for a stated
                size that is another one.
        """
        options = {"learning_rate": 1e-3, **config}
        learning_rate = options.pop("learning_rate")
        return cls(build("adversary", ADVERSARIES, options, {"dim": dim, "pairs": pairs}).to(device), learning_rate)

    def __call__(
        self, features: DomainFeatures, scores: Float[Tensor, "pair pair"], step: int
    ) -> dict[str, Float[Tensor, ""]]:
        """First the discriminators take a step, then they say what the encoders are to minimize.

        Args:
            features: of the pairs of all processes.
            scores: every image against every caption of these pairs.
            step: optimizer step, 0-based.

        Returns:
            `total`, to be added to the loss, and what is to be logged, as `addr/adv`: the terms of `ADDR.forward`.
        """
        terms = self.objective(features, scores, step, self._learn)
        total = terms.pop("total")
        return {"total": total, **{f"{self.objective.log_name}/{name}": value for name, value in terms.items()}}

    def _learn(self, loss: Float[Tensor, ""]) -> None:
        """One step of the objective's own parameters."""
        if self.optimizer is not None:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def is_over(self, step: int) -> bool:
        """Whether its weight has decayed to zero for good, so that it need not be called any more."""
        return self.objective.is_over(step)

    def terms_at_rest(self, step: int, device: torch.device | str = "cpu") -> dict[str, Float[Tensor, ""]]:
        """What is left to be logged once it is over: that its weight is zero, on the device of the other terms."""
        beta = torch.full((), self.objective.beta_at(step), device=device)  # which, unlike `tensor`, copies nothing
        return {f"{self.objective.log_name}/beta": beta}

    def watch_gradients(self, embeddings: list[Tensor], ranking: Tensor, adversarial: Tensor) -> Tensor:
        """Have the coming backward pass of the two losses measure `gradient_norms` at this process's embeddings.

        Returns the adversarial loss as the backward pass is to have it: its gradient at the embeddings is known by
        then, and is not computed again.
        """
        return self._gradients.watch(embeddings, ranking, adversarial)

    def gradient_norms(self) -> dict[str, Float[Tensor, ""]]:
        """Norms at the joint embeddings of the gradients of the two losses, as of the last backward pass; their ratio.

        Names are those of the log: `addr/ranking_gradient`, `addr/adversarial_gradient`, `addr/gradient_ratio`
        (adversarial to ranking). Where a batch is split over processes, only the pairs of this one are counted. Nothing
        where no backward pass was watched since they were asked for last.
        """
        return self._gradients.norms()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        optimizer = self.optimizer.state_dict() if self.optimizer else {}
        # Named for the first of them: older checkpoints have it so.
        return {"addr": self.objective.state_dict(), "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.objective.load_state_dict(state["addr"])
        if self.optimizer:
            self.optimizer.load_state_dict(state["optimizer"])


class _GradientNorms:
    """Norms of the ranking and of the adversarial gradient at some embeddings, almost for free.

    The adversarial gradient is taken on its own, its graph being small; the sum of both is what a hook sees during the
    backward pass. That pass may scale everything (gradient accumulation, float16): a hook on the ranking loss sees by
    how much.
    """

    def __init__(self, log_name: str) -> None:
        self.log_name = log_name
        self.scale = torch.ones(())
        self.ranking = self.adversarial = torch.zeros(())
        """Squared norms."""
        self.watched = False
        """Whether they are of a backward pass that nobody has asked about."""

    def watch(self, embeddings: list[Tensor], ranking: Tensor, adversarial: Tensor) -> Tensor:
        gradients: list[Tensor | None] = [None] * len(embeddings)
        if adversarial.requires_grad:
            # In half precision gradients are too small for their type until the backward pass scales them.
            are_kept = all(tensor.dtype.itemsize >= 4 for tensor in embeddings)
            known = torch.autograd.grad(adversarial, embeddings, retain_graph=not are_kept, allow_unused=True)
            gradients = list(known)
            if are_kept:
                adversarial = _WithGradients.apply(adversarial.detach(), gradients, *embeddings)  # type: ignore[assignment]
        self.watched = True
        self.ranking = self.adversarial = torch.zeros((), device=ranking.device)
        ranking.register_hook(lambda scale: setattr(self, "scale", scale))
        for tensor, gradient in zip(embeddings, gradients, strict=True):
            tensor.register_hook(partial(self._measure, gradient))
        return adversarial

    def _measure(self, adversarial: Tensor | None, total: Tensor) -> None:
        # Every process minimizes the loss of the joined batch, so what arrives is the sum of as many equal gradients.
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        total = total.float().flatten()
        squares = total.dot(total) / self.scale**2
        if adversarial is not None:
            adversarial = adversarial.float().flatten()
            square = adversarial.dot(adversarial)
            self.adversarial = self.adversarial + square / processes**2
            squares = squares - 2 * total.dot(adversarial) / self.scale + square  # of the difference, without a copy
        self.ranking = self.ranking + squares.clamp_min(0) / processes**2

    def norms(self) -> dict[str, Tensor]:
        if not self.watched:
            return {}
        self.watched = False
        ranking, adversarial = self.ranking.sqrt().to(self.adversarial), self.adversarial.sqrt()
        return {
            f"{self.log_name}/ranking_gradient": ranking,
            f"{self.log_name}/adversarial_gradient": adversarial,
            f"{self.log_name}/gradient_ratio": (adversarial / ranking).nan_to_num(nan=math.inf, posinf=math.inf),
        }


class _WithGradients(torch.autograd.Function):
    """A number whose gradients at some tensors are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (None, None, *(None if known is None else known * scale.to(known) for known in ctx.gradients))
