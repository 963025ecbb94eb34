"""Several protocols in one pass, before or after normalization and re-ranking: each as if it were the only one."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from xmodal.data.relevance import Judgements, Relevance
from xmodal.evaluation import PROTOCOLS, evaluate_protocol, evaluate_relevance, evaluate_retrieval
from xmodal.evaluation.after import RERANKINGS, AfterScoring, evaluate_scores
from xmodal.evaluation.hubs import Bank, hubness, querybank, subtract_offsets
from xmodal.evaluation.protocols import Protocol, cut_folds
from xmodal.evaluation.relevance import evaluate_direction
from xmodal.evaluation.reranking import rerank

OF_IMAGE = torch.tensor([4, 1, 0, 4, 5, 2, 3, 2, 0])
RELEVANCE = Relevance.from_caption_image(OF_IMAGE)
SCORES = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
JUDGEMENTS = Judgements(
    Relevance([0, 0, 3], [1, 4, 6], None, images=6, captions=9), Relevance([5, 2], [0, 0], None, images=6, captions=9)
)


@pytest.fixture
def folded(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "tiny-3fold", Protocol("tiny-3fold", images=6, captions=9, folds=3))
    return ["tiny-3fold", "plain"]


def test_all_protocols_of_one_pass_are_what_each_is_alone(folded):
    judged = {"mine": partial(evaluate_direction, judgements=JUDGEMENTS)}
    results = evaluate_scores(SCORES, RELEVANCE, folded, judged)
    assert results["plain"] == evaluate_protocol(SCORES, OF_IMAGE)
    assert results["tiny-3fold"] == evaluate_protocol(SCORES, OF_IMAGE, "tiny-3fold")
    assert results["mine"] == evaluate_relevance(SCORES, JUDGEMENTS)
    assert results["mine"]["i2t"]["queries"] == 2
    assert results["mine"]["t2i"]["queries"] == 1


@pytest.mark.parametrize("name", RERANKINGS)
def test_each_direction_is_evaluated_after_its_own_reranking(name):
    judged = {"mine": partial(evaluate_direction, judgements=JUDGEMENTS)}
    results = evaluate_scores(SCORES, RELEVANCE, ["plain"], judged, after=AfterScoring(rerank=name), hubs=True)
    siblings = {"i2t": None, "t2i": OF_IMAGE if name == "mtfn_leak" else None}
    for direction, other in siblings.items():
        matrix = rerank(SCORES, direction, siblings=other)
        assert results["plain"][direction] == evaluate_retrieval(matrix, OF_IMAGE)[direction]
        assert results["mine"][direction] == evaluate_relevance(matrix, JUDGEMENTS)[direction]
        assert results["plain"]["hubness"][direction] == hubness(matrix)[direction]
    recalls = [results["plain"][side][f"R@{k}"] for side in siblings for k in (1, 5, 10)]
    assert results["plain"]["rsum"] == pytest.approx(sum(recalls))


def test_a_fold_is_normalized_by_itself_or_by_its_part_of_the_bank(folded):
    generator = torch.Generator().manual_seed(1)
    bank = Bank(*(torch.randn(shape, generator=generator) for shape in ((6, 4), (3, 9), (3, 4))))
    after = AfterScoring(normalize="querybank", temperature=0.5)
    for given in (None, bank):
        found = evaluate_scores(SCORES, RELEVANCE, folded, after=after, bank=given)
        for fold, result in zip(cut_folds(OF_IMAGE, 3), found["tiny-3fold"]["folds"], strict=True):
            part = SCORES[fold.images][:, fold.captions]
            of_bank = None if given is None else given.select(fold.images, fold.captions)
            normalized = subtract_offsets(part, querybank(part, of_bank, temperature=0.5))
            assert result == evaluate_retrieval(normalized, fold.caption_image)
        whole = subtract_offsets(SCORES, querybank(SCORES, given, temperature=0.5))
        assert found["plain"] == evaluate_protocol(whole, OF_IMAGE)


@pytest.mark.bad_input
def test_wrong_steps_are_named(folded):
    with pytest.raises(ValueError, match="no normalization 'querybanks'"):
        AfterScoring(normalize="querybanks")
    with pytest.raises(ValueError, match=r"no re-ranking 'mtf' \(did you mean 'mtfn'\?\); known: mtfn, mtfn_leak"):
        AfterScoring(rerank="mtf")
    with pytest.raises(ValueError, match="temperature is 2 without a normalization"):
        AfterScoring(temperature=2)
    with pytest.raises(ValueError, match=r"in the fold of images 4, 1, .*: dbsn needs a bank"):
        evaluate_scores(SCORES, RELEVANCE, folded, after=AfterScoring(normalize="dbsn"))
