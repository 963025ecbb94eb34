"""ESA's loss against a plain loop over the views of every pair."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.objectives import ESARanking, HingeRanking, esa_ranking_loss, hinge_ranking_loss
from xmodal.objectives.warmup import Hardness


def slow_loss(scores, views, margin, hardest, ids):
    """Every view of an image against the captions, and every view of a caption against the images."""
    total, count = 0.0, len(scores)
    for transposed in (False, True):
        table = scores.T.tolist() if transposed else scores.tolist()
        for row in range(count):
            pair = row // views
            matched = min(table[row][pair * views : (pair + 1) * views])
            costs = [
                max(0.0, margin + table[row][other] - matched)
                for other in range(count)
                if other // views != pair and (ids is None or ids[other] != ids[row])
            ]
            total += (1 - hardest) * sum(costs) + hardest * max(costs, default=0.0)
    return total


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    pairs=st.integers(1, 5),
    views=st.integers(1, 3),
    hardest=st.sampled_from([0.0, 0.3, 1.0]),
    with_ids=st.booleans(),
)
def test_it_equals_the_plain_loop(seed, pairs, views, hardest, with_ids):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(pairs * views, pairs * views, generator=generator, dtype=torch.float64)
    ids = torch.randint(3, (pairs,), generator=generator).repeat_interleave(views) if with_ids else None
    found = esa_ranking_loss(scores, views=views, margin=0.3, hardest=hardest, caption_image=ids)
    expected = slow_loss(scores, views, 0.3, hardest, None if ids is None else ids.tolist())
    assert found.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("hardest", [0.0, 1.0])
def test_with_one_view_it_is_the_hinge_loss_with_its_gradients(hardest):
    scores = torch.rand(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    one, other = esa_ranking_loss(scores, views=1, hardest=hardest), hinge_ranking_loss(scores, hardest=hardest)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(*(torch.autograd.grad(loss, scores)[0] for loss in (one, other)))


def test_half_precision_and_means():
    scores = torch.rand(6, 6, generator=torch.Generator().manual_seed(1))
    mean = esa_ranking_loss(scores, reduction="mean")
    torch.testing.assert_close(6 * mean, esa_ranking_loss(scores))
    assert esa_ranking_loss(scores.half()).dtype == torch.float32


def slow_hardness(step, warmup, beta, epochs, per_epoch):
    """ADAPT counts its iterations from 1 (retrieval/model/loss.py), VSE-infinity switches with an epoch (train.py)."""
    if step // per_epoch < epochs:
        return 0.0
    return (1.0 if warmup == 0 else min(1.0, step / warmup)) * (1.0 - beta ** float(step + 1))


@given(st.integers(0, 50), st.integers(0, 9), st.sampled_from([0.0, 0.5, 0.991]), st.integers(0, 3), st.integers(1, 9))
def test_the_hardest_negatives_come_in_as_published(step, warmup, beta, epochs, per_epoch):
    found = Hardness(warmup, beta, epochs, per_epoch)(step)
    assert found == pytest.approx(slow_hardness(step, warmup, beta, epochs, per_epoch))
    assert Hardness(warmup, beta, epochs, per_epoch)(None) == 1.0


def test_objectives_mix_all_and_hardest_by_the_step():
    scores = torch.rand(4, 4, generator=torch.Generator().manual_seed(2))
    hinge = HingeRanking(curriculum=0.5, all_negatives_epochs=1, steps_per_epoch=2)
    for step, hardest in ((0, 0.0), (1, 0.0), (2, 1 - 0.5**3), (None, 1.0)):
        expected = hinge_ranking_loss(scores, hardest=hardest)
        torch.testing.assert_close(hinge(scores, step=step)["total"], expected)
    esa = ESARanking(steps_per_epoch=2)
    assert esa.views == 2
    for step, hardest in ((1, 0.0), (2, 1.0)):
        torch.testing.assert_close(esa(scores, step=step)["total"], esa_ranking_loss(scores, hardest=hardest))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: esa_ranking_loss(torch.ones(3, 3)), r"scores must be square with 2 views of every pair, got \(3, 3\)"),
        (lambda: esa_ranking_loss(torch.ones(2, 4)), r"got \(2, 4\)"),
        (lambda: esa_ranking_loss(torch.ones(2, 2), views=0), "views must be at least 1, got 0"),
        (lambda: esa_ranking_loss(torch.ones(2, 2), hardest=1.5), "hardest must be at least 0 and at most 1, got 1.5"),
        (lambda: HingeRanking(curriculum=1.0), "curriculum must be at least 0 and below 1, got 1.0"),
        (lambda: HingeRanking(all_negatives_epochs=1)(torch.eye(2), step=0), "steps_per_epoch is not known"),
        (lambda: ESARanking(all_negatives_epochs=-1), "all_negatives_epochs must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(seed=st.integers(0, 2**31), pairs=st.integers(2, 4), hardest=st.sampled_from([0.0, 0.3, 1.0]))
def test_left_out_pairs_are_neither_the_worst_view_nor_mismatches(seed, pairs, hardest):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2 * pairs, 2 * pairs, generator=generator, dtype=torch.float64)
    left_out = torch.rand(scores.shape, generator=generator) < 0.4
    left_out.fill_diagonal_(False)
    given = scores.masked_fill(left_out, -math.inf).requires_grad_()
    loss = esa_ranking_loss(given, hardest=hardest)
    expected = 0.0
    for table in (given.tolist(), given.T.tolist()):
        for row, line in enumerate(table):
            own = range(row // 2 * 2, row // 2 * 2 + 2)
            matched = min(line[column] for column in own if line[column] > -math.inf)
            costs = [max(0.0, 0.2 + score - matched) for column, score in enumerate(line) if column not in own]
            expected += (1 - hardest) * sum(costs) + hardest * max(costs)
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, given)
    assert gradient.isfinite().all()
    assert not gradient[left_out].any()


def test_a_view_of_which_no_score_is_known_is_told():
    scores = torch.zeros(4, 4)
    scores[:2, :2] = -math.inf
    assert not esa_ranking_loss(scores).isfinite()
