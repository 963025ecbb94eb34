"""Foveated means as series: the sums of ADAPT's scores against plain loops, for any scales that queries may ask for."""

from __future__ import annotations

import math

import pytest
import torch
from batches import learned
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.heads import ADAPT, foveae, foveal_maxima
from xmodal.heads.adapt import cosines_with_maxima, foveated_cosines
from xmodal.heads.foveae import Fovea, foveal_sums, foveated_means
from xmodal.heads.foveal_maxima import Asked, maxima_sums
from xmodal.scoring import score_all


def slow_mean(values, scale):
    """f(s) of a few numbers, with Python's floats."""
    top = max(scale * value for value in values)
    weights = [math.exp(scale * value - top) for value in values]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def slow_sums(values, mask, fovea):
    sums = torch.zeros(2, len(values), len(fovea.scales), dtype=torch.float64)
    for i, (items, real) in enumerate(zip(values, mask, strict=True)):
        for q in range(len(fovea.scales)):
            for d in range(values.shape[2]):
                f = slow_mean(items[real, d].tolist(), fovea.scales[q, d].item())
                sums[0, i, q] += fovea.linear[q, d] * f
                sums[1, i, q] += fovea.cross[q, d] * f + fovea.square[q, d] * f * f
    return sums


def random_sets(generator, sets=3, items=36, channels=4):
    mask = torch.rand(sets, items, generator=generator) < 0.7
    mask[:, 0] = True
    return torch.randn(sets, items, channels, generator=generator, dtype=torch.float64), mask


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    center=st.floats(-20, 20),
    width=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    size=st.sampled_from([1e-4, 1.0, 50.0]),
)
def test_sums_are_those_of_a_plain_loop(seed, center, width, size):
    generator = torch.Generator().manual_seed(seed)
    values, mask = random_sets(generator)
    values *= size
    random = torch.rand(4, 40, 4, generator=generator, dtype=torch.float64) - 0.5
    fovea = Fovea(center + width * random[0], *random[1:])
    expected = slow_sums(values, mask, fovea)
    scale = torch.tensor([size, size + size**2], dtype=torch.float64)[:, None, None]
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        found = foveal_sums(values.to(dtype), mask, Fovea(*(field.to(dtype) for field in fovea)))
        assert ((torch.stack(found).double() - expected).abs() / scale).max() < bound


def test_series_end_soon_where_scales_are_alike_and_later_where_they_change_sign(monkeypatch):
    lengths = []
    add = foveae._add_products
    seen = lambda sums, series, fovea: lengths.append(series.terms.shape[1]) or add(sums, series, fovea)  # noqa: E731
    monkeypatch.setattr(foveae, "_add_products", seen)
    monkeypatch.setattr(foveae, "_add_directly", lambda *_: pytest.fail("some channel is computed item by item"))
    generator = torch.Generator().manual_seed(0)
    values, mask = random_sets(generator, sets=20, channels=32)
    asked = torch.rand(4, 1200, 32, generator=generator, dtype=torch.float64) - 0.5
    for center, width, longest in ((10, 2, 16), (10, 10, 32), (5, 40, 256)):
        lengths.clear()
        foveal_sums(values.float(), mask, Fovea(center + width * asked[0].float(), *asked[1:].float()))
        assert max(lengths) <= longest


def test_channels_whose_series_do_not_end_are_computed_item_by_item():
    """Few queries are too few for long series."""
    generator = torch.Generator().manual_seed(1)
    values, mask = random_sets(generator, channels=3)
    random = torch.rand(4, 33, 3, generator=generator, dtype=torch.float64) - 0.5
    random[0] *= torch.tensor([1.0, 90.0, 0.0])  # one ends, one does not, one is a constant
    fovea = Fovea(random[0] + 5, *random[1:])
    torch.testing.assert_close(torch.stack(foveal_sums(values, mask, fovea)), slow_sums(values, mask, fovea))


def test_means_are_between_the_least_and_the_greatest_value_at_any_scale():
    values, real = torch.tensor([[[1.0], [3.0], [-99.0]]]), torch.tensor([[True, True, False]])
    means = foveated_means(values, real, torch.tensor([[-1e30], [-1e3], [0.0], [1e3], [1e30]]))
    torch.testing.assert_close(means.flatten(), torch.tensor([1.0, 1.0, 2.0, 3.0, 3.0]))


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float64, 1e-9)], ids=str)
@pytest.mark.parametrize("size", [0.0, 1.0, 300.0])
def test_scores_without_a_gradient_are_those_with_one(direction, dtype, bound, size):
    """Also where nothing can be exponentiated as it is, and of features that are all the same."""
    generator = torch.Generator().manual_seed(2)
    head = learned(ADAPT(16, direction), seed=3).to(dtype)
    regions = size * torch.randn(40, 7, 16, generator=generator).to(dtype)
    words = size * torch.randn(70, 9, 16, generator=generator).to(dtype)
    region_mask, word_mask = (torch.rand(*side.shape[:2], generator=generator) < 0.5 for side in (regions, words))
    region_mask[:, 0], word_mask[:, 3] = True, True
    expected = head(regions, words, region_mask, word_mask).detach()
    with torch.no_grad():
        found = head(regions, words, region_mask, word_mask)
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)
    torch.testing.assert_close(score_all(head, regions, words, region_mask, word_mask), expected, atol=bound, rtol=0)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_autocast_does_not_reach_the_series(direction):
    generator = torch.Generator().manual_seed(4)
    head = learned(ADAPT(16, direction)).float()
    sides = torch.randn(40, 7, 16, generator=generator), torch.randn(50, 9, 16, generator=generator)
    with torch.no_grad():
        embedded = head.embed_images(sides[0]), head.embed_captions(sides[1])
        expected = head.compare(*embedded)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(head.compare(*embedded), expected)


@pytest.mark.parametrize("cosines", [foveated_cosines, cosines_with_maxima])
def test_a_set_without_a_direction_scores_zero(cosines):
    queries = torch.zeros(40, 3, 8)
    queries[:, 0, 0] = 1
    assert (cosines(torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.bool), queries) == 0).all()


def slow_maxima(values, mask, asked, temperature):
    sums = torch.zeros(2, len(values), len(asked.widths), dtype=torch.float64)
    for i, (items, real) in enumerate(zip(values, mask, strict=True)):
        for q in range(len(asked.widths)):
            for d in range(values.shape[2]):
                adapted = [asked.widths[q, d].item() * v + asked.shifts[q, d].item() for v in items[real, d].tolist()]
                top = max(adapted)
                weights = [math.exp(temperature * (x - top)) for x in adapted]
                greatest = max(w * x for w, x in zip(weights, adapted, strict=True)) / sum(weights)
                sums[0, i, q] += greatest * asked.directions[q, d].item()
                sums[1, i, q] += greatest**2
    return sums


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    center=st.sampled_from([-2.0, 0.0, 1.0, 3.0]),
    width=st.sampled_from([0.0, 0.2, 4.0]),
    shift=st.sampled_from([-3.0, 0.0, 3.0]),
    temperature=st.sampled_from([0.5, 10.0]),
)
def test_maxima_are_those_of_a_plain_loop(seed, center, width, shift, temperature):
    """Whether the greatest value is positive or negative, and whichever end of a set the queries ask for."""
    generator = torch.Generator().manual_seed(seed)
    values, mask = random_sets(generator, items=7)
    random = torch.rand(3, 40, 4, generator=generator, dtype=torch.float64) - 0.5
    widths = center + width * random[0]
    asked = Asked(temperature * widths, widths, shift + random[1], random[2])
    expected = slow_maxima(values, mask, asked, temperature)
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 5e-5)):
        found = maxima_sums(values.to(dtype), mask, Asked(*(field.to(dtype) for field in asked)))
        torch.testing.assert_close(torch.stack(found).double(), expected, atol=bound, rtol=1e-5)


def test_maxima_of_many_queries_are_given_by_series(monkeypatch):
    monkeypatch.setattr(foveal_maxima, "_add_directly", lambda *given: given[1].numel() and pytest.fail("item by item"))
    generator = torch.Generator().manual_seed(3)
    values, mask = random_sets(generator, channels=5)
    widths = 0.5 + torch.rand(300, 5, generator=generator)
    widths[:, 0] *= -1
    found = maxima_sums(values.float(), mask, Asked(10 * widths, widths, widths - 1, widths))
    few = [field[:20].double() for field in (10 * widths, widths, widths - 1, widths)]
    expected = slow_maxima(values.float().double(), mask, Asked(*few), 10.0)
    torch.testing.assert_close(torch.stack(found)[..., :20].double(), expected, atol=5e-5, rtol=1e-5)
