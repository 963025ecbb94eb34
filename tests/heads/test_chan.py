"""CHAN against a plain loop over one image and one caption."""

from __future__ import annotations

import pytest
import torch
from batches import batches, check_against, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.heads import CHAN, SCAN, chan_pair_scores, chan_scores
from xmodal.heads.comparison import HardAlignment


def slow_chan(aggregation, temperature):
    def score(regions, words):
        best = [max((region @ word for region in regions), key=torch.Tensor.item) for word in words]
        if aggregation == "mean":
            return sum(best) / len(best)
        return sum((value / temperature).exp() for value in best).log()

    return score


@pytest.mark.parametrize("aggregation", ["logsumexp", "mean"])
@settings(max_examples=25)
@given(batch=batches(), temperature=st.floats(0.1, 2.0))
def test_equals_the_plain_loop(aggregation, batch, temperature):
    head = CHAN(aggregation, temperature)
    check_against(slow_chan(aggregation, temperature), head, batch)


def test_sharp_temperatures_do_not_overflow():
    batch = random_batch()
    large = batch._replace(regions=100 * batch.regions.half(), words=batch.words.half())
    assert chan_scores(*large, temperature=0.01).isfinite().all()


def test_every_word_looks_at_its_best_region():
    batch = random_batch(captions=3)
    weights = CHAN().attention(*batch).weights
    assert torch.equal(weights.sum(dim=2), batch.word_mask.double())
    assert not weights[(~batch.region_mask)[:, None].expand_as(weights)].any()
    products = batch.words @ batch.regions.mT
    best = products.masked_fill(~batch.region_mask[:, None], float("-inf")).amax(dim=2)
    torch.testing.assert_close((weights * products).sum(dim=2), best * batch.word_mask)


def test_it_is_none_of_the_other_comparisons():
    assert CHAN("mean").comparison == HardAlignment("mean", 0.1) != CHAN().comparison
    assert repr(CHAN("mean")) == "CHAN(aggregation='mean', temperature=0.1)"
    batch = random_batch()
    assert not torch.allclose(CHAN()(*batch), SCAN()(*batch))


@pytest.mark.bad_input
@pytest.mark.parametrize("function", [chan_scores, chan_pair_scores])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aggregation": "max"}, "aggregation must be one of logsumexp, mean; got 'max'"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"words": torch.ones(2, 3, 5)}, "regions have dim 4 and words have dim 5"),
        ({"words": torch.full((2, 3, 4), float("inf")), "validate": True}, r"words\[0, 0\] holds NaN or infinity"),
    ],
)
def test_bad_input_is_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(**{"regions": torch.ones(2, 3, 4), "words": torch.ones(2, 3, 4), **arguments})
