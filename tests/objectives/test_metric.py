"""Every metric loss against plain loops over pairs, and what the adapter refuses."""

from __future__ import annotations

import math
import sys
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.objectives import METRIC_OBJECTIVES, MetricLoss, MetricObjective, binomial_deviance_loss
from xmodal.objectives.metric import LIBRARY_LOSSES, PROXY_LOSSES

PAIR_LOSSES = [name for name in (*LIBRARY_LOSSES, "binomial") if name not in PROXY_LOSSES]


def batch(seed: int = 0, classes: int = 3, each: int = 3, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    return torch.randn(len(labels), dim, generator=generator, dtype=torch.float64), labels


def mean(values) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values) if values else 0.0


def positive_part_mean(values) -> float:
    return mean(value for value in map(float, values) if value > 0)


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([row / math.sqrt(float(row @ row)) for row in x])


def distance(a, b) -> float:
    return math.sqrt(float(((a - b) ** 2).sum()))


def pairs(labels, same: bool):
    n = range(len(labels))
    return [(i, j) for i, j in product(n, n) if i != j and bool(labels[i] == labels[j]) == same]


def triplets(labels):
    return [(a, p, n) for a, p in pairs(labels, True) for b, n in pairs(labels, False) if a == b]


def oracle_contrastive(e, y, pos_margin=0.0, neg_margin=1.0):
    e = unit(e)
    pulled = positive_part_mean(distance(e[i], e[j]) - pos_margin for i, j in pairs(y, True))
    return pulled + positive_part_mean(neg_margin - distance(e[i], e[j]) for i, j in pairs(y, False))


def oracle_triplet(e, y, margin=0.2, kept=lambda gap, margin: True):
    e = unit(e)
    gaps = [distance(e[a], e[n]) - distance(e[a], e[p]) for a, p, n in triplets(y)]
    return positive_part_mean(margin - gap for gap in gaps if kept(gap, margin))


def oracle_n_pair(e, y, l2_weight=0.0):
    first = [[i for i in range(len(y)) if y[i] == c][:2] for c in y.unique()]
    losses = []
    for a, p in first:
        total = sum(math.exp(float(e[a] @ e[q])) for _, q in first)
        losses.append(-math.log(math.exp(float(e[a] @ e[p])) / total))
    return mean(losses) + l2_weight * mean(x @ x for x in e)


def oracle_lifted(e, y, pos_margin=0.0, neg_margin=1.0):
    e, losses = unit(e), []
    for i, j in pairs(y, True):
        pushed = sum(math.exp(neg_margin - distance(e[a], e[n])) for a, n in pairs(y, False) if a in (i, j))
        losses.append(max(0.0, math.log(pushed) + distance(e[i], e[j]) - pos_margin) ** 2 / 2)
    return mean(losses)


def oracle_angular(e, y, alpha=45.0):
    e, tangent, losses = unit(e), math.tan(math.radians(alpha)) ** 2, []
    for a, p in pairs(y, True):
        negatives = [n for b, n in pairs(y, False) if b == a]
        terms = [4 * tangent * (e[a] + e[p]) @ e[n] - 2 * (1 + tangent) * e[a] @ e[p] for n in negatives]
        losses.append(math.log(1 + sum(math.exp(float(term)) for term in terms)))
    return mean(losses)


def oracle_multi_similarity(e, y, alpha=2.0, beta=50.0, base=0.5):
    e, losses = unit(e), []
    for i in range(len(y)):
        pulled = sum(math.exp(-alpha * float(e[i] @ e[j] - base)) for a, j in pairs(y, True) if a == i)
        pushed = sum(math.exp(beta * float(e[i] @ e[j] - base)) for a, j in pairs(y, False) if a == i)
        losses.append(math.log(1 + pulled) / alpha + math.log(1 + pushed) / beta)
    return mean(losses)


def oracle_margin(e, y, margin=0.2, beta=1.2):
    e, total, violating = unit(e), 0.0, 0
    for a, p, n in triplets(y):
        parts = [max(0.0, distance(e[a], e[p]) - beta + margin), max(0.0, beta - distance(e[a], e[n]) + margin)]
        total, violating = total + sum(parts), violating + sum(part > 0 for part in parts)
    return total / violating


def oracle_binomial(e, y, scale=2.0, threshold=0.5, negative_cost=25.0):
    e = unit(e)
    pulled = mean(math.log(1 + math.exp(-scale * float(e[i] @ e[j] - threshold))) for i, j in pairs(y, True))
    pushed = (float(e[i] @ e[j] - threshold) for i, j in pairs(y, False))
    return pulled + mean(math.log(1 + math.exp(scale * negative_cost * s)) for s in pushed)


def oracle_proxy_nca(e, y, proxies, softmax_scale=1.0):
    e, proxies, losses = unit(e), unit(proxies), []
    for x, c in zip(e, y, strict=True):
        near = [math.exp(-softmax_scale * distance(x, proxy) ** 2) for proxy in proxies]
        losses.append(-math.log(near[c] / sum(near)))
    return mean(losses)


def oracle_proxy_anchor(e, y, proxies, margin=0.1, alpha=32.0):
    e, proxies = unit(e), unit(proxies)
    pulled, pushed = [], []
    for c, proxy in enumerate(proxies):
        positive = [math.exp(-alpha * (float(x @ proxy) - margin)) for x, label in zip(e, y, strict=True) if label == c]
        negative = [math.exp(alpha * (float(x @ proxy) + margin)) for x, label in zip(e, y, strict=True) if label != c]
        pulled += [math.log(1 + sum(positive))] if positive else []
        pushed.append(math.log(1 + sum(negative)))
    return mean(pulled) + mean(pushed)


def oracle_normalized_softmax(e, y, weight, temperature=0.05):
    e, proxies, losses = unit(e), unit(weight.T), []
    for x, c in zip(e, y, strict=True):
        logits = [float(x @ proxy) / temperature for proxy in proxies]
        losses.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[c])
    return mean(losses)


ORACLES = {
    "contrastive": oracle_contrastive,
    "triplet": oracle_triplet,
    "n_pair": oracle_n_pair,
    "lifted": oracle_lifted,
    "angular": oracle_angular,
    "multi_similarity": oracle_multi_similarity,
    "margin": oracle_margin,
    "binomial": oracle_binomial,
    "proxy_nca": oracle_proxy_nca,
    "proxy_anchor": oracle_proxy_anchor,
    "normalized_softmax": oracle_normalized_softmax,
}


@given(st.integers(0, 999))
@settings(max_examples=8)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("contrastive", {}),
        ("contrastive", {"pos_margin": 0.3, "neg_margin": 0.8}),
        ("triplet", {}),
        ("triplet", {"margin": 1.0}),
        ("n_pair", {}),
        ("n_pair", {"l2_weight": 0.02}),
        ("lifted", {}),
        ("angular", {}),
        ("angular", {"alpha": 40.0}),
        ("multi_similarity", {}),
        ("margin", {}),
        ("binomial", {}),
        ("binomial", {"negative_cost": 20.0, "threshold": 0.3}),
    ],
)
def test_pair_losses_equal_the_plain_loop(name, options, seed):
    embeddings, labels = batch(seed)
    loss = MetricLoss(name, **options)(embeddings, labels)
    assert loss.item() == pytest.approx(ORACLES[name](embeddings, labels, **options))


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_proxy_losses_equal_the_plain_loop(name):
    torch.manual_seed(0)
    loss = MetricLoss(name, dim=4, classes=5)
    embeddings, labels = batch()
    (proxies,) = loss.double().parameters()
    expected = ORACLES[name](embeddings, labels, proxies.detach())
    assert loss(embeddings, labels).item() == pytest.approx(expected)
    assert loss(embeddings[:1], labels[:1]).isfinite()  # the other images of the batch do not matter


@pytest.mark.parametrize(
    ("mining", "kept"),
    [("hard", lambda gap, margin: gap <= 0), ("semihard", lambda gap, margin: 0 < gap <= margin)],
)
def test_mined_triplets_equal_the_plain_loop(mining, kept):
    embeddings, labels = batch()
    loss = MetricLoss("triplet", margin=0.4, mining=mining)(embeddings, labels)
    assert loss.item() == pytest.approx(oracle_triplet(embeddings, labels, 0.4, kept))


def test_distance_weighted_mining_follows_the_global_generator():
    embeddings, labels = batch(each=6)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(MetricLoss("margin", mining="distance_weighted")(embeddings, labels))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", [name for name in PAIR_LOSSES if name != "n_pair"])
@given(seed=st.integers(0, 999))
@settings(max_examples=5)
def test_the_order_of_a_batch_does_not_matter(name, seed):
    embeddings, labels = batch(seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    loss = MetricLoss(name)
    torch.testing.assert_close(loss(embeddings[order], labels[order]), loss(embeddings, labels))


@pytest.mark.parametrize("normalize", [True, False])
def test_normalized_losses_do_not_see_lengths(normalize):
    embeddings, labels = batch()
    loss = MetricLoss("triplet", margin=1.0, normalize=normalize)
    assert torch.equal(loss(3 * embeddings, labels).isclose(loss(embeddings, labels)), torch.tensor(normalize))


def test_binomial_gradient():
    embeddings, labels = batch()
    assert torch.autograd.gradcheck(lambda e: binomial_deviance_loss(e, labels), embeddings.requires_grad_())


@pytest.mark.parametrize("mining", ["semihard", "distance_weighted"])
def test_nothing_to_mine_is_a_zero_that_has_a_gradient(mining):
    embeddings = torch.eye(4)[[0, 0, 1, 1]].requires_grad_()
    loss = MetricLoss("triplet", mining=mining)(embeddings, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss == 0
    assert embeddings.grad is not None
    assert embeddings.grad.eq(0).all()


@pytest.mark.parametrize("name", [*PAIR_LOSSES, *PROXY_LOSSES])
def test_half_precision_is_raised_to_float32(name):
    embeddings, labels = batch()
    loss = MetricLoss(name, dim=4, classes=3)
    half = loss(embeddings.to(torch.bfloat16), labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(embeddings.to(torch.bfloat16).float(), labels))


def test_learned_parameters():
    assert MetricLoss("proxy_anchor", dim=4, classes=5).state_dict()["loss.proxies"].shape == (5, 4)
    assert MetricLoss("margin", classes=5, learn_beta=True).state_dict()["loss.beta"].shape == (5,)
    assert not list(MetricLoss("triplet", dim=4, classes=5).parameters())


def test_objective_embeds_and_trains_everything():
    features, labels = batch()
    embed = torch.nn.Linear(4, 2).double()
    objective = MetricObjective({"name": "proxy_nca"}, dim=2, classes=3).double()
    terms = objective(features.requires_grad_(), labels, embed=embed, step=0)
    torch.testing.assert_close(terms["total"], objective.metric(embed(features), labels))
    terms["total"].backward()
    assert all(p.grad is not None for p in [features, *embed.parameters(), *objective.parameters()])


def test_registry():
    assert set(METRIC_OBJECTIVES) == {"metric", "daml", "ecaml", "ie", "class_adversarial"}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 0, 0], "two classes"),
        ([0, 0, 1, 2], r"class 1 has a single image .* at least two images a class"),
        ([0, 0, 1], r"\(4, 2\) and \(3,\)"),
        ([[0, 0, 1, 1]], r"\(4, 2\) and \(1, 4\)"),
        ([0.0, 0.0, 1.0, 1.0], "integers"),
    ],
)
def test_bad_batches(name, labels, message):
    with pytest.raises(ValueError, match=message):
        MetricLoss(name)(torch.ones(4, 2), torch.tensor(labels))


@pytest.mark.bad_input
@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_labels_beyond_the_proxies(name):
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2, got 0\.\.3"):
        MetricLoss(name, dim=2, classes=3)(torch.ones(2, 2), torch.tensor([0, 3]))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tripelt"}, "unknown metric loss 'tripelt'; known: binomial, contrastive"),
        ({"margin": 0.1}, "options with a name"),
        ({"name": "triplet", "alpha": 1}, "no option 'alpha'; known: margin, normalize"),
        ({"name": "triplet", "mining": "easy"}, "mining must be one of all, hard"),
        ({"name": "proxy_nca", "mining": "hard"}, "must be 'all'"),
        ({"name": "proxy_anchor"}, "needs dim and classes"),
        ({"name": "margin", "learn_beta": True}, "needs classes"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MetricObjective(options)


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.distances", None)
    with pytest.raises(ImportError, match=r"pip install 'xmodal\[metric\]'"):
        MetricLoss("triplet")
