"""Notices when words and regions have ended on opposite sides of the joint space, and says what to do.

Stacked cross attention that clips products at zero can learn from there, on the leaky slope that clipping leaves of
what is negative, but ends lower. In runs of SCAN t-i LSE on COCO objects the fallen ones stood at a cosine of the means
of about -0.74 with 3 to 6% of the products positive, the others at -0.25 with 40%: the limits are half-way between.
"""

from __future__ import annotations

from dataclasses import dataclass

MEAN_COSINE = -0.5
"""The cosine of the mean word and the mean region below which the two sides are opposite."""

POSITIVE_SHARE = 0.2
"""The share of positive products below which they are few."""

STEPS = 50
"""Steps in a row that must be so: random towers can pass through here while the first of them learns."""


@dataclass
class BasinWatch:
    """Says once, after so many steps in a row, that a run sits in the basin.

    Which run says it: one that was stopped and resumed counts, and says it, anew.

    Args:
        steps: how many.

    >>> watch = BasinWatch(steps=2)
    >>> [watch.see(mean_cosine=-0.74, positive_share=0.05) is not None for _ in range(4)]
    [False, True, False, False]
    """

    steps: int = STEPS
    seen: int = 0
    """Steps in a row until now."""
    has_warned: bool = False

    def see(self, mean_cosine: float, positive_share: float) -> str | None:
        """A warning, if it is due after a step with this `xmodal.evaluation.alignment`."""
        is_inside = mean_cosine < MEAN_COSINE and positive_share < POSITIVE_SHARE
        self.seen = self.seen + 1 if is_inside else 0
        if self.seen < self.steps or self.has_warned:
            return None
        self.has_warned = True
        return (
            f"words and regions stand on opposite sides of the joint space: for {self.steps} steps the cosine of their "
            f"means has been below {MEAN_COSINE} (now {mean_cosine:.2f}) and less than {POSITIVE_SHARE:.0%} of the "
            f"products of a word and a region positive (now {positive_share:.0%}). Attention that clips products at "
            "zero seldom comes out of there, and such runs end lower. Start again with another seed, or draw the two "
            "sides together at the beginning, over half an epoch or two: --adversary.name addr --adversary.form ridge "
            "--adversary.reduction mean --adversary.beta 10 --adversary.beta-decay-steps STEPS (docs/results/addr.md)"
        )
