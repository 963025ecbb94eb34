"""Paired differences and their bootstrap intervals."""

from __future__ import annotations

import pytest
import torch

from xmodal.evaluation.comparison import paired_difference


def test_the_interval_holds_the_mean_and_does_not_depend_on_the_order_of_runs():
    generator = torch.Generator().manual_seed(0)
    baseline = torch.randn(8, generator=generator, dtype=torch.float64)
    other = baseline + 1 + torch.randn(8, generator=generator, dtype=torch.float64)
    found = paired_difference(baseline.tolist(), other.tolist())
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx((other - baseline).mean().item())
    order = torch.randperm(8, generator=generator)
    again = paired_difference(baseline[order].tolist(), other[order].tolist())
    assert again == pytest.approx(found, abs=0.03)
    turned = paired_difference(other.tolist(), baseline.tolist())
    assert turned == pytest.approx((-found.mean, -found.high, -found.low))


def test_the_interval_is_the_normal_one_for_many_runs():
    generator = torch.Generator().manual_seed(1)
    differences = torch.randn(2000, generator=generator, dtype=torch.float64)
    found = paired_difference([0.0] * 2000, differences.tolist(), resamples=4000)
    half = 1.96 * differences.std().item() / 2000**0.5
    assert found.high - found.mean == pytest.approx(half, rel=0.06)
    assert found.mean - found.low == pytest.approx(half, rel=0.06)


def test_zero_inside_is_not_significant():
    assert not paired_difference([0.0, 0.0, 0.0], [1.0, -1.0, 0.5]).significant
    assert paired_difference([0.0, 0.0, 0.0], [-1.0, -1.0, -0.5]).significant
    assert not paired_difference([1.0, 2.0], [1.0, 2.0]).significant


@pytest.mark.parametrize(("baseline", "other"), [([1.0, 2.0], [1.0]), ([1.0], [2.0]), ([], [])])
def test_unpaired_runs_are_refused(baseline, other):
    with pytest.raises(ValueError, match=f"got {len(baseline)} and {len(other)}"):
        paired_difference(baseline, other)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("runs", "options", "problem"),
    [
        ([1.0, float("nan")], {}, r"other\[1\] must be finite, got nan"),
        ([float("inf"), 1.0], {}, r"other\[0\] must be finite, got inf"),
        ([1.0, 2.0], {"confidence": 95}, "confidence must be below 1, got 95; 0.95 for 95%"),
        ([1.0, 2.0], {"confidence": 0}, "confidence must be positive, got 0"),
        ([1.0, 2.0], {"resamples": 0}, "resamples must be at least 1, got 0"),
    ],
)
def test_what_is_no_metric_and_options_out_of_range(runs, options, problem):
    with pytest.raises(ValueError, match=problem):
        paired_difference([0.0, 0.0], runs, **options)
