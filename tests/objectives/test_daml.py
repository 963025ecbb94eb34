"""DAML's terms against plain loops, and which parameters each of them reaches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.objectives import DAML, HardNegativeGenerator
from xmodal.objectives.daml import SYNTHETIC_LOSSES, batch_triplets, generator_losses

FEATURE_DIM, DIM = 4, 3


def dot(a, b) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def squared(a, b) -> float:
    return dot(a - b, a - b)


def unit(x):
    return x / math.sqrt(dot(x, x))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def hinge(value: float) -> float:
    return max(0.0, value)


def every(a, p, n):
    """(anchor, positive, one negative) of every pair and every of its negatives."""
    return [(a[i], p[i], negative) for i in range(len(a)) for negative in n[i]]


def oracle_triplet(a, p, n, margin=1.0):
    return mean(hinge(squared(x, y) - squared(x, z) + margin) for x, y, z in every(a, p, n))


def oracle_contrastive(a, p, n, margin=1.0):
    pulled = mean(squared(x, y) for x, y in zip(a, p, strict=True))
    return pulled + mean(hinge(margin - squared(x, z)) for x, _, z in every(a, p, n))


def oracle_n_pair(a, p, n, l2_weight=0.0):
    losses = []
    for x, y, negatives in zip(a, p, n, strict=True):
        total = math.exp(dot(x, y)) + sum(math.exp(dot(x, z)) for z in negatives)
        losses.append(-math.log(math.exp(dot(x, y)) / total) + l2_weight * (dot(x, x) + dot(y, y)) / 2)
    return mean(losses)


def oracle_lifted(a, p, n, margin=1.0):
    losses = []
    for x, y, negatives in zip(a, p, n, strict=True):
        pushed = sum(math.exp(margin - math.sqrt(squared(end, z))) for end in (x, y) for z in negatives)
        losses.append(hinge(math.log(pushed) + math.sqrt(squared(x, y))) ** 2 / 2)
    return mean(losses)


def oracle_angular(a, p, n, alpha=45.0):
    tangent, losses = math.tan(math.radians(alpha)) ** 2, []
    for x, y, negatives in zip(a, p, n, strict=True):
        x, y = unit(x), unit(y)
        terms = [4 * tangent * dot(x + y, unit(z)) - 2 * (1 + tangent) * dot(x, y) for z in negatives]
        losses.append(math.log(1 + sum(math.exp(term) for term in terms)))
    return mean(losses)


ORACLES = {
    "triplet": oracle_triplet,
    "contrastive": oracle_contrastive,
    "n_pair": oracle_n_pair,
    "lifted": oracle_lifted,
    "angular": oracle_angular,
}


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(seed: int = 0, classes: int = 3, each: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return random(seed, classes * each, FEATURE_DIM), torch.arange(classes).repeat_interleave(each)


def daml(name: str = "triplet", **options) -> tuple[DAML, torch.nn.Linear]:
    """An objective whose generator has opinions, and an embedding layer."""
    torch.manual_seed(0)
    options = {"generator": {"std": 0.5, "final_relu": False}, "margin": 0.0, **options}
    return DAML(FEATURE_DIM, {"name": name}, **options).double(), torch.nn.Linear(FEATURE_DIM, DIM).double()


@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=20)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("triplet", {}),
        ("triplet", {"margin": 0.1}),
        ("contrastive", {}),
        ("contrastive", {"margin": 5.0}),
        ("n_pair", {}),
        ("n_pair", {"l2_weight": 0.02}),
        ("lifted", {}),
        ("lifted", {"margin": 0.5}),
        ("angular", {}),
        ("angular", {"alpha": 36.0}),
    ],
)
def test_metric_losses_equal_the_plain_loop(name, options, seed, pairs, negatives):
    a, p, n = random(seed, pairs, DIM), random(seed + 1, pairs, DIM), random(seed + 2, pairs, negatives, DIM)
    expected = ORACLES[name](a, p, n, **options)
    assert SYNTHETIC_LOSSES[name](a, p, n, **options).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", SYNTHETIC_LOSSES)
def test_metric_losses_gradients(name):
    inputs = random(0, 3, DIM), random(1, 3, DIM), random(2, 3, 2, DIM)
    assert torch.autograd.gradcheck(SYNTHETIC_LOSSES[name], [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("name", SYNTHETIC_LOSSES)
def test_equal_vectors_have_finite_gradients(name):
    inputs = [torch.ones(*shape, requires_grad=True) for shape in [(2, DIM), (2, DIM), (2, 1, DIM)]]
    SYNTHETIC_LOSSES[name](*inputs).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


@given(st.integers(0, 999))
@settings(max_examples=20)
def test_generator_losses_equal_the_plain_loop(seed):
    anchor, negative, synthetic = random(seed, 3, 4), random(seed + 1, 3, 2, 4), random(seed + 2, 3, 2, 4)
    ea, ep, eg = random(seed + 3, 3, DIM), random(seed + 4, 3, DIM), random(seed + 5, 3, 2, DIM)
    terms = generator_losses(anchor, negative, synthetic, ea, ep, eg, margin=0.3)
    cells = [(i, k) for i in range(3) for k in range(2)]
    assert terms["hard"].item() == pytest.approx(mean(squared(synthetic[c], anchor[c[0]]) for c in cells))
    assert terms["regularization"].item() == pytest.approx(mean(squared(synthetic[c], negative[c]) for c in cells))
    adversarial = mean(hinge(squared(eg[c], ea[c[0]]) - squared(ep[c[0]], ea[c[0]]) - 0.3) for c in cells)
    assert terms["adversarial"].item() == pytest.approx(adversarial)


@pytest.mark.parametrize("name", SYNTHETIC_LOSSES)
@pytest.mark.parametrize("gradients", ["joint", "split"])
@pytest.mark.parametrize("normalize", [False, True])
def test_terms_equal_the_plain_loop(name, gradients, normalize):
    objective, embed = daml(
        name, reg_weight=0.5, adv_weight=2.0, metric_weight=3.0, negatives=2, gradients=gradients, normalize=normalize
    )
    features, labels = batch()
    terms = objective(features, labels, embed=embed, step=0)

    def space(x):
        return unit(embed(x).detach()) if normalize else embed(x).detach()

    # Three classes of two: the positive is the other image of the class, the negatives are the next two of others.
    anchors = list(range(6))
    positives = [1, 0, 3, 2, 5, 4]
    negatives = [[2, 3], [2, 3], [4, 5], [4, 5], [0, 1], [0, 1]]
    made = [
        [objective.generator(*features[[i, j, k]][:, None])[0].detach() for k in ks]
        for i, j, ks in zip(anchors, positives, negatives, strict=True)
    ]
    cells = [(i, k) for i in range(6) for k in range(2)]
    expected = {
        "hard": mean(squared(made[i][k], features[i]) for i, k in cells),
        "regularization": mean(squared(made[i][k], features[negatives[i][k]]) for i, k in cells),
        "adversarial": mean(
            hinge(
                squared(space(made[i][k]), space(features[i]))
                - squared(space(features[positives[i]]), space(features[i]))
            )
            for i, k in cells
        ),
        "metric": ORACLES[name](
            [space(features[i]) for i in anchors],
            [space(features[j]) for j in positives],
            [[space(x) for x in row] for row in made],
        ),
    }
    for key, value in expected.items():
        assert terms[key].item() == pytest.approx(value), key
    total = expected["hard"] + 0.5 * expected["regularization"] + 2 * expected["adversarial"] + 3 * expected["metric"]
    assert terms["total"].item() == pytest.approx(total)


REACHED = {
    "joint": {
        "hard": {"backbone", "generator"},
        "regularization": {"backbone", "generator"},
        "adversarial": {"backbone", "generator", "embed"},
        "metric": {"backbone", "generator", "embed"},
    },
    "split": {
        "hard": {"generator"},
        "regularization": {"generator"},
        "adversarial": {"generator"},
        "metric": {"backbone", "embed"},
    },
}


@pytest.mark.parametrize("gradients", REACHED)
@pytest.mark.parametrize("name", SYNTHETIC_LOSSES)
def test_which_parameters_each_term_reaches(name, gradients):
    objective, embed = daml(name, gradients=gradients)
    backbone = torch.nn.Linear(FEATURE_DIM, FEATURE_DIM).double()
    features, labels = batch()
    terms = objective(backbone(features), labels, embed=embed, step=0)
    weights = {"backbone": backbone.weight, "embed": embed.weight, "generator": objective.generator.layers[0].weight}
    for term, reached in REACHED[gradients].items():
        found = torch.autograd.grad(terms[term], list(weights.values()), retain_graph=True, allow_unused=True)
        moved = {key for key, x in zip(weights, found, strict=True) if x is not None and x.abs().sum() > 0}
        assert moved == reached, term


def test_warm_up_trains_the_metric_loss_on_real_negatives():
    objective, embed = daml(warmup_steps=3, metric_weight=2.0)
    features, labels = batch()
    terms = objective(features, labels, embed=embed, step=2)
    assert terms.keys() == {"metric", "total"}
    e = embed(features).detach()
    expected = oracle_triplet(e, e[[1, 0, 3, 2, 5, 4]], [[e[k]] for k in (2, 2, 4, 4, 0, 0)])
    assert terms["metric"].item() == pytest.approx(expected)
    terms["total"].backward()
    assert embed.weight.grad is not None
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert objective(features, labels, embed=embed, step=3).keys() > {"hard", "adversarial"}


@given(st.integers(0, 999), st.integers(2, 5), st.integers(2, 4), st.sampled_from(["cyclic", "random"]), st.booleans())
def test_triplets(seed, classes, each, layout, all_negatives):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)[torch.randperm(classes * each, generator=generator)]
    generator.manual_seed(seed)
    triplets = batch_triplets(labels, layout=layout, negatives=None if all_negatives else 2, generator=generator)
    assert sorted(triplets.anchor.tolist()) == list(range(len(labels)))
    assert sorted(triplets.positive.tolist()) == list(range(len(labels)))
    for a, p, ns in zip(*(rows.tolist() for rows in triplets), strict=True):
        assert a != p
        assert labels[a] == labels[p]
        assert all(labels[n] != labels[a] for n in ns)
        assert len(set(ns)) == len(ns) == (len(labels) - each if all_negatives else 2)
    generator.manual_seed(seed)
    again = batch_triplets(labels, layout=layout, negatives=None if all_negatives else 2, generator=generator)
    assert all(torch.equal(x, y) for x, y in zip(triplets, again, strict=True))


def test_cyclic_triplets_equal_the_plain_loop():
    labels = torch.tensor([2, 0, 2, 1, 0, 1, 2])
    triplets = batch_triplets(labels, negatives=3)
    count = len(labels)
    for a, p, ns in zip(*(rows.tolist() for rows in triplets), strict=True):
        following = [(a + step) % count for step in range(1, count)]
        assert p == next(i for i in following if labels[i] == labels[a])
        assert ns == [i for i in following if labels[i] != labels[a]][:3]


def test_unequal_classes_share_the_fewest_negatives():
    assert batch_triplets(torch.tensor([0, 0, 0, 1, 1]), negatives=None).negative.shape == (5, 2)


def test_released_layout():
    triplets = batch_triplets(torch.tensor([0, 1, 0, 1, 2, 3]), layout="thirds")
    assert [rows.tolist() for rows in triplets] == [[0, 1], [2, 3], [[4], [5]]]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 0, 0, 0], {}, "two classes"),
        ([0, 0, 1], {}, "class 1 has a single image"),
        ([0, 0, 1, 1], {"negatives": 3}, r"negatives must be in 1\.\.2"),
        ([0, 0, 1, 1], {"negatives": 0}, r"negatives must be in 1\.\.2"),
        ([0, 0, 1, 1], {"layout": "first"}, "layout must be one of cyclic, random, thirds"),
        ([0, 0, 1, 1], {"layout": "thirds"}, "layout 'thirds' needs"),
        ([0, 1, 0], {"layout": "thirds"}, "layout 'thirds' needs"),
        ([0, 0, 0], {"layout": "thirds"}, "layout 'thirds' needs"),
    ],
)
def test_bad_batches(labels, options, message):
    with pytest.raises(ValueError, match=message):
        batch_triplets(torch.tensor(labels), **options)


@pytest.mark.bad_input
def test_labels_that_do_not_fit_the_features():
    objective, embed = daml()
    with pytest.raises(ValueError, match=r"\(6, 4\) and \(4,\)"):
        objective(batch()[0], torch.tensor([0, 0, 1, 1]), embed=embed, step=0)


def test_generator_layouts():
    torch.manual_seed(0)
    released = HardNegativeGenerator(64)
    assert [(layer.in_features, layer.out_features) for layer in released.layers[::2]] == [(192, 64), (64, 64)]
    assert released.layers[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert isinstance(released.layers[-1], torch.nn.ReLU)
    library = HardNegativeGenerator(8, layers=3, batch_norm=True)
    assert [type(layer).__name__ for layer in library.layers] == ["Linear", "BatchNorm1d", "ReLU"] * 3
    assert not isinstance(HardNegativeGenerator(8, final_relu=False).layers[-1], torch.nn.ReLU)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": {"name": "binomial"}}, "no metric loss 'binomial'; known: triplet, contrastive"),
        ({"metric": {"name": "n_pair", "margin": 1.0}}, "no option 'margin'; known: l2_weight"),
        ({"triplets": "all"}, "triplets must be one of cyclic"),
        ({"gradients": "both"}, "gradients must be one of joint, split"),
        ({"generator": {"layers": 0}}, "layers must be at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DAML(**{"feature_dim": 4, "metric": {"name": "triplet"}, **options})
