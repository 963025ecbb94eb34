"""What grows during the first optimizer steps."""

from __future__ import annotations


def warmth(step: int | None, warmup_steps: int) -> float:
    """How far a warm-up is at an optimizer step (0-based): it grows linearly from 0 to 1. None is after it.

    Example:
        >>> from xmodal.objectives.warmup import warmth
        >>> [warmth(step, warmup_steps=4) for step in (0, 1, 4, 9, None)], warmth(0, warmup_steps=0)
        ([0.0, 0.25, 1.0, 1.0, 1.0], 1.0)
    """
    return min(1.0, step / warmup_steps) if warmup_steps and step is not None else 1.0
