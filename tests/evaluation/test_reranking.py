"""Re-ranking against its definition in plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.data import Relevance
from xmodal.evaluation import retrieval_ranks
from xmodal.evaluation.reranking import TOP, rerank


@st.composite
def problems(draw):
    """Scores with or without ties, and which image each caption is about."""
    images, captions = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    levels = draw(st.sampled_from([2, 4, 10**6]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    of_image = torch.tensor(draw(st.lists(st.integers(0, images - 1), min_size=captions, max_size=captions)))
    return torch.randint(levels, (images, captions), generator=generator) / 4 - 1, of_image


def slow_keys(table, back, top, families=None):
    """What every query sorts its items by, smaller first: rows of `table` ask, rows of `back` answer."""
    keys = []
    for query, row in enumerate(table):
        keys.append([])
        for item, score in enumerate(row):
            if sum(other >= score for other in row) > top:
                keys[-1].append((1, 0, -score))
                continue
            asking = [query] if families is None else [q for q in range(len(table)) if families[q] == families[query]]
            best = max(back[item][q] for q in asking)
            keys[-1].append((0, sum(other >= best for other in back[item]), -score))
    return keys


def assert_same_order(rows, keys):
    for row, key in zip(rows, keys, strict=True):
        for a, first in zip(row, key, strict=True):
            for b, second in zip(row, key, strict=True):
                assert (a > b, a == b) == (first < second, first == second)


@given(problems(), st.integers(1, 6), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_the_order_is_that_of_the_definition(problem, top, dtype):
    scores, of_image = problem
    scores = scores.to(dtype)
    rows, columns = scores.double().tolist(), scores.T.double().tolist()
    assert_same_order(rerank(scores, "i2t", top=top).tolist(), slow_keys(rows, columns, top))
    assert_same_order(rerank(scores, "t2i", top=top).T.tolist(), slow_keys(columns, rows, top))
    relevance = Relevance.from_caption_image(of_image, len(scores))
    leaky = rerank(scores, "t2i", siblings=relevance, top=top)
    assert_same_order(leaky.T.tolist(), slow_keys(columns, rows, top, of_image.tolist()))


def test_blocks_change_nothing(monkeypatch):
    from xmodal.evaluation import relevance, reranking

    scores = torch.randn(30, 70, generator=torch.Generator().manual_seed(0))
    whole = [rerank(scores, direction) for direction in ("i2t", "t2i")]
    monkeypatch.setattr(reranking, "BLOCK_ELEMENTS", 200)
    monkeypatch.setattr(relevance, "COUNTED", 1)  # and sorted rather than counted
    for direction, wanted in zip(("i2t", "t2i"), whole, strict=True):
        assert torch.equal(rerank(scores, direction), wanted)


def test_published_numbers_of_answers_and_scores_left_alone():
    assert TOP == {"i2t": 15, "t2i": 20}
    scores = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    for direction, moved in (("i2t", 15 * 40), ("t2i", 20 * 60)):
        before = scores.clone()
        assert int((rerank(scores, direction) != scores).sum()) <= moved
        assert torch.equal(scores, before)


def test_the_leak_finds_what_the_caption_itself_does_not():
    """Both captions of image 1 prefer image 0 a little; image 1 prefers the second of them by far."""
    scores = torch.tensor([[0.9, 0.9, 0.95], [0.8, 0.89, 0.85]])
    captions = torch.tensor([1, 1, 0])
    honest, leaky = (rerank(scores, "t2i", siblings=siblings) for siblings in (None, captions))
    assert retrieval_ranks(scores, captions).t2i.tolist() == [2, 2, 1]
    assert retrieval_ranks(honest, captions).t2i.tolist() == [2, 1, 1]
    assert retrieval_ranks(leaky, captions).t2i.tolist() == [1, 1, 1]


def test_large_scores_keep_their_order():
    scores = 1e7 * torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) - 5e6
    assert_same_order(rerank(scores, "i2t").tolist(), slow_keys(scores.tolist(), scores.T.tolist(), 15))


@pytest.mark.bad_input
def test_what_cannot_be_reranked_is_named():
    scores = torch.rand(2, 3)
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        rerank(scores, "i2t", top=0)
    with pytest.raises(ValueError, match="images have none"):
        rerank(scores, "i2t", siblings=torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="captions of exactly one image each"):
        rerank(scores, "t2i", siblings=Relevance([0, 1], [0, 0], None, images=2, captions=3))
    with pytest.raises(ValueError, match="infinite"):
        rerank(torch.tensor([[float("inf"), 0.0]]), "i2t")
    with pytest.raises(ValueError, match="image 0 and caption 1 is NaN"):
        rerank(torch.tensor([[0.0, float("nan")]]), "i2t")
