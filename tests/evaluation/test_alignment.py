"""How words and regions lie, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.evaluation.alignment import alignment, alignment_of, alignment_sums


def random_pairs(seed, pairs=5, words=4, regions=6, dim=3):
    """Features of several lengths, around two centers, with padding."""
    generator = torch.Generator().manual_seed(seed)

    def side(count):
        center = torch.randn(dim, generator=generator, dtype=torch.float64)
        items = torch.randn(pairs, count, dim, generator=generator, dtype=torch.float64) + center
        return items, torch.arange(count) < torch.randint(1, count + 1, (pairs, 1), generator=generator)

    (w, word_mask), (r, region_mask) = side(words), side(regions)
    return w, r, word_mask, region_mask


def mean(vectors):
    return [sum(values) / len(vectors) for values in zip(*vectors, strict=True)]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_alignment(words, regions, word_mask, region_mask):
    """The three numbers as the module's table says them, from lists."""

    def unit_items(items, mask):
        real = [[v for v, is_real in zip(*pair, strict=True) if is_real] for pair in zip(items, mask, strict=True)]
        return [[[x / math.sqrt(dot(v, v)) for x in v] for v in vectors] for vectors in real]

    w = unit_items(words.tolist(), word_mask.tolist())
    r = unit_items(regions.tolist(), region_mask.tolist())
    all_words, all_regions = (mean([v for vectors in side for v in vectors]) for side in (w, r))
    cosine = dot(all_words, all_regions) / math.sqrt(dot(all_words, all_words) * dot(all_regions, all_regions))
    gaps = [math.dist(mean(own), mean(others)) for own, others in zip(w, r, strict=True)]
    products = [dot(a, b) for p, vectors in enumerate(w) for a in vectors for b in r[(p + 1) % len(r)]]
    return cosine, sum(product > 0 for product in products) / len(products), sum(gaps) / len(gaps)


@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_equals_the_slow_oracle(seed):
    pairs = random_pairs(seed)
    assert [value.item() for value in alignment(*pairs)] == pytest.approx(slow_alignment(*pairs))


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.floats(0.1, 100), st.integers(1, 3))
def test_neither_padding_nor_the_lengths_of_items_matter(seed, scale, extra):
    words, regions, word_mask, region_mask = random_pairs(seed)
    longer = torch.cat([scale * words, torch.full((5, extra, 3), 7.0, dtype=torch.float64)], dim=1)
    longer_mask = torch.nn.functional.pad(word_mask, (0, extra))
    found = alignment(longer, regions / scale, longer_mask, region_mask)
    torch.testing.assert_close(found, alignment(words, regions, word_mask, region_mask))


def test_sums_of_batches_add_up():
    """Cosine and gap are those of the joined batch; products are counted inside each."""
    one, other = random_pairs(1), random_pairs(2)
    joined = alignment(*(torch.cat(both) for both in zip(one, other, strict=True)))
    found = alignment_of(alignment_sums(*one) + alignment_sums(*other))
    torch.testing.assert_close((found.mean_cosine, found.gap), (joined.mean_cosine, joined.gap))
    positive, products = (alignment_sums(*one) + alignment_sums(*other))[-2:]
    assert found.positive_share == positive / products


def test_opposite_sides_and_equal_ones():
    words = torch.nn.functional.normalize(torch.rand(4, 3, 8), dim=-1)
    apart, together = alignment(words, -words), alignment(words, words)
    assert (apart.mean_cosine.item(), apart.positive_share) == (pytest.approx(-1.0), 0.0)
    assert (together.mean_cosine.item(), together.positive_share) == (pytest.approx(1.0), 1.0)
    assert together.gap == 0


def test_half_precision_and_zero_vectors_give_numbers_and_nothing_flows_back():
    words = torch.randn(3, 4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = alignment(words.bfloat16() * 1e4, torch.zeros(3, 5, 8))
    assert [value.dtype for value in found] == [torch.float32] * 3
    assert (found.mean_cosine, found.positive_share) == (0.0, 0.0)
    assert not found.gap.requires_grad


def test_a_pair_alone_has_no_other_one():
    words, regions = torch.ones(1, 2, 4), torch.ones(1, 3, 4)
    alone = alignment(words, regions)
    assert (alone.mean_cosine.item(), alone.gap.item()) == pytest.approx((1.0, 0.0), abs=1e-6)
    assert math.isnan(alone.positive_share)
    more = alignment_sums(torch.ones(3, 2, 4), -torch.ones(3, 3, 4))  # none of these products is positive
    assert alignment_of(alignment_sums(words, regions) + more).positive_share == 0
