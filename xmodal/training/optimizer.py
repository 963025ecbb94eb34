"""How a configuration moves the parameters: the optimizer, clipping and the schedule of the learning rate."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Adam, Adamax, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

    from xmodal.training.config import OptimizerConfig


class _Repeating(Optimizer):
    """An optimizer that takes a group's `times` steps along one gradient, as if its parameters were listed so often.

    Torch warns of parameters listed twice in a group and will refuse them, and its fast implementations may update
    both entries at once. Steps one after another are what the plain loop of older versions made of such a list.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = super().step(closure)
        for turn in range(1, max(group["times"] for group in self.param_groups)):
            resting = [p for group in self.param_groups if group["times"] <= turn for p in group["params"]]
            gradients = [parameter.grad for parameter in resting]
            for parameter in resting:  # an optimizer leaves alone what has no gradient
                parameter.grad = None
            super().step()
            for parameter, gradient in zip(resting, gradients, strict=True):
                parameter.grad = gradient
        return loss


class RepeatingAdam(_Repeating, Adam):
    """Adam that steps several times along one gradient for the groups that ask for it.

    >>> import torch
    >>> once, twice = (nn.Parameter(torch.ones(1)) for _ in range(2))
    >>> groups = [{"params": [once], "times": 1}, {"params": [twice], "times": 2}]
    >>> optimizer = RepeatingAdam(groups, lr=0.1)
    >>> (once + twice).sum().backward()
    >>> optimizer.step()
    >>> round(once.item(), 4), round(twice.item(), 4)
    (0.9, 0.8)
    """


class RepeatingAdamW(_Repeating, AdamW):
    """AdamW that steps, and decays weights, several times along one gradient for the groups that ask for it.

    >>> import torch
    >>> twice = nn.Parameter(torch.ones(1))
    >>> optimizer = RepeatingAdamW([{"params": [twice], "times": 2}], lr=0.1, weight_decay=0.0)
    >>> twice.sum().backward()
    >>> optimizer.step()
    >>> round(twice.item(), 4)
    0.8
    """


class RepeatingAdamax(_Repeating, Adamax):
    """Adamax that steps several times along one gradient for the groups that ask for it.

    >>> import torch
    >>> twice = nn.Parameter(torch.ones(1))
    >>> optimizer = RepeatingAdamax([{"params": [twice], "times": 2}], lr=0.1)
    >>> twice.sum().backward()
    >>> optimizer.step()
    >>> round(twice.item(), 4)
    0.8
    """


OPTIMIZERS: dict[str, tuple[type[Optimizer], type[Optimizer]]] = {
    "adam": (Adam, RepeatingAdam),
    "adamw": (AdamW, RepeatingAdamW),
    "adamax": (Adamax, RepeatingAdamax),
}
"""Torch's optimizers by name, and those that repeat steps."""

LARGEST_RATE = 1e30
"""Learning rate of which no optimizer makes more than float32 holds: Adam's first steps divide it by down to 0.001."""


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The configured optimizer of the parameters of a module that are trained.

    Raises:
        ValueError: if no parameter's name begins as `rates` or `repeated` says, or a rate is too large for float32.

    >>> from xmodal.training.config import OptimizerConfig
    >>> optimizer = make_optimizer(nn.Linear(2, 3), OptimizerConfig(rates={"bias": 2.0}, repeated={"bias": 2}))
    >>> [(len(group["params"]), group["rate"], group["times"]) for group in optimizer.param_groups]
    [(1, 1.0, 1), (1, 2.0, 2)]
    """
    once, repeating = OPTIMIZERS[config.name]
    groups = parameter_groups(module, config)
    fastest = config.learning_rate * max(group["rate"] for group in groups)
    if fastest > LARGEST_RATE:
        raise ValueError(f"optimizer.learning_rate, rates included, is {fastest:g}; wanted at most {LARGEST_RATE:g}")
    kind: Any = repeating if config.repeated else once
    return kind(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The parameters that are trained, grouped by the factor on their learning rate and by how often they step.

    The longest beginning of a parameter's name that `rates` (or `repeated`) has decides.

    Raises:
        ValueError: if no parameter's name has a beginning that is given.

    >>> from xmodal.training.config import OptimizerConfig
    >>> [group["rate"] for group in parameter_groups(nn.Linear(2, 3), OptimizerConfig(rates={"bias": 0.1}))]
    [1.0, 0.1]
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    rate = _beginnings("rates", config.rates, trained)
    times = _beginnings("repeated", config.repeated, trained)
    groups = [
        {
            "params": [p for name, p in trained.items() if (rate[name], times[name]) == (slow, often)],
            "rate": config.rates.get(slow, 1.0),
            "times": config.repeated.get(often, 1),
        }
        for slow in ("", *config.rates)
        for often in ("", *config.repeated)
    ]
    return [group for group in groups if group["params"]]


def _beginnings(option: str, given: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """The longest of the given beginnings that each name has; the empty one where it has none."""
    found = {
        name: max((b for b in ("", *given) if f"{name}.".startswith(f"{b}." if b else "")), key=len) for name in names
    }
    for beginning in given:
        if beginning not in found.values():
            raise ValueError(
                f"{option}: no name of a trained parameter begins with {beginning!r}"
                f"{near_miss(beginning, list(found))}; names: {', '.join(found)}"
            )
    return found


def clip_gradient(groups: Iterable[Mapping[str, Any]], limit: float) -> Tensor:
    """Clip the norm of the whole gradient, where a parameter counts, and is scaled, as often as its group steps.

    That is what clipping makes of a list that names parameters several times: a gradient that is listed twice counts
    twice in the norm and is scaled twice. Returns the norm.

    Args:
        groups: of parameters, with their `times`.
        limit: the largest norm.

    >>> import torch
    >>> once, twice = (nn.Parameter(torch.ones(1)) for _ in range(2))
    >>> (3.0 * once + 4.0 * twice).sum().backward()
    >>> groups = [{"params": [once], "times": 1}, {"params": [twice], "times": 2}]
    >>> clip_gradient(groups, 0.1 * 41**0.5)  # of 3, 4 and 4 once more, by a factor of a tenth
    tensor(6.4031)
    >>> round(once.grad.item(), 4), round(twice.grad.item(), 4)
    (0.3, 0.04)
    """
    repeated = [(p, group["times"]) for group in groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p, times in repeated for _ in range(times)])
    for turn in range(max((times for _, times in repeated), default=0)):
        nn.utils.clip_grads_with_norm_([p for p, times in repeated if times > turn], limit, norm)
    return norm


def make_schedule(optimizer: Optimizer, config: OptimizerConfig, steps_per_epoch: int, epochs: int) -> LambdaLR:
    """Linear growth to the peak over the warm-up, times what the configured schedule makes of the peak.

    >>> from xmodal.training.config import OptimizerConfig
    >>> config = OptimizerConfig(learning_rate=1.0, decay_epochs=1)
    >>> optimizer = make_optimizer(nn.Linear(2, 3), config)
    >>> schedule = make_schedule(optimizer, config, steps_per_epoch=1, epochs=2)
    >>> optimizer.step()
    >>> schedule.step()
    >>> schedule.get_last_lr()
    [0.1]
    """

    def scale(step: int, rate: float) -> float:
        return factor(step) * (rate if step >= config.rates_from_epoch * steps_per_epoch else 1.0)

    starts = dict(sorted(_starts(config.factors, steps_per_epoch)))
    first = config.warmup_from or 1 / max(1, config.warmup_steps)

    def factor(step: int) -> float:
        warmth = 1.0
        if step < config.warmup_steps:
            warmth = first + (1 - first) * step / max(1, config.warmup_steps - 1)
        if config.schedule == "factors":
            return warmth * next((starts[start] for start in reversed(starts) if start <= step), 1.0)
        if config.schedule == "step":
            return warmth * config.decay ** (step // steps_per_epoch // config.decay_epochs)
        if config.schedule == "cosine":
            after, total = step - config.warmup_steps, steps_per_epoch * epochs - config.warmup_steps
            return warmth * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, after) / max(1, total))))
        return warmth

    return LambdaLR(optimizer, [partial(scale, rate=group.get("rate", 1.0)) for group in optimizer.param_groups])


def _starts(factors: Mapping[str, float], steps_per_epoch: int) -> Iterator[tuple[int, float]]:
    """The steps from which factors hold."""
    for start, value in factors.items():
        unit, number = start.split()
        yield int(number) * (steps_per_epoch if unit == "epoch" else 1), value
