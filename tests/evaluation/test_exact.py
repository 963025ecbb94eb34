from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from xmodal.data import Relevance
from xmodal.evaluation import evaluate_retrieval, exact
from xmodal.heads import BFAN, CHAN, SCAN, Cosine
from xmodal.scoring import evaluate_exact, score_all

BUDGET = 100_000
"""Small enough for many tiles: one tile must not settle everything."""


def paired_sets(seed: int, images: int, *, noise: float = 1.0, dim: int = 32, captions_each: int = 3):
    """Captions whose words resemble regions of their image; lengths differ."""
    generator = torch.Generator().manual_seed(seed)
    regions = F.normalize(torch.randn(images, 6, dim, generator=generator), dim=-1)
    caption_image = torch.arange(images).repeat(captions_each)
    lengths = torch.randint(2, 9, (len(caption_image),), generator=generator)
    word_mask = torch.arange(8) < lengths[:, None]
    picked = regions[caption_image[:, None], torch.randint(6, word_mask.shape, generator=generator)]
    words = F.normalize(picked + noise * torch.randn(picked.shape, generator=generator) / dim**0.5, dim=-1)
    return (regions, words, None, word_mask), caption_image


def assert_exact(head, inputs, caption_image):
    """The metrics are those of the float32 scores, to the last bit; returns how they came about."""
    expected = evaluate_retrieval(score_all(head, *inputs, budget_bytes=BUDGET), caption_image)
    metrics = evaluate_exact(head, *inputs, caption_image=caption_image, budget_bytes=BUDGET)
    report = metrics.pop("exact")
    assert metrics == expected
    assert report["recomputed"] + report["settled"] <= report["pairs"] == len(inputs[0]) * len(inputs[1])
    return report


@pytest.mark.parametrize("head", [SCAN(), SCAN("i2t", temperature=4.0), BFAN(), BFAN("equal"), CHAN()], ids=str)
@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_metrics_are_those_of_float32_and_most_pairs_are_not_computed_again(head, noise):
    report = assert_exact(head, *paired_sets(0, 60, noise=noise))
    if noise == 1.0 and isinstance(head, SCAN):
        assert report["recomputed"] + report["settled"] < 0.5 * report["pairs"]


@given(seed=st.integers(0, 2**31), images=st.integers(1, 12), noise=st.floats(0.0, 5.0))
def test_metrics_are_those_of_float32_for_any_data(seed, images, noise):
    assert_exact(SCAN(), *paired_sets(seed, images, noise=noise))


@pytest.mark.parametrize("temperature", [0.01, 100.0, 1e4])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_huge_and_tiny_temperatures(direction, temperature):
    assert_exact(SCAN(direction, temperature=temperature), *paired_sets(1, 30, noise=2.0))


def test_scores_that_are_all_equal():
    inputs, caption_image = paired_sets(0, 30)
    regions, words, _, word_mask = inputs
    same = (regions[:1].expand(30, -1, -1), words[:1, :1].expand(90, 8, -1), None, torch.ones_like(word_mask))
    report = assert_exact(SCAN(), same, caption_image)
    assert report["settled"] > 0
    silent = (torch.zeros_like(regions), words, None, word_mask)
    assert_exact(SCAN(aggregation="mean"), silent, caption_image)


def test_duplicated_captions_and_images_tie_exactly():
    (regions, words, _, word_mask), caption_image = paired_sets(2, 40)
    regions[20:] = regions[:20]
    words[60:], word_mask[60:] = words[:60], word_mask[:60]
    report = assert_exact(SCAN(), (regions, words, None, word_mask), caption_image)
    assert report["settled"] > 0


def test_near_ties_below_the_precision_of_bfloat16():
    (regions, words, _, word_mask), caption_image = paired_sets(3, 40)
    regions[20:] = regions[:20] * (1 + 1e-6 * torch.randn(20, 6, 1)) + 1e-7 * torch.randn(20, 6, 32)
    words[60:], word_mask[60:] = words[:60] + 1e-6 * torch.randn(60, 8, 32), word_mask[:60]
    assert_exact(SCAN(), (regions, words, None, word_mask), caption_image)


def test_a_bound_that_is_violated_is_widened(monkeypatch):
    measure = exact._Settling.measure

    def measure_badly(settling):
        measure(settling)
        settling.bound[exact.LOW] *= 0.1

    monkeypatch.setattr(exact._Settling, "measure", measure_badly)
    report = assert_exact(SCAN(), *paired_sets(0, 60, noise=4.0))
    assert report["widened"] > 0


def test_masks_of_regions_and_unevenly_many_captions():
    (regions, words, _, word_mask), _ = paired_sets(4, 20)
    region_mask = torch.arange(6) < torch.randint(1, 7, (20, 1))
    caption_image = torch.cat([torch.arange(20), torch.randint(3, (40,))])
    assert_exact(SCAN("i2t"), (regions, words, region_mask, word_mask), caption_image)


@given(seed=st.integers(0, 2**31), images=st.integers(1, 12), noise=st.floats(0.0, 5.0))
def test_captions_of_several_images(seed, images, noise):
    inputs, caption_image = paired_sets(seed, images, noise=noise)
    right = torch.rand(images, len(caption_image), generator=torch.Generator().manual_seed(seed)) < 0.2
    right[caption_image, torch.arange(len(caption_image))] = True
    relevance = Relevance(*right.nonzero(as_tuple=True), None, images=images, captions=len(caption_image))
    assert_exact(SCAN(), inputs, relevance)


def test_pooled_heads_are_scored_in_float32():
    report = assert_exact(Cosine(), *paired_sets(0, 10))
    assert report["settled"] == report["pairs"]


def test_relevance_must_fit():
    inputs, caption_image = paired_sets(0, 5)
    with pytest.raises(ValueError, match="caption_image has shape"):
        evaluate_exact(SCAN(), *inputs, caption_image=caption_image[1:])
    with pytest.raises(ValueError, match="image 4 has no caption"):
        evaluate_exact(SCAN(), *inputs, caption_image=caption_image % 4)


@pytest.mark.parametrize("head", [CHAN(), SCAN(), BFAN()], ids=str)
def test_products_beyond_the_range_of_float16(head):
    """Of vectors of length 1000 all that is large is infinite: nothing can be told from it."""
    (regions, words, *masks), caption_image = paired_sets(3, images=40, noise=0.3)
    inputs = (1000 * regions, 1000 * words, *masks)
    low = score_all(head, *inputs, dtype=torch.float16)
    assert not low.isfinite().all()
    metrics = evaluate_exact(head, *inputs, caption_image=caption_image, dtype=torch.float16)
    report = metrics.pop("exact")
    assert metrics == evaluate_retrieval(score_all(head, *inputs), caption_image)
    assert report["settled"] == report["pairs"]
