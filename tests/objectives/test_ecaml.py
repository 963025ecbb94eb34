"""Energy confusion against plain loops, and its gradient against the rule of the released code."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.objectives import (
    EnergyConfusion,
    binomial_deviance_loss,
    ecaml,
    energy_confusion_loss,
    row_norm_penalty,
)


def batch(seed: int = 0, classes: int = 3, each: int = 2, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(each)
    return torch.randn(len(labels), dim, generator=generator, dtype=torch.float64), labels


def oracle_energy(e, y) -> float:
    halves = [0.5 * float(((e[i] - e[j]) ** 2).sum()) for j in range(len(y)) for i in range(j) if y[i] != y[j]]
    return sum(halves) / len(halves)


@given(st.integers(0, 999), st.integers(2, 4), st.integers(1, 3))
def test_equals_the_plain_loop(seed, classes, each):
    embeddings, labels = batch(seed, classes, each)
    energy = oracle_energy(embeddings, labels)
    assert energy_confusion_loss(embeddings, labels, form="expectation").item() == pytest.approx(energy)
    assert energy_confusion_loss(embeddings, labels).item() == pytest.approx(math.log(energy))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = energy_confusion_loss(embeddings[order], labels[order])
    torch.testing.assert_close(shuffled, energy_confusion_loss(embeddings, labels))


def test_the_gradient_is_that_of_the_released_code():
    """dE/E by hand: every pair of different classes adds (z_i - z_j) / n to z_i and takes it from z_j; then over E."""
    embeddings, labels = batch()
    expected, pairs = torch.zeros_like(embeddings), 12
    for j in range(len(labels)):
        for i in range(j):
            if labels[i] != labels[j]:
                expected[i] += (embeddings[i] - embeddings[j]) / pairs
                expected[j] -= (embeddings[i] - embeddings[j]) / pairs
    expected /= oracle_energy(embeddings, labels)
    energy_confusion_loss(embeddings.requires_grad_(), labels).backward()
    torch.testing.assert_close(embeddings.grad, expected)


@pytest.mark.parametrize("form", ["log", "expectation"])
def test_gradcheck(form):
    embeddings, labels = batch()
    embeddings.requires_grad_()
    assert torch.autograd.gradcheck(lambda e: energy_confusion_loss(e, labels, form=form), embeddings)


def test_released_selection():
    """In the released layout a pair draws its images at least two places apart, from all images but the last."""
    labels = torch.arange(10).repeat_interleave(2)
    images, negatives = len(labels), 3
    every = sum(labels[i] != labels[j] for j in range(images) for i in range(j))
    seen = torch.zeros(images, images)
    for seed in range(40):
        # Image k sits at sqrt(2) on an axis of its own: a selected pair adds 2 to E's sum and shows in the gradient.
        embeddings = (math.sqrt(2) * torch.eye(images)).requires_grad_()
        energy = energy_confusion_loss(
            embeddings, labels, form="expectation", negatives=negatives, generator=torch.Generator().manual_seed(seed)
        )
        assert energy.item() == pytest.approx(2 * negatives * (images - 2 * negatives) / every)
        energy.backward()
        selected = (-embeddings.grad * every / math.sqrt(2)).round().triu(1)
        assert selected[: images - 2 * negatives].sum(dim=1).eq(negatives).all()
        seen += selected
    places = torch.arange(images)
    allowed = (places[None, :] >= places[:, None] + 2) & (places[:, None] < images - 2 * negatives)
    assert torch.equal(seen > 0, allowed)


def test_selection_keeps_different_classes_only():
    embeddings, labels = batch(classes=2, each=6)
    loss = energy_confusion_loss(embeddings, labels, form="expectation", negatives=5)
    assert 0 < loss.item() < oracle_energy(embeddings, labels)


def released_energy(embeddings, labels, negatives, drawn):
    """E and dE/E by the loops of the released layer; `drawn` says which later images each image is paired with."""
    images, energy, gradient = len(labels), 0.0, torch.zeros_like(embeddings)
    together = sum(bool(labels[i] == labels[j]) for i in range(images) for j in range(i + 1, images))
    apart = images * (images - 1) // 2 - together
    for i in range(images - 2 * negatives):
        for j in drawn[i]:
            pairs = together if labels[i] == labels[j] else apart
            difference = embeddings[i] - embeddings[j]
            energy += 0.5 * float(difference @ difference) / pairs
            gradient[i] += difference / pairs
            gradient[j] -= difference / pairs
    return energy, gradient / energy


@pytest.mark.parametrize("each", [1, 2, 3, 5])
@pytest.mark.parametrize("shuffled", [False, True])
def test_pairs_of_one_class_count_as_released(monkeypatch, each, shuffled):
    """Loss and gradient with any number of images a class; the pairs that the loop draws are given to both."""
    embeddings, labels = batch(classes=4, each=each, seed=each)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    labels = labels[order] if shuffled else labels
    images, negatives, generator = len(labels), 1 if each == 1 else 3, torch.Generator().manual_seed(2)
    drawn = [
        (i + 2 + torch.randperm(images - i - 2, generator=generator)[:negatives]).tolist()
        for i in range(images - 2 * negatives)
    ]
    selected = torch.zeros(images, images, dtype=torch.bool)
    for i, later in enumerate(drawn):
        selected[i, later] = True
    monkeypatch.setattr(ecaml, "_drawn_pairs", lambda *_: selected)
    energy, gradient = released_energy(embeddings, labels, negatives, drawn)
    loss = energy_confusion_loss(embeddings.requires_grad_(), labels, negatives=negatives, same_class=True)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(energy))
    torch.testing.assert_close(embeddings.grad, gradient)
    # Two images a class side by side: none of one class is drawn, and leaving them out changes nothing.
    without = energy_confusion_loss(embeddings, labels, negatives=negatives)
    assert (without.item() == pytest.approx(loss.item())) == (not selected[labels[:, None] == labels].any())
    if each == 2 and not shuffled:
        assert without.item() == pytest.approx(loss.item())


def test_every_pair_of_one_class_counts_without_draws():
    embeddings, labels = batch(classes=3, each=3)
    apart = energy_confusion_loss(embeddings, labels, form="expectation")
    halves = torch.cdist(embeddings, embeddings).square().triu(1) / 2
    together = halves[labels[:, None] == labels].sum() / 9
    both = energy_confusion_loss(embeddings, labels, form="expectation", same_class=True)
    torch.testing.assert_close(both, apart + together)
    objective = EnergyConfusion({"name": "binomial"}, same_class=True, form="expectation", row_weight=0)
    torch.testing.assert_close(objective(embeddings, labels)["confusion"], both)


@pytest.mark.parametrize("weight", [torch.eye(3), torch.randn(3, 5, generator=torch.Generator().manual_seed(0))])
def test_row_norm_penalty_equals_the_plain_loop(weight):
    expected = sum((sum(float(x) ** 2 for x in row) - 1) ** 2 for row in weight) / len(weight)
    assert row_norm_penalty(weight).item() == pytest.approx(expected)


def test_row_norm_gradient_is_that_of_the_released_code():
    weight = torch.randn(3, 5, requires_grad=True)
    (0.5 * row_norm_penalty(weight)).backward()
    expected = torch.stack([4 * (0.5 / 3) * (row @ row - 1) * row for row in weight.detach()])
    torch.testing.assert_close(weight.grad, expected)


def test_confusion_moves_the_embedding_layer_and_nothing_else():
    features, labels = batch()
    backbone, embed = torch.nn.Linear(4, 4).double(), torch.nn.Linear(4, 3).double()
    objective = EnergyConfusion({"name": "binomial"})
    terms = objective(backbone(features), labels, embed=embed, step=0)
    gradients = torch.autograd.grad(terms["confusion"], embed.weight, retain_graph=True)
    assert gradients[0].abs().sum() > 0
    assert torch.autograd.grad(terms["confusion"], backbone.weight, retain_graph=True, allow_unused=True) == (None,)
    # The backbone's whole gradient is that of the metric loss alone, exactly.
    terms["total"].backward()
    whole, backbone.weight.grad = backbone.weight.grad, None
    binomial_deviance_loss(embed(backbone(features)), labels).backward()
    assert torch.equal(whole, backbone.weight.grad)


def test_terms():
    features, labels = batch()
    embed = torch.nn.Linear(4, 3).double()
    objective = EnergyConfusion({"name": "triplet"}, weight=0.3, row_weight=0.7, form="expectation")
    terms = objective(features, labels, embed=embed, step=5)
    torch.testing.assert_close(
        terms["total"], terms["metric"] + 0.3 * terms["confusion"] + 0.7 * row_norm_penalty(embed.weight)
    )
    assert terms["confusion"].item() == pytest.approx(oracle_energy(embed(features).detach(), labels))
    layers = torch.nn.Sequential(embed)
    without = EnergyConfusion({"name": "triplet"}, row_weight=0)(features, labels, embed=layers, step=5)
    assert without.keys() == {"metric", "confusion", "total"}


def test_equal_embeddings_are_finite():
    embeddings = torch.ones(4, 2, requires_grad=True)
    loss = energy_confusion_loss(embeddings, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.eq(0).all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 0, 0, 0], {}, "no pair of images of different classes"),
        ([0, 1], {}, r"\(4, 2\) and \(2,\)"),
        ([0, 0, 1, 1], {"form": "exp"}, "form must be one of log, expectation"),
        ([0, 0, 1, 1], {"negatives": 2}, "less than half the batch of 4"),
        ([0, 0, 1, 1], {"negatives": 0}, "at least 1"),
    ],
)
def test_bad_input(labels, options, message):
    with pytest.raises(ValueError, match=message):
        energy_confusion_loss(torch.ones(4, 2), torch.tensor(labels), **options)
    with pytest.raises(ValueError, match="no pair of images to confuse"):
        energy_confusion_loss(torch.ones(1, 2), torch.tensor([0]), same_class=True)


@pytest.mark.bad_input
def test_bad_options():
    with pytest.raises(ValueError, match="form must be one of"):
        EnergyConfusion({"name": "binomial"}, form="exp")  # type: ignore[arg-type]
    features, labels = batch()
    objective = EnergyConfusion({"name": "binomial"})
    with pytest.raises(ValueError, match=r"is a Linear, got Sequential; set row_weight: 0"):
        objective(features, labels, embed=torch.nn.Sequential(torch.nn.Linear(4, 3)).double(), step=0)
