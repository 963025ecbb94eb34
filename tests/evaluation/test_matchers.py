"""Matchers are evaluated alone, and together by the mean of their scores; only pairs that count are scored."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from xmodal.data import Caption, Relevance
from xmodal.data.split import SomeImages, Split
from xmodal.evaluation import PROTOCOLS, evaluate_protocol, evaluate_relevance
from xmodal.evaluation.after import AfterScoring, evaluate_scores
from xmodal.evaluation.hubs import Bank, hubness
from xmodal.evaluation.matchers import evaluate_matchers
from xmodal.evaluation.protocols import Protocol
from xmodal.evaluation.relevance import evaluate_direction
from xmodal.evaluation.within import evaluate_within, sibling_relevance
from xmodal.scoring.memory import fill_matrix

CAPTION_IMAGE = torch.tensor([0, 1, 2, 2])
STORE = range(3)


class Given:
    """Stands for a matcher whose scores are known, of images that are their places and captions that are letters."""

    def __init__(self, seed, shape=(3, 4)):
        self.scores = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self.scored = 0

    def score_all(self, store, captions, *, progress, out=None, overwrite=False):
        assert not progress
        images = store.positions if isinstance(store, SomeImages) else torch.tensor(store)
        scores = self.scores[images][:, [ord(caption) - ord("a") for caption in captions]]
        self.scored += scores.numel()
        return fill_matrix(tuple(scores.shape), scores.dtype, out, overwrite, lambda matrix: matrix.copy_(scores))


def evaluate(matchers, **options):
    return evaluate_matchers(matchers, STORE, ["a", "b", "c", "d"], CAPTION_IMAGE, **options)


def test_one_matcher_has_no_ensemble():
    one = Given(1)
    assert evaluate({"one": one}) == {"one": evaluate_protocol(one.scores, CAPTION_IMAGE)}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_ensemble_is_the_mean_of_the_scores(count, on_disk, tmp_path):
    matchers = {str(seed): Given(seed) for seed in range(count)}
    seen = []
    out = tmp_path / "new" / "scores.npy" if on_disk else None
    results = evaluate(matchers, out=out, inspect=seen.append)
    for name, matcher in matchers.items():
        assert results[name] == evaluate_protocol(matcher.scores, CAPTION_IMAGE)
    mean = sum(matcher.scores for matcher in matchers.values()) / count
    assert results["ensemble"] == evaluate_protocol(mean, CAPTION_IMAGE)
    assert torch.equal(*seen, mean)
    if on_disk:
        assert np.array_equal(np.load(out), mean)
        assert [file.name for file in out.parent.iterdir()] == ["scores.npy"]


def test_scores_of_one_matcher_are_written_as_they_are(tmp_path):
    one, out = Given(1), tmp_path / "scores.npy"
    out.write_bytes(b"of an earlier evaluation")
    assert evaluate({"one": one}, out=out) == evaluate({"one": one})
    assert np.array_equal(np.load(out), one.scores)


def test_judgements_are_evaluated_beside_the_protocol():
    matchers = {"one": Given(1), "two": Given(2)}
    judgements = Relevance([0, 0, 2], [0, 3, 1], [1.0, 0.5, 1.0], images=3, captions=4)
    results = evaluate(matchers, judgements=judgements)
    plain = evaluate(matchers)
    for name in ("one", "two", "ensemble"):
        judged = results[name].pop("judged")
        assert results[name] == plain[name]
    assert judged == evaluate_relevance((matchers["one"].scores + matchers["two"].scores) / 2, judgements)


@pytest.mark.parametrize("count", [1, 2])
def test_a_bank_is_scored_by_every_matcher_and_by_their_mean(folded, count):
    """Images 1 and 4 and captions d, e and f serve as a bank for all."""
    store, _, of_image = folded
    bank = Split(SomeImages(store, [1, 4]), [Caption("", "", name, "") for name in "def"], None)
    matchers = {str(seed): Given(seed, (6, 9)) for seed in range(count)}
    after = AfterScoring(normalize="sinkhorn", temperature=0.5)
    seen = []
    options = {"after": after, "bank": bank, "hubs": True}
    results = evaluate_matchers(matchers, *folded, inspect=seen.append, **options)
    mean = sum(matcher.scores for matcher in matchers.values()) / count
    every = {
        **{name: matcher.scores for name, matcher in matchers.items()},
        **({"ensemble": mean} if count > 1 else {}),
    }
    for name, scores in every.items():
        of_bank = Bank(scores[:, 3:6], scores[[1, 4]], scores[[1, 4]][:, 3:6])
        normalized = after.normalized(scores, of_bank)
        assert results[name] == evaluate_protocol(normalized, of_image) | {
            "folds": results[name]["folds"],
            "hubness": hubness(normalized),
        }
    assert torch.allclose(*seen, normalized)
    cut = evaluate_matchers(matchers, *folded, protocol="tiny-3fold", **options)[list(every)[-1]]
    relevance = Relevance.from_caption_image(of_image)
    assert cut == evaluate_scores(scores, relevance, ["tiny-3fold"], after=after, bank=of_bank, hubs=True)["tiny-3fold"]


def test_further_protocols_are_beside_the_first(folded):
    one, judgements = Given(1, (6, 9)), Relevance([0, 0, 2], [0, 3, 1], None, images=6, captions=9)
    evaluators = {"mine": partial(evaluate_direction, judgements=judgements)}
    options = {"evaluators": evaluators, "judgements": judgements}
    (result,) = evaluate_matchers({"": one}, *folded, protocol=["mine", "plain", "tiny-3fold"], **options).values()
    judged = evaluate_relevance(one.scores, judgements)
    assert result["judged"] == judged
    assert {name: result[name] for name in judged} == judged
    assert list(result["also"]) == ["plain", "tiny-3fold"]
    for name, other in result["also"].items():
        assert other == evaluate_protocol(one.scores, folded[2], name)
    assert one.scored == 54


@pytest.fixture
def folded(monkeypatch):
    """A protocol of three folds of two images, and captions that speak of images in another order than the store's."""
    monkeypatch.setitem(PROTOCOLS, "tiny-3fold", Protocol("tiny-3fold", images=6, captions=9, folds=3))
    return range(6), list("abcdefghi"), torch.tensor([4, 1, 0, 4, 5, 2, 3, 2, 0])


@pytest.mark.parametrize("count", [1, 2])
def test_only_pairs_within_folds_are_scored(folded, count):
    matchers = {str(seed): Given(seed, (6, 9)) for seed in range(count)}
    results = evaluate_matchers(matchers, *folded, protocol="tiny-3fold")
    mean = sum(matcher.scores for matcher in matchers.values()) / count
    assert results[["0", "ensemble"][count - 1]] == evaluate_protocol(mean, folded[2], "tiny-3fold")
    # Captions of images 4 and 1, 0 and 5, 2 and 3.
    assert [matcher.scored for matcher in matchers.values()] == [2 * 3 + 2 * 3 + 2 * 3] * count


def test_of_coco_a_fifth_is_scored():
    """At the published size, with scores that are only counted."""

    class Counted:
        scored = 0

        def score_all(self, store, captions, *, progress):
            self.scored += len(store) * len(captions)
            return torch.zeros(1, 1).expand(len(store), len(captions))

    matcher, caption_image = Counted(), torch.arange(5000).repeat_interleave(5)
    evaluate_matchers({"": matcher}, range(5000), ["a"] * 25000, caption_image, protocol="coco-1k-5fold")
    assert matcher.scored == 5000 * 25000 // 5


def test_the_whole_matrix_is_scored_when_asked_for_and_folds_stay_the_same(folded, tmp_path):
    matcher = Given(0, (6, 9))
    results = evaluate_matchers({"": matcher}, *folded, protocol="tiny-3fold", out=tmp_path / "scores.npy")
    assert matcher.scored == 54
    assert results == evaluate_matchers({"": matcher}, *folded, protocol="tiny-3fold")


def test_what_cannot_be_evaluated_is_refused_before_anything_is_scored(tmp_path):
    matcher = Given(1)
    with pytest.raises(ValueError, match="no matcher"):
        evaluate({})
    with pytest.raises(ValueError, match="did you mean 'coco-5k'"):
        evaluate({"one": matcher}, protocol="coco5k")
    with pytest.raises(ValueError, match="'f30k-1k' takes 1000 images and 5000 captions, but there are 3 x 4"):
        evaluate({"one": matcher}, protocol="f30k-1k")
    with pytest.raises(ValueError, match="protocols are plain, plain; wanted at least one, each once"):
        evaluate({"one": matcher}, protocol=["plain", "plain"])
    with pytest.raises(ValueError, match=r"scores\.csv"):
        evaluate({"one": matcher}, out=tmp_path / "scores.csv")
    with pytest.raises(ValueError, match="relevance is of 1 images and 1 captions"):
        evaluate({"one": matcher}, judgements=Relevance([0], [0], None, images=1, captions=1))
    with pytest.raises(ValueError, match="image 3 has no caption"):
        evaluate_matchers({"one": matcher}, range(4), ["a", "b", "c", "d"], CAPTION_IMAGE)
    assert matcher.scored == 0


@pytest.mark.bad_input
def test_no_model_takes_the_name_of_the_ensemble():
    matchers = {"ensemble": Given(1), "other": Given(2)}
    with pytest.raises(ValueError, match="a model is called 'ensemble', as the mean of all is"):
        evaluate(matchers)
    assert not any(matcher.scored for matcher in matchers.values())
    alone = Given(1)
    assert evaluate({"ensemble": alone}) == {"ensemble": evaluate_protocol(alone.scores, CAPTION_IMAGE)}
    scorers = dict.fromkeys(("ensemble", "other"), lambda queries: torch.eye(3)[list(queries)])
    with pytest.raises(ValueError, match="a model is called 'ensemble'"):
        evaluate_within(scorers, sibling_relevance([0, 0, 1]))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "has_bank", "problem"),
    [
        ({"normalize": "dbsn"}, False, "dbsn needs a bank"),
        ({"normalize": "dual_softmax"}, True, "dual_softmax normalizes by the queries of the test set"),
        ({"normalize": "querybank", "temperature": 0.0}, False, "temperature must be positive, got 0"),
        ({"normalize": "sinkhorn", "temperature": -1.0}, False, "temperature must be positive, got -1"),
        ({"normalize": "sinkhorn", "temperature": float("nan")}, False, "temperature must be positive, got nan"),
        ({"normalize": "sinkhorn", "temperature": float("inf")}, False, "temperature must be finite, got inf"),
    ],
)
def test_a_normalization_that_cannot_be_is_refused_before_anything_is_scored(options, has_bank, problem):
    matcher = Given(1)
    bank = Split(STORE, [Caption("0", "0", "a", "train")], Relevance.from_caption_image([0], 3)) if has_bank else None
    with pytest.raises(ValueError, match=problem):
        evaluate({"one": matcher}, after=AfterScoring(**options), bank=bank)
    assert matcher.scored == 0
