"""ADAPT against plain loops over one image and one caption, channel by channel."""

from __future__ import annotations

import pytest
import torch
from batches import DIM, batches, check_against, learned, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pooling import softmax

from xmodal.heads import ADAPT, attention


def slow_adapt(head):
    def score(regions, words):
        values, asking = (regions, words) if head.direction == "t2i" else (words, regions)
        query = sum(asking) / len(asking)
        gains = head.gain.weight @ query + head.gain.bias
        shifts = head.shift.weight @ query + head.shift.bias
        channels = []
        for d in range(len(query)):
            normed = [
                (v[d] - head.norm.running_mean[d]) / (head.norm.running_var[d] + head.norm.eps) ** 0.5 for v in values
            ]
            adapted = [value * (1 + gains[d]) + shifts[d] for value in normed]
            weights = softmax([head.temperature * value for value in adapted])
            seen = [weight * value for weight, value in zip(weights, adapted, strict=True)]
            channels.append(sum(seen) / len(seen) if head.direction == "t2i" else max(seen, key=torch.Tensor.item))
        vector = torch.stack(channels)
        return vector @ query / (vector.norm() * query.norm())

    return score


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@settings(max_examples=20)
@given(batch=batches(dim=DIM), seed=st.integers(0, 99), temperature=st.floats(0.5, 5.0))
def test_equals_the_plain_loop(direction, batch, seed, temperature):
    head = learned(ADAPT(DIM, direction, temperature), seed)
    check_against(slow_adapt(head), head, batch)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_blocks_change_neither_scores_nor_gradients_nor_statistics(direction, monkeypatch):
    batch = random_batch(seed=2, images=4, captions=5, dim=DIM)
    results, heads = [], [learned(ADAPT(DIM, direction), 1).train() for _ in range(2)]
    for head, size in zip(heads, (1, 1 << 30), strict=True):
        monkeypatch.setitem(attention.TILE_BYTES, "cpu", size)
        scores = head(batch.regions.requires_grad_(), *batch[1:])
        results.append([scores, *torch.autograd.grad(scores.square().sum(), [batch.regions, *head.parameters()])])
    for parts, whole in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole)
    assert torch.equal(heads[0].norm.running_mean, heads[1].norm.running_mean)


def test_statistics_in_training_are_those_of_real_items():
    batch = random_batch(dim=DIM)
    for direction, items, mask in (("t2i", *batch[::2]), ("i2t", *batch[1::2])):
        head = ADAPT(DIM, direction).double().train()
        head(*batch)
        torch.testing.assert_close(head.norm.running_mean, 0.1 * items[mask].mean(dim=0))
        assert head.norm.num_batches_tracked == 1


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "both"}, "direction must be one of t2i, i2t; got 'both'"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ADAPT(8, **options)
