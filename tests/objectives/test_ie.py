"""Include and exclude loss and center loss against plain loops, and how the centers move."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.objectives import IncludeExclude, center_loss, include_exclude_loss
from xmodal.objectives.ie import moved_centers

FORMS = ["magnet", "mean-distance", "exp-hinge"]


def problem(seed: int, images: int = 5, classes: int = 4, dim: int = 3):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(images, dim, generator=generator, dtype=torch.float64)
    centers = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(classes, (images,), generator=generator), centers


def oracle(form, e, y, centers, margin, variance) -> float:
    def d(i, c):
        return float(((e[i] - centers[c]) ** 2).sum())

    images, classes = range(len(y)), range(len(centers))
    if variance is None:
        variance = sum(d(i, y[i]) for i in images) / len(y)
    s, losses = 1 / (2 * variance), []
    for i in images:
        others = [d(i, c) for c in classes if c != y[i]]
        mean = sum(others) / len(others)
        if form == "magnet":
            ratio = math.exp(-s * d(i, y[i]) - margin) / (sum(math.exp(-s * x) for x in others) / len(others))
            losses.append(max(0.0, -math.log(ratio)))
        elif form == "mean-distance":
            losses.append(max(0.0, margin + d(i, y[i]) - mean))
        else:
            losses.append(max(0.0, margin + math.exp(-s * mean) - math.exp(-s * d(i, y[i]))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("form", FORMS)
@given(
    seed=st.integers(0, 999),
    classes=st.integers(2, 5),
    margin=st.sampled_from([0.0, 0.3, 1.0]),
    variance=st.sampled_from([None, 0.5, 3.0]),
)
@settings(max_examples=25)
def test_equals_the_plain_loop(form, seed, classes, margin, variance):
    embeddings, labels, centers = problem(seed, classes=classes)
    loss = include_exclude_loss(embeddings, labels, centers, form=form, margin=margin, variance=variance)
    assert loss.item() == pytest.approx(oracle(form, embeddings, labels, centers, margin, variance), abs=1e-12)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        include_exclude_loss(embeddings[order], labels[order], centers, form=form, margin=margin, variance=variance),
        loss,
    )


@given(st.integers(0, 999))
def test_center_loss_equals_the_plain_loop(seed):
    embeddings, labels, centers = problem(seed)
    expected = sum(0.5 * float(((x - centers[c]) ** 2).sum()) for x, c in zip(embeddings, labels, strict=True)) / len(
        labels
    )
    assert center_loss(embeddings, labels, centers).item() == pytest.approx(expected)


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form):
    embeddings, labels, centers = problem(0)
    inputs = (embeddings.requires_grad_(), centers.requires_grad_())

    def loss(e, c):
        return include_exclude_loss(e, labels, c, form=form, margin=1.0, variance=2.0)

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("form", [*FORMS, "center"])
def test_an_image_on_its_center_is_finite(form):
    objective = IncludeExclude(dim=2, classes=3, form=form)
    features = objective.centers.detach()[[0, 1]].clone().requires_grad_()
    terms = objective(features, torch.tensor([0, 1]), embed=torch.nn.Identity(), step=0)
    terms["total"].backward()
    assert terms["total"].isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@given(st.integers(0, 999), st.sampled_from([0.1, 0.5, 1.0]))
def test_moving_average_equals_the_plain_loop(seed, rate):
    embeddings, labels, centers = problem(seed)
    expected = centers.clone()
    for c in range(len(centers)):
        own = [x for x, label in zip(embeddings, labels, strict=True) if label == c]
        if own:
            expected[c] += rate * (sum(own) / len(own) - expected[c])
    torch.testing.assert_close(moved_centers(centers, embeddings, labels, rate=rate), expected)


def test_centers_are_learned_or_moved():
    features, labels, _ = problem(0)
    embed = torch.nn.Linear(3, 3).double()
    learned = IncludeExclude(dim=3, classes=4).double()
    learned(features, labels, embed=embed, step=0)["centers"].backward()
    assert learned.centers.grad is not None
    assert learned.centers.grad.abs().sum() > 0

    moved = IncludeExclude(dim=3, classes=4, center_rate=0.5).double()
    before = moved.centers.clone()
    moved.eval()(features, labels, embed=embed, step=0)
    assert torch.equal(moved.centers, before)
    moved.train()(features, labels, embed=embed, step=0)["total"].backward()
    torch.testing.assert_close(moved.centers, moved_centers(before, embed(features).detach(), labels, rate=0.5))
    assert "centers" in moved.state_dict()
    assert "centers" not in dict(moved.named_parameters())


@pytest.mark.parametrize("form", [*FORMS, "center"])
def test_terms(form):
    features, labels, _ = problem(0)
    embed = torch.nn.Linear(3, 2).double()
    objective = IncludeExclude(dim=2, classes=4, form=form, weight=0.3, margin=0.5, variance=2.0).double()
    terms = objective(features, labels, embed=embed, step=0)
    embeddings, centers = embed(features).detach(), objective.centers.detach()
    if form == "center":
        expected = center_loss(embeddings, labels, centers).item()
    else:
        expected = oracle(form, embeddings, labels, centers, 0.5, 2.0)
    assert terms["centers"].item() == pytest.approx(expected)
    logits = objective.classifier(embeddings).detach()
    softmax = sum(float(row.exp().sum().log() - row[c]) for row, c in zip(logits, labels, strict=True)) / len(labels)
    assert terms["softmax"].item() == pytest.approx(softmax)
    assert terms["total"].item() == pytest.approx(softmax + 0.3 * expected)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("labels", "centers", "options", "message"),
    [
        ([0, 1], (3, 2), {"form": "include"}, "form must be one of magnet, mean-distance, exp-hinge"),
        ([0, 1], (3, 2), {"variance": 0.0}, "variance must be positive"),
        ([0, 0], (1, 2), {}, "at least two classes, got 1"),
        ([0, 3], (3, 2), {}, r"labels must be in 0\.\.2, got 0\.\.3"),
        ([0, -1], (3, 2), {}, r"got -1\.\.0"),
        ([0, 1, 1], (3, 2), {}, r"\(2, 2\) and \(3,\)"),
        ([0, 1], (3, 5), {}, r"dim 2 of the embeddings, got \(3, 5\)"),
    ],
)
def test_bad_input(labels, centers, options, message):
    with pytest.raises(ValueError, match=message):
        include_exclude_loss(torch.ones(2, 2), torch.tensor(labels), torch.ones(centers), **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "soft"}, "exp-hinge, center; got 'soft'"),
        ({"classes": 1}, "classes must be at least 2"),
        ({"center_rate": 0.0}, "center_rate must be above 0 and at most 1, got 0.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        IncludeExclude(**{"dim": 2, "classes": 3, **options})


@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("form", FORMS)
def test_classes_far_from_zero_keep_their_digits(form, offset):
    """Where distances are small beside the vectors, and there are many of them; the oracle is in float64."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(100, 512, generator=generator) / 512**0.5 + offset
    labels = torch.randint(100, (64,), generator=generator)
    embeddings = centers[labels] + 0.01 * torch.randn(64, 512, generator=generator) / 512**0.5
    exact = (embeddings.double()[:, None] - centers.double()).square().sum(dim=2)
    own = exact[torch.arange(64), labels]
    assert center_loss(embeddings, labels, centers).item() == pytest.approx(own.mean().item() / 2, rel=1e-6)
    others = exact[torch.nn.functional.one_hot(labels, 100) == 0].view(64, 99)
    s = 0.5 / own.mean()
    wanted = {
        "magnet": 1 + s * own + (-s * others).exp().mean(dim=1).clamp_min(1e-300).log(),
        "mean-distance": 2.5 + own - others.mean(dim=1),
        "exp-hinge": 1 + (-s * others.mean(dim=1)).exp() - (-s * own).exp(),
    }[form]
    found = include_exclude_loss(embeddings, labels, centers, form=form, margin=2.5 if form == "mean-distance" else 1.0)
    assert found.item() == pytest.approx(wanted.clamp_min(0).mean().item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_small_integers(dtype):
    embeddings, labels, centers = problem(0)
    for call in (
        lambda y: moved_centers(centers, embeddings, y, rate=0.3),
        lambda y: include_exclude_loss(embeddings, y, centers),
        lambda y: center_loss(embeddings, y, centers),
    ):
        assert torch.equal(call(labels.to(dtype)), call(labels))


def test_batches_may_be_joined_before_the_gradient():
    """Centers that move must not be changed under a batch that waits for its gradient."""
    embeddings, labels, _ = problem(0)
    objective = IncludeExclude(3, 4, form="center", weight=1.0, center_rate=0.5).double()
    centers, wanted, losses = objective.centers.clone(), [], []
    leaves = [(embeddings + offset).requires_grad_() for offset in (0.0, 1.0)]
    for leaf in leaves:
        losses.append(objective(leaf, labels)["centers"])
        for label in set(labels.tolist()):
            centers[label] += 0.5 * (leaf.detach()[labels == label].mean(dim=0) - centers[label])
        wanted.append((leaf.detach() - centers[labels]) / len(labels))
    torch.testing.assert_close(list(torch.autograd.grad(sum(losses), leaves)), wanted)
