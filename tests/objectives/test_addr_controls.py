"""The controls of ADDR that are ours: schedules, means, one discriminator for all, other losses of the encoders."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.objectives import ADDR, MeanMatch, mean_match_loss
from xmodal.objectives.addr import DomainFeatures, distinctness_loss, hard_negatives, pair_errors
from xmodal.objectives.warmup import rise_and_fall

seeds = st.integers(0, 2**31)


def random_features(seed, pairs=4, words=5, regions=6, dim=7):
    """Features of any length, with padding, two pairs of one image."""
    generator = torch.Generator().manual_seed(seed)

    def side(count):
        items = torch.randn(pairs, count, dim, generator=generator, dtype=torch.float64)
        return items, torch.arange(count) < torch.randint(1, count + 1, (pairs, 1), generator=generator)

    (w, word_mask), (r, region_mask) = side(words), side(regions)
    return DomainFeatures(w, r, word_mask, region_mask, torch.arange(pairs).clamp_min(1))


def random_scores(seed, pairs=4):
    return torch.randn(pairs, pairs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(features):
    """The real words and regions of every pair, of length one."""
    for words, regions, word_mask, region_mask in zip(*features[:4], strict=True):
        yield tuple(
            torch.nn.functional.normalize(side[mask], dim=-1)
            for side, mask in ((words, word_mask), (regions, region_mask))
        )


def slow_scale(step, warmup, hold, decay):
    """Phase by phase."""
    if step < warmup:
        return step / warmup
    if not decay or step < warmup + hold:
        return 1.0
    if step < warmup + hold + decay:
        return 1 - (step - warmup - hold) / decay
    return 0.0


@settings(max_examples=100)
@given(*[st.integers(0, 12)] * 4)
def test_the_schedule_equals_the_slow_oracle(step, warmup, hold, decay):
    assert rise_and_fall(step, warmup, hold, decay) == pytest.approx(slow_scale(step, warmup, hold, decay))
    objective = MeanMatch(3.0, warmup, hold, decay)
    assert objective.beta_at(step) == pytest.approx(3.0 * slow_scale(step, warmup, hold, decay))
    assert objective.is_over(step) == (decay > 0 and step >= warmup + hold + decay)
    assert objective.beta_at(None) == 3.0


@pytest.mark.parametrize(
    "objective", [ADDR(7, beta=2.0, beta_decay_steps=4).double(), MeanMatch(2.0, beta_decay_steps=4)]
)
def test_the_weight_starts_full_and_ends_without_gradient(objective):
    features = random_features(0)
    features = features._replace(words=features.words.requires_grad_())
    terms = [objective(features, random_scores(0), step, lambda loss: None) for step in range(6)]
    assert [term["beta"].item() for term in terms] == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    assert [term["total"].requires_grad for term in terms] == [True] * 4 + [False] * 2


@settings(max_examples=25)
@given(seeds)
def test_mean_match_equals_the_slow_oracle(seed):
    features = random_features(seed)
    gaps = [math.dist(words.mean(dim=0), regions.mean(dim=0)) ** 2 for words, regions in unit(features)]
    assert mean_match_loss(*features[:4]).item() == pytest.approx(sum(gaps) / len(gaps))
    assert mean_match_loss(*features[:4], reduction="sum").item() == pytest.approx(sum(gaps))
    terms = MeanMatch(beta=0.5, beta_warmup_steps=4)(features, step=2)
    assert terms["total"].item() == pytest.approx(0.25 * sum(gaps))
    assert terms["gap"].item() == pytest.approx(sum(gaps) / len(gaps))


def test_the_gradient_of_mean_match_is_right():
    features = random_features(1)

    def loss(words, regions):
        return mean_match_loss(words, regions, features.word_mask, features.region_mask)

    assert torch.autograd.gradcheck(loss, (features.words.requires_grad_(), features.regions.requires_grad_()))


def test_the_gradient_of_ridge_is_nearly_that_of_matching_means():
    """Why it is a control: without L_reg the two ask nearly the same of the encoders."""
    generator = torch.Generator().manual_seed(0)
    words, regions = (torch.randn(6, count, 32, generator=generator) + shift for count, shift in ((9, 0.3), (20, -0.3)))
    real = torch.ones(6, 20, dtype=torch.bool)
    features = DomainFeatures(words.requires_grad_(), regions.requires_grad_(), real[:, :9], real)
    addr = ADDR(32, "ridge", lambda_reg=0.0)
    totals = addr(features, torch.zeros(6, 6), 0, lambda loss: None)["total"], MeanMatch()(features)["total"]
    one, other = (torch.cat([g.flatten() for g in torch.autograd.grad(t, (words, regions))]) for t in totals)
    assert torch.cosine_similarity(one, other, dim=0) > 0.9


def test_the_shared_discriminator_is_one_for_all_pairs_wherever_their_centers_are():
    features, addr = random_features(2), ADDR(7, "shared").double()
    torch.nn.init.normal_(addr.form.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.constant_(addr.form.bias, 0.4)
    weight, bias = addr.discriminators(addr.items(features), random_scores(2))
    torch.testing.assert_close(weight, addr.form.weight.expand(4, 7))
    torch.testing.assert_close(bias, addr.form.bias.expand(4))
    own = addr.discriminator_terms(addr.items(features), random_scores(2), addr.discriminators(addr.items(features)))
    # All discriminators fit alike: two violations of a whole margin for each of the two hard negatives.
    assert own["reg"].item() == pytest.approx(0.4)


def test_the_gradient_of_the_shared_discriminator_is_right():
    features, addr = random_features(3), ADDR(7, "shared", lambda_reg=0.0).double()
    items, scores = addr.items(features), random_scores(3)

    def loss(weight, bias):
        addr.form.weight, addr.form.bias = weight, bias
        return addr.discriminator_terms(items, scores, addr.discriminators(items))["total"]

    weight, bias = torch.randn(7, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    del addr.form.weight, addr.form.bias
    assert torch.autograd.gradcheck(loss, (weight.requires_grad_(), bias.requires_grad_()))


def slow_encoder_loss(kind, features, weight, bias):
    """Summed over pairs, each side of a pair counting half."""

    def softplus(x):
        return math.log1p(math.exp(x))

    total = 0.0
    for (words, regions), w, b in zip(unit(features), weight, bias, strict=True):
        word_logits, region_logits = ((side @ w + b).tolist() for side in (words, regions))
        error, exchanged = (
            (
                sum(softplus(-sign * z) for z in word_logits) / len(word_logits)
                + sum(softplus(sign * z) for z in region_logits) / len(region_logits)
            )
            / 2
            for sign in (1, -1)
        )
        total += {"saturating": -error, "non_saturating": exchanged, "confusion": (error + exchanged) / 2}[kind]
    return total


@pytest.mark.parametrize("kind", ["saturating", "non_saturating", "confusion"])
def test_losses_of_the_encoders_equal_the_slow_oracle_and_their_gradients_are_right(kind):
    features = random_features(4)
    addr = ADDR(7, encoder_loss=kind, beta=0.5).double()
    fitted = addr.discriminators(addr.items(features), random_scores(4))

    def total(words, regions):
        return addr.encoder_terms(features._replace(words=words, regions=regions), fitted)["total"]

    wanted = 0.5 * slow_encoder_loss(kind, features, *fitted)
    assert total(features.words, features.regions).item() == pytest.approx(wanted)
    assert torch.autograd.gradcheck(total, (features.words.requires_grad_(), features.regions.requires_grad_()))


def test_confusion_is_least_where_the_discriminators_cannot_tell():
    features = random_features(5)
    addr = ADDR(7, "shared", encoder_loss="confusion", reduction="mean").double()
    untrained = addr.discriminators(addr.items(features))
    assert addr.encoder_terms(features, untrained)["total"].item() == pytest.approx(math.log(2))
    sure = untrained._replace(weight=torch.randn(4, 7, dtype=torch.float64))
    assert addr.encoder_terms(features, sure)["total"] > math.log(2)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_regularizer_reaches_the_encoders_on_request(reduction):
    features, scores = random_features(6), random_scores(6)
    options = {"beta": 0.5, "alpha": 1.0, "reduction": reduction, "beta_warmup_steps": 4}
    plain, addr = (ADDR(7, encoder_reg=weight, **options).double() for weight in (0.0, 0.3))
    fitted = addr.discriminators(addr.items(features), scores)

    def total(words, regions, step=None):
        moved = features._replace(words=words, regions=regions)
        return addr.encoder_terms(moved, fitted, scores, step=step)["total"]

    unit_features = [torch.nn.functional.normalize(side, dim=-1) for side in features[:2]]
    errors = pair_errors(*unit_features, *features[2:4], *fitted)
    reg = distinctness_loss(errors, *hard_negatives(scores, features.image), margin=1.0)
    share = 4 if reduction == "sum" else 1
    for step, scale in ((None, 1.0), (1, 0.25), (0, 0.0)):
        without = plain.encoder_terms(features, fitted, scores, step=step)["total"]
        torch.testing.assert_close(total(*features[:2], step), without + 0.3 * scale * share * reg)
    sides = features.words.requires_grad_(), features.regions.requires_grad_()
    assert torch.autograd.gradcheck(total, sides)
    assert not total(*sides, step=0).requires_grad
    assert "encoder_reg" not in plain.encoder_terms(features, fitted, scores)


def test_the_regularizer_of_the_encoders_works_alone():
    """With a beta of zero L_reg is all that they are asked."""
    features, scores = random_features(7), random_scores(7)
    features = features._replace(words=features.words.requires_grad_())
    addr = ADDR(7, beta=0.0, encoder_reg=1.0, alpha=1.0).double()
    terms = addr.encoder_terms(features, addr.discriminators(addr.items(features), scores), scores)
    assert terms["total"].item() == pytest.approx(4 * terms["encoder_reg"].item())
    assert torch.autograd.grad(terms["total"], features.words)[0].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ADDR(7, encoder_loss="minimax"), "encoder_loss must be one of saturating, non_saturating, confusion"),
        (lambda: ADDR(7, encoder_reg=-1.0), "encoder_reg must be at least 0, got -1.0"),
        (lambda: ADDR(7, beta_decay_steps=-1), "beta_decay_steps must be at least 0, got -1"),
        (lambda: MeanMatch(beta_hold_steps=-1), "beta_hold_steps must be at least 0, got -1"),
        (lambda: MeanMatch(reduction="max"), "reduction must be one of sum, mean; got 'max'"),
        (lambda: mean_match_loss(torch.ones(1, 1, 2), torch.ones(1, 1, 2), reduction="max"), "reduction must be one"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_regularizer_without_scores_is_refused():
    features, addr = random_features(0), ADDR(7, encoder_reg=1.0).double()
    with pytest.raises(ValueError, match="encoder_reg needs the scores"):
        addr.encoder_terms(features, addr.discriminators(addr.items(features)))
