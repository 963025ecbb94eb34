"""Probabilities of matches against plain loops, and what they promise on data whose truth is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tiny_data import DIM, make_data

from xmodal.cli import main
from xmodal.data import Relevance
from xmodal.evaluation.calibration import (
    Calibration,
    _fitted,
    auroc,
    calibration_of,
    evaluate_calibration,
    expected_calibration_error,
    first_answers,
    leads,
)
from xmodal.model import Matcher


def drawn(images, captions, seed):
    """Scores of which the right one is higher by a draw, and the image of every caption."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(captions) % images
    scores = 0.1 * torch.randn(images, captions, generator=generator)
    scores[index, torch.arange(captions)] += 0.25 + 0.15 * torch.randn(captions, generator=generator)
    return scores, index


def test_first_answers_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr("xmodal.evaluation.calibration.BLOCK_ELEMENTS", 21)  # several blocks
    scores, _ = drawn(7, 12, seed=0)
    relevance = Relevance([0, 1, 1, 2, 6], [0, 0, 3, 4, 11], None, images=7, captions=12)
    wanted = []
    for round_ in ("with", "without"):
        for caption in range(12):
            right = {int(i) for i, c in zip(relevance.image, relevance.caption, strict=True) if c == caption}
            places = [image for image in range(7) if round_ == "with" or image not in right]
            first, second = sorted(places, key=lambda image: -scores[image, caption].item())[:2]
            lead = scores[first, caption].double() - scores[second, caption].double()
            wanted.append(
                (scores[first, caption].item(), lead.item(), first in right, bool(right) and round_ == "with")
            )
    found = first_answers(scores, relevance)
    order = sorted(
        zip(found.score.tolist(), found.lead.tolist(), found.right.tolist(), found.answerable.tolist(), strict=True)
    )
    assert [tuple(map(float, row)) for row in order] == [
        pytest.approx(tuple(map(float, row))) for row in sorted(wanted)
    ]


def test_images_that_all_belong_are_asked_for_once():
    found = first_answers(torch.tensor([[0.9], [0.8]]), Relevance([0, 1], [0, 0], None, images=2, captions=1))
    assert found.right.tolist() == found.answerable.tolist() == [True]


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6))
def test_a_lead_is_the_distance_to_the_best_other(values):
    found = leads(torch.tensor(values, dtype=torch.float64)).tolist()
    for place, lead in enumerate(found):
        others = values[:place] + values[place + 1 :]
        assert lead == (values[place] - max(others) if others else 0)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=20),
    st.lists(st.integers(0, 6), min_size=1, max_size=20),
)
def test_auroc_counts_pairs(positive, negative):
    wanted = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative) / (len(positive) * len(negative))
    found = auroc(torch.tensor(positive), torch.tensor(negative))
    assert found == pytest.approx(wanted)
    labels = [1] * len(positive) + [0] * len(negative)
    assert found == pytest.approx(roc_auc_score(labels, positive + negative))
    assert math.isnan(auroc(torch.tensor(positive), torch.tensor([])))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30), st.integers(1, 20))
def test_the_calibration_error_is_that_of_a_loop(answers, bins):
    total = 0.0
    for place in range(bins):
        inside = [(p, r) for p, r in answers if min(int(p * bins), bins - 1) == place]
        if inside:
            confidence, accuracy = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            total += len(inside) / len(answers) * abs(confidence - accuracy)
    probability, right = (torch.tensor(column) for column in zip(*answers, strict=True))
    assert expected_calibration_error(probability.double(), right, bins=bins) == pytest.approx(total, abs=1e-6)


def test_the_fit_is_the_logistic_regression_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 0.01]) + 5
    truth = (features[:, 0] - 5 + 100 * (features[:, 1] - 5)).sigmoid()
    right = torch.rand(2000, generator=generator, dtype=torch.float64) < truth
    wanted = LogisticRegression(C=1e6, tol=1e-10, max_iter=1000)
    standard = (features - features.mean(dim=0)) / features.std(dim=0)
    wanted.fit(standard.numpy(), right.numpy())
    (*slopes, bias), least, most = _fitted(features, right)
    found = least + (most - least) * (features @ torch.tensor(slopes, dtype=torch.float64) + bias).sigmoid()
    torch.testing.assert_close(found, torch.from_numpy(wanted.predict_proba(standard.numpy())[:, 1]), atol=0.05, rtol=0)


def test_a_floor_and_a_ceiling_are_found():
    generator = torch.Generator().manual_seed(0)
    features = 4 * torch.randn(20000, 1, generator=generator, dtype=torch.float64)
    truth = 0.15 + 0.7 * (2 * features[:, 0]).sigmoid()
    _, least, most = _fitted(features, torch.rand(20000, generator=generator, dtype=torch.float64) < truth)
    assert (least, most) == (pytest.approx(0.15, abs=0.02), pytest.approx(0.85, abs=0.02))


def test_probabilities_hold_on_queries_that_were_not_fitted():
    calibration = Calibration.fit(*drawn(40, 1600, seed=0))
    held_out = drawn(80, 4000, seed=1)  # a larger collection than it was fitted to
    found = evaluate_calibration(calibration, *held_out)
    assert found["ECE"] <= 0.03
    wrong = replace(calibration, bias=calibration.bias + 2)
    assert evaluate_calibration(wrong, *held_out)["ECE"] > 0.1, "a wrong calibration is told"
    blind = replace(calibration, size_weight=0.0, bias=calibration.bias + calibration.size_weight * math.log(40))
    assert evaluate_calibration(blind, *held_out)["ECE"] > found["ECE"], "the number of images counts"
    answers = first_answers(*held_out)
    assert found["AUROC"] > 0.7
    pairs = torch.stack([answers.score, answers.score - answers.lead], dim=1)
    said = calibration.probability(pairs, images=80)[:, 0] >= 0.5
    assert found["missed"] == pytest.approx((~said[answers.answerable]).double().mean().item())
    assert found["false_alarms"] == pytest.approx(said[~answers.answerable].double().mean().item())


def test_separated_answers_and_equal_scores_give_finite_weights():
    apart = Calibration.fit(10 * torch.eye(5), torch.arange(5))
    assert apart.probability(torch.tensor([10.0, 0.0]), images=5)[0] > 0.9
    assert apart.says_no_match(torch.tensor([0.0, 0.0]), images=5)
    alike = Calibration.fit(torch.ones(3, 4), torch.tensor([0, 1, 2, 0]))
    assert 0 < alike.probability(torch.ones(3))[0] < 1


def test_the_best_two_are_all_that_counts():
    calibration = Calibration(5.0, 20.0, -1.0, -3.0, least=0.1, most=0.9)
    scores = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    best = scores.topk(2, dim=1)
    by_hand = 5 * scores + 20 * leads(scores) - math.log(50) - 3
    is_first = scores == scores.amax(dim=1, keepdim=True)
    torch.testing.assert_close(calibration.probability(scores), 0.1 * is_first + 0.8 * by_hand.sigmoid())
    torch.testing.assert_close(
        calibration.probability(scores).gather(1, best.indices), calibration.probability(best.values, images=50)
    )
    assert calibration.says_no_match(scores).shape == (6,)


def test_files(tmp_path):
    calibration = Calibration(5.0, 20.0, -1.0, -3.0, model="abc")
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path / "calibration.json", model="abc") == calibration
    with pytest.raises(ValueError, match="fitted to the scores of another model"):
        Calibration.load(tmp_path, model="abd")
    with pytest.raises(FileNotFoundError, match=r"no calibration at .*--calibrate dev"):
        Calibration.load(tmp_path / "nowhere.json")
    for damage in (
        "{",
        "[]",
        '{"bias": 3}',
        '{"score_weight": NaN, "lead_weight": 1, "size_weight": 1, "bias": 1}',
        "1",
    ):
        (tmp_path / "calibration.json").write_text(damage)
        with pytest.raises(ValueError, match="is damaged"):
            Calibration.load(tmp_path)


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match="there are 1 images"):
        Calibration.fit(torch.ones(1, 3), torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="there is no score"):
        Calibration(1.0, 1.0, 0.0, 0.0).probability(torch.ones(3, 0))
    with pytest.raises(ValueError, match="images is 2, but there are 3 answers"):
        Calibration(1.0, 1.0, 0.0, 0.0).probability(torch.ones(3), images=2)
    with pytest.raises(ValueError, match="bias must be finite"):
        Calibration(1.0, 1.0, 0.0, math.inf)
    with pytest.raises(ValueError, match="wanted 0 <= least <= most <= 1"):
        Calibration(1.0, 1.0, 0.0, 0.0, least=0.9, most=0.1)


def test_evaluate_fits_keeps_and_reports(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    data = make_data(tmp_path / "data")
    torch.manual_seed(0)
    image, text = {"name": "regions", "input_dim": DIM, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    matcher = Matcher(image, text, {"name": "cosine"}, vocabulary=["a", "and", "cat", "dog", "car"])
    model = tmp_path / "model"
    matcher.save_pretrained(model)
    command = ["evaluate", str(model), "--data.folder", str(data), "--data.split", "dev"]
    command += ["--json", str(tmp_path / "results.json")]
    main(command)
    assert "calibration" not in json.loads((tmp_path / "results.json").read_text())[str(model)]
    main([*command, "--calibrate", "train"])
    assert "probability of a match: " in capsys.readouterr().out
    (first,) = json.loads((tmp_path / "results.json").read_text()).values()
    main(command)  # it is kept beside the model
    (second,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert set(first["calibration"]) == {"ECE", "AUROC", "missed", "false_alarms"}
    assert first["calibration"] == second["calibration"]
    assert calibration_of(model) is not None
    matcher.save_pretrained(model)  # other weights, as far as anybody knows
    assert calibration_of(model) is None


def test_whole_numbers_lists_and_half_precision_have_probabilities():
    calibration = Calibration(score_weight=1.0, lead_weight=0.5, size_weight=0.0, bias=-2.0)
    wanted = [1 / (1 + math.exp(-(1.0 * 3 + 0.5 * 2 - 2))), 1 / (1 + math.exp(-(1.0 * 1 - 0.5 * 2 - 2)))]
    for scores in (torch.tensor([3, 1]), torch.tensor([3, 1]).half(), torch.tensor([3.0, 1.0]).numpy(), [3, 1]):
        found = calibration.probability(scores)
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(wanted)
    assert calibration.probability(torch.tensor([3.0, 1.0]).double()).tolist() == pytest.approx(wanted, rel=1e-12)


def test_scores_as_numpy_arrays_calibrate_as_tensors():
    scores, index = drawn(8, 16, seed=0)
    fitted = Calibration.fit(scores, index)
    assert Calibration.fit(scores.numpy(), index.numpy()) == fitted
    assert evaluate_calibration(fitted, scores.numpy(), index) == evaluate_calibration(fitted, scores, index)


@pytest.mark.bad_input
@pytest.mark.parametrize(("value", "problem"), [(math.nan, "image 1 and caption 2 is NaN"), (math.inf, "is infinite")])
def test_scores_without_a_probability(value, problem):
    scores, index = drawn(4, 8, seed=0)
    calibration = Calibration.fit(scores, index)
    scores[1, 2] = value
    with pytest.raises(ValueError, match=problem):
        Calibration.fit(scores, index)
    with pytest.raises(ValueError, match=problem):
        evaluate_calibration(calibration, scores, index)


@pytest.mark.bad_input
def test_answers_without_a_probability():
    calibration = Calibration(score_weight=1.0, lead_weight=0.5, size_weight=0.0, bias=-2.0)
    with pytest.raises(ValueError, match="the score of an answer is NaN"):
        calibration.probability(torch.tensor([3.0, math.nan]))
    with pytest.raises(ValueError, match="scores are a single number"):
        calibration.probability(torch.tensor(3.0))
    with pytest.raises(ValueError, match=r"scores have shape \(4,\)"):
        Calibration.fit(torch.zeros(4), torch.arange(4))
