"""Every item comes once an epoch, in an order that seed and epoch decide, shared equally among processes."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.training.sampler import ClassBatches, ShuffledBatches


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


LABELS = torch.tensor([4] * 5 + [2] * 3 + [9] + [0] * 7)


@given(
    processes=st.sampled_from([1, 2]),
    images=st.integers(1, 4),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_a_batch_has_images_of_some_classes(processes, images, seed, epoch):
    arguments = (LABELS, 2, images, seed) if images > 1 else (LABELS, 4, images, seed)
    whole = list(ClassBatches(*arguments).epoch(epoch))
    assert len(whole) == len(ClassBatches(*arguments)) == len(LABELS) // (arguments[1] * images)
    for batch in whole:
        classes = LABELS[batch].view(arguments[1], images)
        assert (classes == classes[:, :1]).all(), "the images of a class are side by side"
        assert len(classes[:, 0].unique()) == arguments[1], "no class comes twice"
        for row in torch.tensor(batch).view(arguments[1], images):
            size = int((LABELS[row[0]] == LABELS).sum())
            assert len(row.unique()) == min(images, size), "no image comes twice unless it must"
    shares = [list(ClassBatches(*arguments, rank, processes).epoch(epoch)) for rank in range(processes)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


def test_class_batches_go_on_where_they_stopped():
    batches = ClassBatches(LABELS, 2, 2, seed=1, batches=6)
    assert len(batches) == 6
    for start in range(7):
        assert list(batches.epoch(2))[start:] == list(batches.epoch(2, start))
    orders = {str(list(ClassBatches(LABELS, 2, 2, seed).epoch(epoch))) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


def test_classes_are_drawn_evenly_whatever_their_size():
    drawn = [LABELS[index] for batch in ClassBatches(LABELS, 2, 1, seed=0, batches=1000).epoch(0) for index in batch]
    counts = torch.stack(drawn).bincount()[[0, 2, 4, 9]]
    assert (counts - 500).abs().max() < 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes_per_batch": 5}, "classes_per_batch is 5 and the training images have 4 classes"),
        ({"classes_per_batch": 3, "processes": 2}, "multiple of the number of processes, 2"),
        ({"classes_per_batch": 0}, "classes_per_batch 0 must be a positive multiple"),
        ({"images_per_class": 0}, "images_per_class is 0"),
        ({"classes_per_batch": 1, "images_per_class": 1}, "two images a batch"),
        ({"batches": 0}, "batches is 0"),
    ],
)
def test_class_batches_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassBatches(**{"labels": LABELS, "classes_per_batch": 2, "images_per_class": 2, "seed": 0, **arguments})
