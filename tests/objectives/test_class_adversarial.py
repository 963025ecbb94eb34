"""The reversal layer's sign and ramp, and whom the class adversary moves which way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.objectives import ClassAdversary, binomial_deviance_loss, reversal_ramp, reverse_gradient


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 5, generator=generator, dtype=torch.float64), torch.arange(3).repeat(2)


def adversary(**options) -> ClassAdversary:
    torch.manual_seed(0)
    fixed = {"feature_dim": 5, "dim": 4, "classes": 3, "metric": {"name": "binomial"}, "hidden_dim": 8, "ramp_steps": 0}
    return ClassAdversary(**{**fixed, **options}).double()


@given(st.floats(-3, 3))
def test_reversal_is_identity_forward_and_negates_backward(scale):
    x = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    y = reverse_gradient(x, scale)
    assert torch.equal(y, x)
    weight = torch.arange(6.0).reshape(2, 3)
    (y * weight).sum().backward()
    torch.testing.assert_close(x.grad, -scale * weight)


@given(st.floats(0, 3), st.floats(0.1, 20))
def test_ramp(progress, gamma):
    strength = reversal_ramp(progress, gamma)
    assert strength == pytest.approx(math.tanh(gamma * min(progress, 1) / 2))
    assert 0 <= strength <= 1
    assert reversal_ramp(progress + 0.1, gamma) >= strength


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("progress", "gamma", "message"),
    [(-0.1, 10.0, "progress must be at least 0"), (0.5, 0.0, "gamma must be positive"), (0.5, "1", "gamma must be a")],
)
def test_bad_ramp(progress, gamma, message):
    with pytest.raises(ValueError, match=message):
        reversal_ramp(progress, gamma)


@pytest.mark.parametrize("on", ["features", "embedding"])
@pytest.mark.parametrize(("step", "ramp_steps", "ramp"), [(0, 10, 0.0), (5, 10, math.tanh(2.5)), (3, 0, math.tanh(5))])
def test_what_reaches_whom(on, step, ramp_steps, ramp):
    """The classifier gets its own gradient whole; what it reads gets it reversed and scaled."""
    features, labels = batch()
    features.requires_grad_()
    embed = torch.nn.Linear(5, 4).double()
    objective = adversary(on=on, weight=0.3, ramp_steps=ramp_steps)
    terms = objective(features, labels, embed=embed, step=step)

    def adversary_by_hand():
        logits = objective.classifier(features if on == "features" else embed(features))
        return sum(row.logsumexp(0) - row[c] for row, c in zip(logits, labels, strict=True)) / len(labels)

    plain = adversary_by_hand()
    torch.testing.assert_close(terms["adversary"], plain)
    classifier = list(objective.classifier.parameters())
    for got, expected in zip(
        torch.autograd.grad(terms["adversary"], [*classifier, features], retain_graph=True),
        torch.autograd.grad(plain, [*classifier, features], retain_graph=True),
        strict=True,
    ):
        factor = -0.3 * ramp if got.shape == features.shape else 1.0
        torch.testing.assert_close(got, factor * expected)
    reached = torch.autograd.grad(terms["adversary"], embed.weight, retain_graph=True, allow_unused=True)[0]
    assert (reached is None) == (on == "features")

    torch.testing.assert_close(terms["metric"], binomial_deviance_loss(embed(features), labels))
    torch.testing.assert_close(terms["total"], terms["metric"] + terms["adversary"])


def test_gradient_steps_fool_the_classifier_and_teach_it():
    features, labels = batch()
    read = features.clone().requires_grad_()
    objective = adversary(weight=1.0)
    embed = torch.nn.Linear(5, 4).double()
    before = objective(read, labels, embed=embed, step=0)["adversary"]
    reached = torch.autograd.grad(before, [read, *objective.classifier.parameters()])
    with torch.no_grad():
        moved = read - 0.1 * reached[0]
        assert objective(moved, labels, embed=embed, step=0)["adversary"] > before
        for parameter, gradient in zip(objective.classifier.parameters(), reached[1:], strict=True):
            parameter -= 0.1 * gradient
        assert objective(read, labels, embed=embed, step=0)["adversary"] < before


@pytest.mark.bad_input
def test_bad_options():
    with pytest.raises(ValueError, match="on must be one of features, embedding; got 'both'"):
        adversary(on="both")
    with pytest.raises(ValueError, match="ramp_steps must be at least 0"):
        adversary(ramp_steps=-1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 0, 1, 3], r"labels must be in 0\.\.2"),
        ([0, 0, 0, 0, 0, 0], "two classes"),
        ([0, 0, 1, 1, 1, 2], "class 2 has a single image"),
        ([0, 1], r"\(6, 4\) and \(2,\)"),
    ],
)
def test_bad_batches(labels, message):
    with pytest.raises(ValueError, match=message):
        adversary()(batch()[0], torch.tensor(labels), embed=torch.nn.Linear(5, 4).double(), step=0)
