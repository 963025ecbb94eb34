"""ADDR against plain loops, and what its discriminators can and cannot tell apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.objectives import ADDR, addr_loss
from xmodal.objectives.addr import (
    FORMS,
    DomainFeatures,
    distinctness_loss,
    hard_negatives,
    pair_errors,
)

BALANCES = ["class", "mean", "sum"]


def random_features(seed, pairs=4, words=5, regions=6, dim=7, dtype=torch.float64):
    """Unit features with padding; every item has at least one real feature."""
    generator = torch.Generator().manual_seed(seed)

    def items(count):
        features = torch.randn(pairs, count, dim, generator=generator, dtype=dtype)
        real = torch.arange(count) < torch.randint(1, count + 1, (pairs, 1), generator=generator)
        return torch.nn.functional.normalize(features, dim=-1), real

    (w, word_mask), (r, region_mask) = items(words), items(regions)
    return DomainFeatures(w, r, word_mask, region_mask, pair=torch.arange(pairs) + 2)


def random_scores(seed, pairs=4):
    return torch.randn(pairs, pairs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap_features(gap, shared=False, pairs=6, words=10, regions=24, dim=8):
    """Words and regions drawn alike, but for a gap between them, in one direction or in one of each pair's own."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(1 if shared else pairs, 1, dim, generator=generator)
    direction = torch.nn.functional.normalize(direction, dim=-1)
    w = torch.randn(pairs, words, dim, generator=generator) / dim**0.5 + gap / 2 * direction
    r = torch.randn(pairs, regions, dim, generator=generator) / dim**0.5 - gap / 2 * direction
    real = torch.ones(pairs, regions, dtype=torch.bool)
    return DomainFeatures(w, r, real[:, :words], real, pair=torch.arange(pairs))


def small_addr(form="fast_weights", dim=7, **options):
    """One whose learned parts have left zero, in double precision."""
    addr = ADDR(dim, form, pairs=8, **{"hidden": 3, **options}).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in addr.parameters():
        parameter.data.normal_(generator=generator)
    return addr


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def slow_error(words, regions, weight, bias, balance):
    """Eq. 2 with the sign of an error, item by item; only real items are given."""
    word_errors = [-log_sigmoid(float(weight @ word + bias)) for word in words]
    region_errors = [-log_sigmoid(-float(weight @ region + bias)) for region in regions]
    if balance == "sum":
        return sum(word_errors) + sum(region_errors)
    if balance == "mean":
        return (sum(word_errors) + sum(region_errors)) / (len(word_errors) + len(region_errors))
    return (sum(word_errors) / len(word_errors) + sum(region_errors) / len(region_errors)) / 2


def slow_distinctness(errors, q, r, margin, form):
    """Eq. 9 as the methods write it down."""
    losses = []
    for p in range(len(errors)):

        def hinge(a, b):
            return max(0.0, margin + errors[a][a] - errors[a][b]) if a != b else 0.0

        first = hinge(p, q[p]) + hinge(q[p], p)
        second = hinge(p, r[p]) + hinge(r[p], p) if form == "symmetric" else hinge(q[p], p) + hinge(p, r[p])
        losses.append(first + second)
    return sum(losses) / len(losses)


seeds = st.integers(0, 2**31)


@settings(max_examples=25)
@given(seeds, st.sampled_from(BALANCES))
def test_pair_errors_equal_the_slow_oracle_and_are_not_negative(seed, balance):
    f = random_features(seed)
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(4, 7, generator=generator).double() * 3, torch.randn(4, generator=generator).double()
    errors = pair_errors(*f[:4], weight, bias, balance=balance)
    for p in range(4):
        for q in range(4):
            own = f.words[p][f.word_mask[p]], f.regions[p][f.region_mask[p]]
            assert errors[p, q].item() == pytest.approx(slow_error(*own, weight[q], bias[q], balance))
    assert (errors >= 0).all()


@settings(max_examples=25)
@given(seeds, st.sampled_from(["symmetric", "literal"]), st.floats(0, 1))
def test_distinctness_equals_the_slow_oracle(seed, form, margin):
    errors = random_scores(seed, 5).abs()
    q, r = torch.randint(5, (2, 5), generator=torch.Generator().manual_seed(seed))
    loss = distinctness_loss(errors, q, r, margin=margin, form=form)
    assert loss.item() == pytest.approx(slow_distinctness(errors.tolist(), q.tolist(), r.tolist(), margin, form))


@settings(max_examples=25)
@given(seeds, st.sampled_from(["symmetric", "literal"]), st.sampled_from(BALANCES))
def test_what_discriminators_minimize_is_that_of_all_pair_errors(seed, form, balance):
    """Only five errors a pair are computed; the oracle takes them from the whole matrix."""
    f, scores = random_features(seed), random_scores(seed)
    addr = small_addr("fast_weights", balance=balance, reg_form=form)
    items = addr.items(f)
    found = addr.discriminators(items, scores)
    unit = [torch.nn.functional.normalize(side, dim=-1) for side in f[:2]]
    errors = pair_errors(*unit, *f[2:4], *found, balance=balance)
    q, r = (indices.tolist() for indices in hard_negatives(scores, f.image))
    own = addr.discriminator_terms(items, scores, found)
    assert own["adv"].item() == pytest.approx(errors.diag().mean().item())
    assert own["reg"].item() == pytest.approx(slow_distinctness(errors.tolist(), q, r, addr.alpha, form))


@settings(max_examples=25)
@given(seeds, st.sampled_from([1e-9, 1e-3, 1.0, 1e3]))
def test_the_gradient_of_the_encoders_is_that_of_autograd(seed, length):
    """Also for items whose length is held from below, and for zeros."""
    f = random_features(seed)
    words, regions = (length * side for side in f[:2])
    words[0, 0] = 0.0
    f = f._replace(words=words.requires_grad_(), regions=regions.requires_grad_())
    addr = small_addr("ridge")
    found = addr.discriminators(addr.items(f))
    terms = addr.encoder_terms(f, found)
    lengths = [torch.linalg.vector_norm(side, dim=-1, keepdim=True) for side in f[:2]]
    held = [length.clamp_min(1e-8).masked_fill(length == 0, 1.0) for length in lengths]
    unit = [side / length for side, length in zip(f[:2], held, strict=True)]
    wanted = -addr.beta * pair_errors(*unit, *f[2:4], *(tensor.detach() for tensor in found)).diag().sum()
    assert terms["total"].item() == pytest.approx(wanted.item())
    for ours, autograd in zip(*(torch.autograd.grad(loss, f[:2]) for loss in (terms["total"], wanted)), strict=True):
        torch.testing.assert_close(ours, autograd.nan_to_num(0.0))


def test_hard_negatives_pass_over_captions_of_the_same_image():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.9, 0.3], [0.2, 0.4, 0.9]])
    assert [i.tolist() for i in hard_negatives(scores)] == [[1, 0, 1], [1, 0, 1]]
    assert [i.tolist() for i in hard_negatives(scores, torch.tensor([5, 5, 6]))] == [[2, 2, 1], [2, 2, 1]]
    alone = hard_negatives(scores, torch.tensor([5, 5, 5]))
    assert [i.tolist() for i in alone] == [[0, 1, 2], [0, 1, 2]]
    assert distinctness_loss(scores, *alone, margin=1.0) == 0


@settings(max_examples=25)
@given(seeds, st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_hard_negatives_pass_over_pairs_that_were_left_out(seed, images):
    generator = torch.Generator().manual_seed(seed)
    left_out = torch.rand(5, 5, generator=generator) < 0.5
    scores = random_scores(seed, 5).masked_fill(left_out, -math.inf)

    def hardest(pair, table):
        known = [other for other in range(5) if images[other] != images[pair] and table[pair][other] > -math.inf]
        return max(known, key=lambda other: table[pair][other], default=pair)

    found = hard_negatives(scores, torch.tensor(images))
    for which, table in zip(found, (scores.tolist(), scores.T.tolist()), strict=True):
        assert which.tolist() == [hardest(pair, table) for pair in range(5)]


@pytest.mark.parametrize("form", ["amortized", "table", "shared"])
def test_error_of_zero_weights_is_log_two(form):
    f = random_features(0)
    addr = ADDR(7, form, pairs=8).double()
    terms = addr.encoder_terms(f, addr.discriminators(addr.items(f), random_scores(0)), step=0)
    assert terms["adv"].item() == pytest.approx(math.log(2))
    assert pair_errors(*f[:4], torch.zeros(4, 7).double(), torch.zeros(4).double()).allclose(
        torch.tensor(math.log(2)).double()
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_separable_pair_is_separated_and_a_shuffled_one_is_not(form):
    def error_and_accuracy(gap):
        f = gap_features(gap, shared=form == "shared")
        addr = ADDR(8, form, pairs=6, lambda_reg=0.0, ridge=0.01)
        optimizer = torch.optim.SGD(addr.parameters(), lr=3.0) if form in ("amortized", "table", "shared") else None
        for _ in range(60 if optimizer else 0):
            addr.discriminator_terms(addr.items(f), torch.zeros(6, 6), addr.discriminators(addr.items(f)))[
                "total"
            ].backward()
            optimizer.step()
            optimizer.zero_grad()
        terms = addr.encoder_terms(f, addr.discriminators(addr.items(f)), step=0)
        return terms["adv"].item(), terms["accuracy"].item()

    error, accuracy = error_and_accuracy(gap=4.0)
    assert error < 0.4
    assert accuracy > 0.97
    error, accuracy = error_and_accuracy(gap=0.0)
    assert error > 0.5
    assert accuracy < 0.9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("balance", BALANCES)
@settings(max_examples=10)
@given(seed=seeds, extra=st.integers(1, 3))
def test_padding_is_invisible(form, balance, seed, extra):
    f, scores = random_features(seed), random_scores(seed)

    def padded(items):
        return torch.cat([items, torch.full_like(items[:, :1], 7.0).expand(-1, extra, -1)], dim=1)

    def longer(mask):
        return torch.nn.functional.pad(mask, (0, extra))

    addr = small_addr(form, balance=balance)
    more = f._replace(
        words=padded(f.words),
        regions=padded(f.regions),
        word_mask=longer(f.word_mask),
        region_mask=longer(f.region_mask),
    )
    gradients = []
    for features in (f, more):
        features = features._replace(words=features.words.clone().requires_grad_())
        discriminators = addr.discriminators(addr.items(features), scores)
        terms = addr.encoder_terms(features, discriminators, step=0)
        (gradient,) = torch.autograd.grad(terms["total"], features.words)
        own = addr.discriminator_terms(addr.items(features), scores, discriminators)
        gradients.append((gradient, terms["total"], own["total"], own["reg"]))
    assert not gradients[1][0][:, f.words.shape[1] :].any()
    gradients[1] = (gradients[1][0][:, : f.words.shape[1]], *gradients[1][1:])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("form", FORMS)
def test_permuting_pairs_permutes_the_errors(form):
    f, scores, order = random_features(3), random_scores(3), torch.tensor([2, 0, 3, 1])
    addr = small_addr(form)

    def errors(features, scores):
        return pair_errors(*features[:4], *addr.discriminators(addr.items(features), scores))

    permuted = f._replace(**{name: value[order] for name, value in f._asdict().items() if value is not None})
    expected = errors(f, scores)[order][:, order]
    torch.testing.assert_close(errors(permuted, scores[order][:, order]), expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_the_encoders_raises_the_error(form):
    f = gap_features(1.0)
    addr = small_addr(form, dim=8, beta=0.5).float()
    discriminators = addr.discriminators(addr.items(f))
    words, regions = f.words.clone().requires_grad_(), f.regions.clone().requires_grad_()
    terms = addr.encoder_terms(f._replace(words=words, regions=regions), discriminators, step=0)
    terms["total"].backward()
    with torch.no_grad():
        moved = f._replace(words=words - 0.1 * words.grad, regions=regions - 0.1 * regions.grad)
    assert addr.encoder_terms(moved, discriminators, step=0)["adv"] > terms["adv"]


@pytest.mark.parametrize("form", FORMS)
def test_discriminators_and_encoders_learn_apart(form):
    f, scores = random_features(5), random_scores(5)
    f = f._replace(words=f.words.requires_grad_(), regions=f.regions.requires_grad_())
    addr = small_addr(form, alpha=1.0)
    discriminators = addr.discriminators(addr.items(f), scores)
    own = addr.discriminator_terms(addr.items(f), scores, discriminators)
    if own["total"].requires_grad:
        own["total"].backward()
    assert f.words.grad is f.regions.grad is None
    assert all(parameter.grad is not None for parameter in addr.parameters())
    addr.zero_grad()
    addr.encoder_terms(f, discriminators, step=0)["total"].backward()
    assert f.words.grad.any()
    assert f.regions.grad.any()
    assert all(parameter.grad is None for parameter in addr.parameters())


@pytest.mark.parametrize("through", ["words", "regions"])
def test_gradient_goes_through_the_chosen_side_only(through):
    f = random_features(6)
    f = f._replace(words=f.words.requires_grad_(), regions=f.regions.requires_grad_())
    addr = ADDR(7, through=through).double()
    addr.encoder_terms(f, addr.discriminators(addr.items(f)), step=0)["total"].backward()
    assert [side for side in ("words", "regions") if getattr(f, side).grad is not None] == [through]


def test_encoder_gradient_is_right():
    f = random_features(7)
    addr = small_addr()
    discriminators = addr.discriminators(addr.items(f), random_scores(7))

    def total(words, regions):
        return addr.encoder_terms(f._replace(words=words, regions=regions), discriminators, step=0)["total"]

    assert torch.autograd.gradcheck(total, (f.words.requires_grad_(), f.regions.requires_grad_()))


@pytest.mark.parametrize("form", ["fast_weights", "amortized"])
def test_gradient_through_the_fit_is_right(form):
    """Without L_reg, whose own inner step is differentiated to first order."""
    f, scores = random_features(8), random_scores(8)
    addr = small_addr(form, lambda_reg=0.0, steps=3)
    names, parameters = zip(*addr.named_parameters(), strict=True)

    class Terms(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.addr = addr

        def forward(self):
            return addr.discriminator_terms(addr.items(f), scores, addr.discriminators(addr.items(f), scores))["total"]

    def total(*values):
        named = {f"addr.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Terms(), named, ())

    assert torch.autograd.gradcheck(total, parameters)


def test_fast_weights_take_plain_gradient_steps():
    """The dual steps against autograd in the weights themselves."""
    f = random_features(9)
    items = ADDR(7, center=False).items(f)
    fit = small_addr(steps=4, rate=2.0).form
    found = fit(items)
    for p in range(4):
        weight, bias = fit.start.detach().clone(), fit.start_bias.detach().clone()
        for _ in range(4):
            weight.requires_grad_(), bias.requires_grad_()
            error = pair_errors(*(field[p : p + 1] for field in f[:4]), weight[None], bias[None])[0, 0]
            slopes = torch.autograd.grad(error, (weight, bias))
            weight, bias = weight.detach() - 2.0 * slopes[0], bias.detach() - 2.0 * slopes[1]
        torch.testing.assert_close(found.weight[p], weight)
        torch.testing.assert_close(found.bias[p], bias)


def test_ridge_solves_its_normal_equations():
    f = random_features(10)
    addr = ADDR(7, "ridge", ridge=0.2, center=False, lambda_reg=0.0).double()
    weight, bias = addr.discriminators(addr.items(f))
    for p in range(4):
        words, regions = f.words[p][f.word_mask[p]], f.regions[p][f.region_mask[p]]
        inputs = torch.nn.functional.pad(torch.cat([words, regions]), (0, 1), value=1.0)
        share = torch.tensor([0.5 / len(words)] * len(words) + [0.5 / len(regions)] * len(regions)).double()
        target = torch.tensor([1.0] * len(words) + [-1.0] * len(regions)).double()
        system = inputs.T @ (share[:, None] * inputs) + 0.2 * torch.eye(8)
        solution = torch.linalg.solve(system, inputs.T @ (share * target))
        torch.testing.assert_close(weight[p], solution[:-1])
        torch.testing.assert_close(bias[p], solution[-1])


@pytest.mark.parametrize("form", ["fast_weights", "ridge"])
def test_the_step_on_the_regularizer_lowers_it(form):
    f, scores = gap_features(1.0, shared=True), random_scores(11, pairs=6).float()

    def reg(lambda_reg):
        addr = ADDR(8, form, lambda_reg=lambda_reg)
        return addr.discriminator_terms(addr.items(f), scores, addr.discriminators(addr.items(f), scores))["reg"].item()

    assert reg(0.3) < reg(0.0) - 0.01


def test_a_side_out_of_the_center_does_not_blow_up_the_fit():
    """What all items share carries no information; uncentered, the steps would run away along it."""
    f = gap_features(0.5)
    f = f._replace(words=f.words + 8.0, regions=f.regions + 8.0)
    errors = [addr_loss(*f[:4], center=center, steps=20)["adv"].item() for center in (True, False)]
    assert errors[0] < math.log(2) < errors[1]


def test_beta_warms_up_and_zero_leaves_no_gradient():
    f = random_features(12)
    f = f._replace(words=f.words.requires_grad_())
    addr = ADDR(7, beta=0.8, beta_warmup_steps=4).double()
    fitted = addr.discriminators(addr.items(f))
    betas = [addr.encoder_terms(f, fitted, step=step)["beta"].item() for step in (0, 1, 4, 9)]
    assert betas == pytest.approx([0.0, 0.2, 0.8, 0.8])
    assert not addr.encoder_terms(f, fitted, step=0)["total"].requires_grad


def test_it_needs_no_step_and_learns_only_when_told():
    addr, f, scores = (
        ADDR(7, form="amortized", beta=2.0, beta_warmup_steps=10).double(),
        random_features(0),
        random_scores(0),
    )
    before = [parameter.clone() for parameter in addr.parameters()]
    terms = addr(f, scores)
    assert terms["beta"] == 2.0
    assert all(map(torch.equal, before, addr.parameters()))


def test_reduction_is_over_pairs():
    f = random_features(13)
    total = {how: addr_loss(*f[:4], beta=0.5, reduction=how)["total"] for how in ("sum", "mean")}
    assert total["sum"].item() == pytest.approx(4 * total["mean"].item())
    assert total["mean"].item() == pytest.approx(-0.5 * addr_loss(*f[:4])["adv"].item())


def test_the_function_needs_neither_masks_nor_unit_features():
    words, regions = torch.randn(3, 4, 5), torch.randn(3, 6, 5)
    real = torch.ones(3, 6, dtype=torch.bool)
    plain = addr_loss(words, regions)["total"]
    torch.testing.assert_close(addr_loss(3 * words, 0.5 * regions, real[:, :4], real)["total"], plain)
    assert addr_loss(words.bfloat16(), regions.bfloat16())["total"].dtype == torch.float32


def test_initialization_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    for form in FORMS:
        ADDR(7, form, pairs=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "linear"}, "form must be one of fast_weights, ridge, amortized, table, shared; got 'linear'"),
        ({"balance": "classes"}, "balance must be one of class, mean, sum; got 'classes'"),
        ({"reg_form": "other"}, "reg_form must be one of symmetric, literal; got 'other'"),
        ({"through": "all"}, "through must be one of both, words, regions; got 'all'"),
        ({"reduction": "none"}, "reduction must be one of sum, mean; got 'none'"),
        ({"beta": -1.0}, "beta must be at least 0, got -1.0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"form": "ridge", "ridge": 0.0}, "ridge must be positive, got 0.0"),
        ({"form": "amortized", "hidden": 0}, "hidden must be at least 1, got 0"),
        ({"form": "table"}, "needs `pairs`"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ADDR(7, **options)


@pytest.mark.bad_input
def test_bad_inputs_are_refused():
    f = random_features(0)
    with pytest.raises(ValueError, match="needs the features' `pair`"):
        ADDR(7, "table", pairs=3).double().discriminators(ADDR(7).items(f._replace(pair=None)))
    with pytest.raises(ValueError, match=r"got \(4, 3\)"):
        ADDR(7).double().discriminators(ADDR(7).items(f), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="fast_weights or ridge, got 'table'"):
        addr_loss(*f[:2], form="table")
