from __future__ import annotations

import pytest
import torch

from xmodal.heads import BFAN, SCAN, Cosine
from xmodal.scoring import score_all, shortlist

torch.manual_seed(0)
REGIONS, WORDS = torch.randn(30, 5, 16), torch.randn(12, 7, 16)
WORD_MASK = torch.arange(7) < torch.randint(2, 8, (12, 1))


@pytest.mark.parametrize("head", [SCAN(), BFAN(), Cosine("max")], ids=str)
@pytest.mark.parametrize("wanted", ["images", "captions"])
def test_a_shortlist_of_everything_is_the_exact_ranking(head, wanted):
    found = shortlist(head, REGIONS, WORDS, None, WORD_MASK, k=1000, wanted=wanted)
    scores = score_all(head, REGIONS, WORDS, None, WORD_MASK)
    scores = scores.T if wanted == "images" else scores
    torch.testing.assert_close(found.scores, scores.sort(dim=1, descending=True).values, atol=2e-5, rtol=0)
    torch.testing.assert_close(scores.gather(1, found.candidates), found.scores, atol=2e-5, rtol=0)
    assert found.recall_of_exact_top10 == 100.0


def test_recall_is_the_share_of_the_exact_top_ten_on_the_list():
    found = shortlist(SCAN(), REGIONS, WORDS, None, WORD_MASK, k=12)
    best = score_all(SCAN(), REGIONS, WORDS, None, WORD_MASK).T.topk(10).indices.tolist()
    hits = sum(len(set(some) & set(row)) for some, row in zip(best, found.candidates.tolist(), strict=True))
    assert found.candidates.shape == (12, 12)
    assert found.recall_of_exact_top10 == pytest.approx(100 * hits / 120)
    assert 0 < found.recall_of_exact_top10 < 100


def test_nothing_is_checked_when_not_asked():
    assert shortlist(SCAN(), REGIONS, WORDS, k=3, checked_queries=0).recall_of_exact_top10 is None


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        shortlist(SCAN(), REGIONS, WORDS, k=0)
    with pytest.raises(ValueError, match="wanted must be one of images, captions"):
        shortlist(SCAN(), REGIONS, WORDS, wanted="words")  # type: ignore[arg-type]
