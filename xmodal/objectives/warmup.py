"""What grows during the first optimizer steps, and what falls again after a while."""

from __future__ import annotations

from dataclasses import dataclass

from xmodal.numerics import check_count, check_number


def warmth(step: int | None, warmup_steps: int) -> float:
    """How far a warm-up is at an optimizer step (0-based): it grows linearly from 0 to 1. None is after it.

    Example:
        >>> from xmodal.objectives.warmup import warmth
        >>> [warmth(step, warmup_steps=4) for step in (0, 1, 4, 9, None)], warmth(0, warmup_steps=0)
        ([0.0, 0.25, 1.0, 1.0, 1.0], 1.0)
    """
    return min(1.0, step / warmup_steps) if warmup_steps and step is not None else 1.0


@dataclass(frozen=True)
class Hardness:
    """How much the hardest negatives count beside all of them at an optimizer step (0-based), in [0, 1].

    It grows linearly over a warm-up, as 1 - curriculum^t with the steps t = 1, 2, ... (ADAPT), or is 0 for whole epochs
    (VSE-infinity, CHAN, ESA); of several, it is the product. None is a step after all of that.

    Args:
        warmup_steps: of the linear warm-up; 0 for none.
        curriculum: in [0, 1); 0 for none.
        all_negatives_epochs: in which all negatives count alike.
        steps_per_epoch: how long these are.

    Raises:
        ValueError: a number is out of range or, when called, nobody has said how long an epoch is.

    Example:
        >>> from xmodal.objectives.warmup import Hardness
        >>> [Hardness(curriculum=0.5)(step) for step in (0, 1, 2, None)]
        [0.5, 0.75, 0.875, 1.0]
        >>> [Hardness(all_negatives_epochs=1, steps_per_epoch=3)(step) for step in (0, 2, 3)]
        [0.0, 0.0, 1.0]
    """

    warmup_steps: int = 0
    curriculum: float = 0.0
    all_negatives_epochs: int = 0
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        check_count("warmup_steps", self.warmup_steps, least=0)
        check_count("all_negatives_epochs", self.all_negatives_epochs, least=0)
        check_number("curriculum", self.curriculum, least=0, below=1)
        if self.steps_per_epoch is not None:
            check_count("steps_per_epoch", self.steps_per_epoch)

    def __call__(self, step: int | None) -> float:
        """The share of the hardest negatives."""
        if step is None:
            return 1.0
        if self.all_negatives_epochs:
            if self.steps_per_epoch is None:
                raise ValueError(
                    f"all_negatives_epochs is {self.all_negatives_epochs}, but steps_per_epoch is not known: training "
                    "fills it in; elsewhere give it, or no step"
                )
            if step < self.all_negatives_epochs * self.steps_per_epoch:
                return 0.0
        return warmth(step, self.warmup_steps) * (1 - self.curriculum ** (step + 1))


def rise_and_fall(step: int | None, warmup_steps: int, hold_steps: int, decay_steps: int) -> float:
    """A warm-up from 0 to 1, a hold at 1, and a linear decay to 0 over `decay_steps`, or none if that is 0.

    None is a step after the warm-up and before the decay.

    Example:
        >>> from xmodal.objectives.warmup import rise_and_fall
        >>> [rise_and_fall(step, warmup_steps=2, hold_steps=3, decay_steps=4) for step in range(11)]
        [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
        >>> rise_and_fall(None, 2, 3, 4), rise_and_fall(9000, 2, 3, decay_steps=0)
        (1.0, 1.0)
    """
    if step is None or not decay_steps:
        return warmth(step, warmup_steps)
    return min(warmth(step, warmup_steps), max(0.0, 1 - max(0, step - warmup_steps - hold_steps) / decay_steps))
