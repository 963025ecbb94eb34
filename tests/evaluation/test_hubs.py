"""Hubness and what makes up for it, against plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.evaluation import hubs, retrieval_ranks
from xmodal.evaluation.hubs import (
    NORMALIZATIONS,
    Bank,
    Offsets,
    dbsn,
    dual_softmax,
    find_normalization,
    hubness,
    occurrences,
    querybank,
    sinkhorn,
    subtract_offsets,
)
from xmodal.evaluation.reranking import rerank
from xmodal.heads import Cosine
from xmodal.scoring import score_all


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def tied_scores(draw):
    shape = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    levels = draw(st.sampled_from([1, 3, 1000]))
    return torch.randint(levels, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 999)))) / 8


@pytest.fixture
def bank():
    """Four images and six captions are evaluated; three images and five captions are in the bank."""
    return Bank(random(4, 5, seed=1), random(3, 6, seed=2), random(3, 5, seed=3))


@pytest.fixture(params=[2**20, 7], ids=["whole", "blocks"])
def blocks(request, monkeypatch):
    """Matrices as a whole, and an image or two at a time."""
    monkeypatch.setattr(hubs, "BLOCK_ELEMENTS", request.param)


def slow_occurrences(rows, k):
    counts = [0] * len(rows[0])
    for row in rows:
        for item, score in enumerate(row):
            counts[item] += sum(other >= score for other in row) <= k
    return counts


@given(tied_scores(), st.integers(1, 10))
def test_occurrences_and_hubness_equal_their_definition(scores, k):
    found = hubness(scores, k=k)
    for direction, rows in (("i2t", scores.tolist()), ("t2i", scores.T.tolist())):
        counts = slow_occurrences(rows, k)
        assert occurrences(scores, direction, k=k).tolist() == counts
        mean = sum(counts) / len(counts)
        second, third = (sum((count - mean) ** power for count in counts) / len(counts) for power in (2, 3))
        assert found[direction]["skewness"] == pytest.approx(third / second**1.5 if second else 0, abs=1e-9)
        assert found[direction]["never"] == pytest.approx(100 * counts.count(0) / len(counts))
        assert found[direction]["most"] == max(counts)


def slow_inverted(table, temperature):
    """What every row scores altogether, in units of the score."""
    return [temperature * math.log(sum(math.exp(score / temperature) for score in row)) for row in table]


def assert_equal(offsets, images, captions):
    assert offsets.images.tolist() == pytest.approx(images, abs=1e-6)
    assert offsets.captions.tolist() == pytest.approx(captions, abs=1e-6)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_inverted_softmax_equals_plain_loops(bank, temperature):
    scores = random(4, 6)
    images, captions = (slow_inverted(table.tolist(), temperature) for table in (bank.captions, bank.images.T))
    assert_equal(querybank(scores, bank, temperature=temperature), images, captions)
    images, captions = (slow_inverted(table.tolist(), temperature) for table in (scores, scores.T))
    assert_equal(querybank(scores, temperature=temperature), images, captions)
    halves = [offset / 2 for offset in images], [offset / 2 for offset in captions]
    assert_equal(dual_softmax(scores, temperature=temperature), *halves)


def test_dual_softmax_ranks_by_the_product_of_two_softmaxes():
    scores = random(5, 8)
    product = (scores.double() / 0.1).softmax(dim=0) * (scores.double() / 0.1).softmax(dim=1)
    found = subtract_offsets(scores, dual_softmax(scores, temperature=0.1))
    assert torch.allclose(found.double(), 0.05 * product.log(), atol=1e-6)


def slow_sinkhorn(table, temperature, rounds):
    kernel = [[math.exp(-(1 - score) / temperature) for score in row] for row in table]
    v = [1.0] * len(kernel[0])
    u = []
    for _ in range(rounds):
        u = [1 / len(kernel) / sum(k * other for k, other in zip(row, v, strict=True)) for row in kernel]
        columns = zip(*kernel, strict=True)
        v = [1 / len(v) / sum(k * other for k, other in zip(column, u, strict=True)) for column in columns]
    return [[-temperature * math.log(scale) for scale in side] for side in (u, v)]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("rounds", [1, 10])
def test_sinkhorn_equals_plain_loops(bank, rounds):
    scores = random(4, 6)
    of_images, _ = slow_sinkhorn([*bank.captions.tolist(), *bank.both.tolist()], 0.05, rounds)
    assert_equal(dbsn(scores, bank, temperature=0.05, rounds=rounds), of_images[:4], [0.0] * 6)
    of_captions, _ = slow_sinkhorn([*bank.images.T.tolist(), *bank.both.T.tolist()], 0.05, rounds)
    assert_equal(sinkhorn(scores, bank, temperature=0.05, rounds=rounds), of_images[:4], of_captions[:6])
    assert_equal(sinkhorn(scores, temperature=0.05, rounds=rounds), *slow_sinkhorn(scores.tolist(), 0.05, rounds))


@pytest.mark.usefixtures("blocks")
def test_sinkhorn_is_computed_in_logarithms():
    """At the published temperature, scores of 10 would overflow a kernel that is computed as such."""
    scores = 20 * random(4, 6) - 10
    scores[:, 2] -= 30  # no image has a weight of this caption in float64
    log_u, log_v = torch.zeros(4).double(), torch.zeros(6).double()
    for _ in range(10):
        log_u = -((scores.double() - 1) / 0.01 + log_v).logsumexp(dim=1) - math.log(4)
        log_v = -((scores.double() - 1) / 0.01 + log_u[:, None]).logsumexp(dim=0) - math.log(6)
    assert_equal(sinkhorn(scores), (-0.01 * log_u).tolist(), (-0.01 * log_v).tolist())
    offsets = sinkhorn(scores)
    shifted = sinkhorn(scores + 5)
    assert all(offset.isfinite().all() for offset in offsets)
    assert torch.allclose(shifted.images - offsets.images, torch.tensor(5.0).double(), atol=1e-5)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_hub_retrieves_less(name):
    """An image that is moved towards all captions, in the test and in the bank, is retrieved as if it were not."""
    clean = random(40, 60)
    hub = clean.clone()
    hub[0] += 0.5
    bank = Bank(random(40, 50, seed=1), random(30, 60, seed=2), random(30, 50, seed=3))
    moved = bank._replace(captions=torch.cat([bank.captions[:1] + 0.5, bank.captions[1:]]))
    takes_bank = name != "dual_softmax"
    found = [
        subtract_offsets(scores, NORMALIZATIONS[name](scores, *([other] if takes_bank else []), temperature=0.05))
        for scores, other in ((clean, bank), (hub, moved))
    ]
    counts = [int(occurrences(scores, "t2i", k=3)[0]) for scores in (hub, found[1], found[0])]
    assert counts[1] < counts[0]
    if takes_bank:  # what was added is taken away to the last digit
        assert torch.allclose(found[0], found[1], atol=1e-5)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_offsets_are_subtracted(dtype):
    scores = (8 * random(4, 6)).to(dtype)
    offsets = Offsets(random(4, seed=1), random(6, seed=2))
    found = subtract_offsets(scores, offsets)
    wanted = [
        [score - float(offsets.images[i]) - float(offsets.captions[c]) for c, score in enumerate(row)]
        for i, row in enumerate(scores.tolist())
    ]
    assert found.dtype == {torch.bfloat16: torch.float32, torch.int64: torch.float64}.get(dtype, dtype)
    assert torch.allclose(found.double(), torch.tensor(wanted).double(), atol=1e-6)


@pytest.mark.bad_input
def test_what_cannot_be_normalized_is_named(bank):
    scores = random(4, 6)
    with pytest.raises(ValueError, match=r"no normalization 'sinkhron' \(did you mean 'sinkhorn'\?\)"):
        find_normalization("sinkhron")
    with pytest.raises(ValueError, match="dbsn needs a bank"):
        dbsn(scores)
    with pytest.raises(ValueError, match="for a bank of others take querybank"):
        dual_softmax(scores, bank)
    with pytest.raises(ValueError, match=r"shapes \(4, 5\), \(3, 6\) and \(3, 4\); for scores of \(4, 6\)"):
        querybank(scores, bank._replace(both=bank.both[:, :4]))
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        sinkhorn(scores[0])
    for function in NORMALIZATIONS.values():
        with pytest.raises(ValueError, match="temperature must be positive"):
            function(scores, None if function is dual_softmax else bank, temperature=0)
    with pytest.raises(ValueError, match="rounds"):
        sinkhorn(scores, rounds=0)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        hubness(scores, k=0)
    scores[1, 2] = torch.nan
    with pytest.raises(ValueError, match="scores of image 1 cannot be normalized"):
        subtract_offsets(scores, querybank(scores))
    with pytest.raises(ValueError, match="image 1 and caption 2 is NaN"):
        hubness(scores)


@pytest.mark.bad_input
def test_answers_are_counted_in_whole_numbers():
    with pytest.raises(ValueError, match=r"k must be a whole number, got 2\.5"):
        hubness(torch.eye(4), k=2.5)
    with pytest.raises(ValueError, match=r"top must be a whole number, got 2\.5"):
        rerank(torch.eye(4), "i2t", top=2.5)
    with pytest.raises(ValueError, match=r"block must be a whole number, got 2\.5"):
        retrieval_ranks(torch.eye(4), torch.arange(4), block=2.5)
    with pytest.raises(ValueError, match="budget_bytes must be a whole number, got 1000000"):
        score_all(Cosine(), torch.ones(2, 3, 4), torch.ones(2, 3, 4), budget_bytes=1e6)
