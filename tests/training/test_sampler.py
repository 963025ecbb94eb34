"""Every item comes once an epoch, in an order that seed and epoch decide, shared equally among processes."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal.training.sampler import ShuffledBatches


@given(
    processes=st.integers(1, 4),
    share=st.integers(2, 5),
    count=st.integers(4, 40),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_processes_share_the_batches_of_one(processes, share, count, seed, epoch):
    size = processes * share
    shares = [list(ShuffledBatches(count, size, seed, rank, processes).epoch(epoch)) for rank in range(processes)]
    joined = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert len(joined) == len(ShuffledBatches(count, size, seed, 0, processes))
    assert all(len(batch) == size for batch in joined[:-1])
    seen = list(chain(*joined))
    assert len(set(seen)) == len(seen)
    assert len(seen) > count - max(2, processes)  # what is left out makes no equal shares, or no pair
    assert seen == list(chain(*ShuffledBatches(count, size, seed).epoch(epoch)))[: len(seen)]


@given(start=st.integers(0, 5))
def test_an_epoch_goes_on_where_it_stopped(start):
    batches = ShuffledBatches(23, 4, seed=1)
    assert list(batches.epoch(2))[start:] == list(batches.epoch(2, start))


def test_epochs_and_seeds_have_their_own_order():
    orders = {str(list(ShuffledBatches(50, 10, seed).epoch(epoch))) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 1, 0), "batch_size 1 must be at least 2"),
        ((10, 5, 0, 0, 2), "multiple of the number of processes, 2"),
        ((1, 4, 0), "1 training pairs are too few"),
        ((3, 4, 0, 0, 4), "3 training pairs are too few"),
    ],
)
def test_batches_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShuffledBatches(*arguments)
