"""NAAF against plain loops over one image and one caption, and its threshold against the densities it parts."""

from __future__ import annotations

import math

import pytest
import torch
from batches import batches, check_against, random_batch, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pooling import softmax

from xmodal.heads import NAAF, naaf_pair_scores, naaf_scores
from xmodal.heads.naaf import matching_threshold


def slow_naaf(threshold, temperature, intra_temperature):
    def score(regions, words):
        products = [[word @ region for region in regions] for word in words]
        clipped = [[torch.nn.functional.leaky_relu(value, 0.1) for value in row] for row in products]
        lengths = [sum(row[i] ** 2 for row in clipped) ** 0.5 + 1e-8 for i in range(len(regions))]
        beyond = [max(row, key=torch.Tensor.item) - threshold for row in products]
        total = 0.0
        for j, word in enumerate(words):
            chosen = [i for i, value in enumerate(products[j]) if value.item() > threshold]
            if chosen:
                weights = softmax([temperature * products[j][i] for i in chosen])
                context = sum(weight * regions[i] for weight, i in zip(weights, chosen, strict=True))
                total = total + word @ context / context.norm()
            relevance = softmax([temperature * v / n for v, n in zip(clipped[j], lengths, strict=True)])
            total = total + sum(q * value for q, value in zip(relevance, products[j], strict=True))
            if intra_temperature is None:
                total = total + (beyond[j] if beyond[j].item() < 0 else 0.0)
            else:
                among = softmax([intra_temperature * (word @ other) for other in words])
                shared = sum(weight * value for weight, value in zip(among, beyond, strict=True))
                total = total + (beyond[j] if shared.item() < 0 else 0.0)
        return total / len(words)

    return score


@pytest.mark.parametrize("intra_temperature", [None, 5.0])
@settings(max_examples=25)
@given(batch=batches(), threshold=st.sampled_from([0.0, 0.3, 0.9, 2.0]), temperature=st.floats(1.0, 10.0))
def test_equals_the_plain_loop(intra_temperature, batch, threshold, temperature):
    head = NAAF(temperature, intra_temperature or 5.0, learn_threshold=False).train(intra_temperature is None)
    head.threshold.fill_(threshold)
    head.lower_bound.fill_(threshold)
    threshold = head.threshold.item()  # as float32 has it
    check_against(slow_naaf(threshold, temperature, intra_temperature), head, batch)


def density(x, values):
    deviation = values.std().item()
    return math.exp(-(((x - values.mean().item()) / deviation) ** 2) / 2) / deviation


@given(st.integers(0, 999), st.floats(1.0, 4.0))
def test_the_threshold_is_where_the_densities_are_equal(seed, penalty):
    generator = torch.Generator().manual_seed(seed)
    matched = 0.6 + 0.12 * torch.randn(300, generator=generator, dtype=torch.float64)
    mismatched = 0.25 + 0.08 * torch.randn(300, generator=generator, dtype=torch.float64)
    threshold, bound = matching_threshold(matched, mismatched, penalty=penalty)
    assert 0.25 < threshold < 0.6
    # The released C has 1 / (penalty deviation), which makes the mismatched density count the penalty times as much.
    assert density(threshold.item(), matched) == pytest.approx(
        density(threshold.item(), mismatched) * penalty, rel=1e-4
    )
    torch.testing.assert_close(bound, (matched.mean() - 3 * matched.std()).clamp_min(0))


def test_thresholds_outside_of_the_unit_interval_are_zero():
    high, low = 5.0 + torch.linspace(0, 1, 50), 3.0 + torch.linspace(0, 0.5, 50)
    assert matching_threshold(high, low) == (0, 0)
    same = torch.linspace(0.4, 0.6, 50)
    assert matching_threshold(same, same, penalty=0.1) is None


def matched_pairs(count=40, words=8):
    generator = torch.Generator().manual_seed(0)
    regions = unit(torch.randn(count, 6, 32, generator=generator))
    chosen = torch.randint(6, (count, words), generator=generator)
    noise = 0.1 * torch.randn(count, words, 32, generator=generator)
    return regions, unit(regions.gather(1, chosen[..., None].expand(-1, -1, 32)) + noise)


def test_training_moves_the_thresholds_as_samples_say():
    head, (regions, words) = NAAF().train(), matched_pairs()
    scores = head(regions, words)
    assert torch.equal(scores.argmax(dim=0), torch.arange(40))
    lowest = scores.argmin(dim=0)
    matched = torch.cat([(words[i] @ regions[i].T).amax(dim=1) for i in range(40)])
    mismatched = torch.cat([(words[i] @ regions[lowest[i]].T).amax(dim=1) for i in range(40)])
    expected = matching_threshold(matched, mismatched)
    torch.testing.assert_close(head.threshold, 0.7 * expected[0])
    torch.testing.assert_close(head.lower_bound, 0.7 * expected[1])
    first = head.threshold.clone()
    head(regions, words)
    assert head.threshold > first  # 0.7 of a like one, and 0.3 of the first
    kept = NAAF()
    kept.load_state_dict(head.state_dict())
    assert torch.equal(kept.threshold, head.threshold)


def test_few_words_evaluation_and_pairs_leave_the_thresholds():
    head, (regions, words) = NAAF(), matched_pairs()
    head.train()(regions[:20], words[:20])  # 160 words
    head.train().pairs(regions, words)
    head.eval()(regions, words)
    fixed = NAAF(learn_threshold=False).train()
    fixed(regions, words)
    assert head.threshold == head.lower_bound == fixed.threshold == 0


def test_without_any_region_above_the_threshold_there_are_gradients_still():
    batch = random_batch()
    regions = batch.regions.requires_grad_()
    scores = naaf_scores(regions, *batch[1:], threshold=100.0)
    scores.sum().backward()
    assert regions.grad.isfinite().all()
    assert regions.grad.any()


@pytest.mark.bad_input
@pytest.mark.parametrize("function", [naaf_scores, naaf_pair_scores])
@pytest.mark.parametrize("name", ["temperature", "intra_temperature"])
def test_temperatures_must_be_positive(function, name):
    with pytest.raises(ValueError, match=f"^{name} must be positive, got 0.0"):
        function(torch.ones(2, 3, 4), torch.ones(2, 3, 4), **{name: 0.0})
    with pytest.raises(ValueError, match=f"^{name} must be positive, got 0.0"):
        NAAF(**{name: 0.0})


@pytest.mark.bad_input
def test_bad_batches_and_options_are_named():
    with pytest.raises(ValueError, match="square batches of matched pairs, got 2 images and 3 captions"):
        NAAF().train()(torch.ones(2, 3, 4), torch.ones(3, 3, 4))
    with pytest.raises(ValueError, match="penalty must be positive, got -1"):
        NAAF(penalty=-1)
