"""Comparing two ways of training over several seeds: paired differences with bootstrap intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.numerics import check_count, check_number

if TYPE_CHECKING:
    from collections.abc import Sequence


class Difference(NamedTuple):
    """The mean difference of two ways over paired runs, and the interval that holds it."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether zero lies outside the interval."""
        return not self.low <= 0 <= self.high


def paired_difference(
    baseline: Sequence[float],
    other: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """How much larger a metric is under `other` than under `baseline`, run by run, with a percentile bootstrap.

    Args:
        baseline: the metric of each run, one a seed.
        other: the same of the runs with the same seeds, in the same order.
        confidence: share of the resampled means that the interval holds, between 0 and 1.
        resamples: how often the runs are drawn anew, with replacement; at least once.
        seed: of these draws.

    Returns:
        Mean difference and both ends of its interval. With few runs the interval is too narrow rather than too wide:
        of five it cannot see more than five differences.

    Raises:
        ValueError: for lists of different length or with fewer than two runs, a metric that is no finite number, and
            options out of range.

    >>> difference = paired_difference([10.0, 11.0, 12.0], [12.0, 12.0, 15.0])
    >>> difference.mean, difference.low, difference.high, difference.significant
    (2.0, 1.0, 3.0, True)
    """
    if len(baseline) != len(other) or len(baseline) < 2:
        raise ValueError(f"wanted two or more paired runs, got {len(baseline)} and {len(other)}")
    for name, runs in (("baseline", baseline), ("other", other)):
        for run, metric in enumerate(runs):
            check_number(f"{name}[{run}]", metric)
    check_number("confidence", confidence, above=0)
    if confidence >= 1:
        raise ValueError(f"confidence must be below 1, got {confidence}; 0.95 for 95%")
    check_count("resamples", resamples)
    differences = torch.tensor(other, dtype=torch.float64) - torch.tensor(baseline, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(differences), (resamples, len(differences)), generator=generator)
    tail = (1 - confidence) / 2
    means = differences[drawn].mean(dim=1)
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Difference(differences.mean().item(), low, high)
