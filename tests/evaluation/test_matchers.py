"""Matchers are evaluated alone, and together by the mean of their scores."""

from __future__ import annotations

import pytest
import torch

from xmodal.evaluation import evaluate_protocol
from xmodal.evaluation.matchers import evaluate_matchers

CAPTION_IMAGE = torch.tensor([0, 1, 2, 2])


class Given:
    """Stands for a matcher whose scores are known."""

    def __init__(self, seed):
        self.scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))

    def score_all(self, store, captions, *, progress):
        assert (store, list(captions), progress) == ("store", ["a", "b", "c", "d"], False)
        return self.scores.clone()


def evaluate(matchers, **options):
    return evaluate_matchers(matchers, "store", ["a", "b", "c", "d"], CAPTION_IMAGE, **options)


def test_one_matcher_has_no_ensemble():
    one = Given(1)
    assert evaluate({"one": one}) == {"one": evaluate_protocol(one.scores, CAPTION_IMAGE)}


@pytest.mark.parametrize("count", [2, 3])
def test_the_ensemble_is_the_mean_of_the_scores(count):
    matchers = {str(seed): Given(seed) for seed in range(count)}
    results = evaluate(matchers)
    for name, matcher in matchers.items():
        assert results[name] == evaluate_protocol(matcher.scores, CAPTION_IMAGE)
    mean = sum(matcher.scores for matcher in matchers.values()) / count
    assert results["ensemble"] == evaluate_protocol(mean, CAPTION_IMAGE)


def test_no_matcher_and_unknown_protocols_are_refused():
    with pytest.raises(ValueError, match="no matcher"):
        evaluate({})
    with pytest.raises(ValueError, match="did you mean 'coco-5k'"):
        evaluate({"one": Given(1)}, protocol="coco5k")
