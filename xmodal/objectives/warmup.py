"""What grows during the first optimizer steps, and what falls again after a while."""

from __future__ import annotations


def warmth(step: int | None, warmup_steps: int) -> float:
    """How far a warm-up is at an optimizer step (0-based): it grows linearly from 0 to 1. None is after it.

    Example:
        >>> from xmodal.objectives.warmup import warmth
        >>> [warmth(step, warmup_steps=4) for step in (0, 1, 4, 9, None)], warmth(0, warmup_steps=0)
        ([0.0, 0.25, 1.0, 1.0, 1.0], 1.0)
    """
    return min(1.0, step / warmup_steps) if warmup_steps and step is not None else 1.0


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
