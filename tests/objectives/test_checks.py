"""What objectives are given must fit, or they say which argument does not; what is padding, and what is zero, may."""

from __future__ import annotations

import math

import pytest
import torch

from xmodal.numerics import check_number, unit_means
from xmodal.objectives import (
    ADDR,
    DAML,
    Captioner,
    ClassAdversary,
    ESARanking,
    HingeRanking,
    IncludeExclude,
    InfoNCE,
    MeanMatch,
    MetricLoss,
    addr_loss,
    binomial_deviance_loss,
    center_loss,
    esa_ranking_loss,
    hinge_ranking_loss,
    include_exclude_loss,
    info_nce_loss,
    mean_match_loss,
)
from xmodal.objectives.addr import DomainFeatures, distinctness_loss, hard_negatives, pair_errors
from xmodal.objectives.addr.forms import Table
from xmodal.objectives.captioning import captioning_loss
from xmodal.objectives.daml import SYNTHETIC_LOSSES, generator_losses
from xmodal.objectives.ie import moved_centers

NONE, ONE = torch.zeros(0, 0), torch.tensor([0])
NO_IDS = torch.zeros(0, dtype=torch.long)
WORDS, REGIONS = torch.ones(4, 3, 8), torch.ones(4, 5, 8)
WORD_MASK, REGION_MASK = torch.ones(4, 3, dtype=torch.bool), torch.ones(4, 5, dtype=torch.bool)
FEATURES = DomainFeatures(WORDS, REGIONS, WORD_MASK, REGION_MASK)
SCORES = torch.eye(4)
WITHOUT_WORDS = WORD_MASK.clone()
WITHOUT_WORDS[2] = False

ON_FEATURES = {
    "mean_match_loss": mean_match_loss,
    "addr_loss": addr_loss,
    "MeanMatch": lambda *sides: MeanMatch()(DomainFeatures(*sides)),
    "ADDR": lambda *sides: ADDR(8)(DomainFeatures(*sides), SCORES),
    "pair_errors": lambda *sides: pair_errors(*sides, torch.zeros(4, 8), torch.zeros(4)),
}
BAD_FEATURES = {
    "pairs": (
        (WORDS, REGIONS[:1], WORD_MASK, REGION_MASK[:1]),
        r"same pairs and dim, got \(4, 3, 8\) and \(1, 5, 8\)",
    ),
    "dims": ((WORDS, REGIONS[..., :4], WORD_MASK, REGION_MASK), "same pairs and dim"),
    "rank": ((WORDS[0], REGIONS, WORD_MASK, REGION_MASK), r"words must be \(pair, word, dim\)"),
    "no pair": ((WORDS[:0], REGIONS[:0], WORD_MASK[:0], REGION_MASK[:0]), r"at least one of each, got \(0, 3, 8\)"),
    "no word": ((WORDS[:, :0], REGIONS, WORD_MASK[:, :0], REGION_MASK), r"at least one of each, got \(4, 0, 8\)"),
    "mask of one": (
        (WORDS, REGIONS, WORD_MASK[:1], REGION_MASK),
        r"word_mask must have shape \(4, 3\), got \(1, 3\)",
    ),
    "mask of ones": ((WORDS, REGIONS, WORD_MASK.float(), REGION_MASK), "word_mask must be boolean"),
    "empty caption": ((WORDS, REGIONS, WITHOUT_WORDS, REGION_MASK), "pair 2 has no real word in word_mask"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize(("sides", "message"), BAD_FEATURES.values(), ids=BAD_FEATURES)
@pytest.mark.parametrize("call", ON_FEATURES.values(), ids=ON_FEATURES)
def test_features_that_do_not_fit_are_refused(call, sides, message):
    call(*FEATURES[:4])
    with pytest.raises(ValueError, match=message):
        call(*sides)


TRIPLET = {"name": "triplet"}
REFUSED = {
    "ADDR image": (lambda: ADDR(8)(FEATURES._replace(image=ONE), SCORES), r"image must have shape \(4,\), got \(1,\)"),
    "ADDR pair": (lambda: ADDR(8)(FEATURES._replace(pair=ONE), SCORES), r"pair must have shape \(4,\), got \(1,\)"),
    "ADDR discriminators": (
        lambda: ADDR(8).encoder_terms(FEATURES, (lambda d: d._replace(weight=d.weight[:1]))(_found())),
        r"weight must have shape \(4, 8\), got \(1, 8\)",
    ),
    "hard_negatives": (lambda: hard_negatives(SCORES, ONE), r"image must have shape \(4,\), got \(1,\)"),
    "hard_negatives of none": (lambda: hard_negatives(NONE), r"at least one, got \(0, 0\)"),
    "pair_errors": (
        lambda: pair_errors(*FEATURES[:4], torch.zeros(1, 8), torch.zeros(4)),
        r"weight must have shape \(4, 8\), got \(1, 8\)",
    ),
    "distinctness_loss": (lambda: distinctness_loss(SCORES, ONE, ONE), r"hard_caption must have shape \(4,\)"),
    "esa ids": (
        lambda: esa_ranking_loss(SCORES, caption_image=ONE),
        r"caption_image must have shape \(4,\), got \(1,\)",
    ),
    "hinge of none": (lambda: hinge_ranking_loss(NONE), r"at least one image and one caption, got \(0, 0\)"),
    "HingeRanking of none": (lambda: HingeRanking()(NONE), r"at least one image and one caption, got \(0, 0\)"),
    "info_nce of none": (lambda: info_nce_loss(NONE), r"at least one image and one caption, got \(0, 0\)"),
    "no image": (lambda: info_nce_loss(NONE.new_zeros(0, 3), caption_image=NO_IDS), "at least one image"),
    "esa of none": (lambda: ESARanking()(NONE), r"2 views of every pair, got \(0, 0\)"),
    "center_loss of none": (lambda: center_loss(NONE, NO_IDS, SCORES), "at least one image"),
    "include_exclude of none": (lambda: include_exclude_loss(NONE, NO_IDS, SCORES), "at least one image"),
    "IncludeExclude of none": (lambda: IncludeExclude(4, 4)(NONE.new_zeros(0, 4), NO_IDS), "at least one image"),
    "moved_centers": (lambda: moved_centers(SCORES, SCORES, ONE, rate=0.5), r"got \(4, 4\) and \(1,\)"),
    "proxies of none": (
        lambda: MetricLoss("proxy_nca", dim=4, classes=4)(NONE.new_zeros(0, 4), NO_IDS),
        "at least one image",
    ),
    "captioning of none": (
        lambda: captioning_loss(torch.zeros(0, 2, 5), torch.zeros(0, 3).long(), torch.zeros(0, 3).bool()),
        "at least one caption",
    ),
    "Captioner of none": (
        lambda: Captioner(8, 5, 4, 4).loss(REGIONS[:0], torch.zeros(0, 3).long(), torch.zeros(0, 3).bool()),
        "at least one caption",
    ),
    "generator_losses": (
        lambda: generator_losses(SCORES[:1], WORDS, WORDS, SCORES, SCORES, REGIONS[..., :4]),
        r"anchor must have shape \(4, 8\), got \(1, 4\)",
    ),
    **{
        name: (lambda loss=loss: loss(SCORES[:, :3], SCORES[:1, :3], torch.ones(4, 2, 3)), r"\(4, 3\), \(1, 3\) and")
        for name, loss in SYNTHETIC_LOSSES.items()
    },
    "angle of DAML": (
        lambda: DAML(4, {"name": "angular", "alpha": 120}),
        "alpha must be above 0 and below 90, got 120",
    ),
    "angle of MetricLoss": (lambda: MetricLoss("angular", alpha=90.0), "alpha must be above 0 and below 90, got 90.0"),
    "weight of DAML": (lambda: DAML(4, TRIPLET, reg_weight=-1.0), "reg_weight must be at least 0, got -1.0"),
    "generator of DAML": (lambda: DAML(4, TRIPLET, generator={"depth": 2}), "no option 'depth'; known: layers"),
    "views": (lambda: ESARanking(views=0), "views must be at least 1, got 0"),
    "steps of an epoch": (lambda: HingeRanking(steps_per_epoch=0), "steps_per_epoch must be at least 1, got 0"),
    "steps of beta": (lambda: ADDR(8, beta_warmup_steps=1.5), "beta_warmup_steps must be a whole number, got 1.5"),
    "rows": (lambda: Table(8, -1), "pairs must be at least 1, got -1"),
    "proxies": (lambda: MetricLoss("proxy_nca", dim=0, classes=2), "dim must be at least 1, got 0"),
    "curriculum": (lambda: HingeRanking(curriculum="half"), "curriculum must be a number, got 'half'"),
    "rate": (lambda: IncludeExclude(4, 2, center_rate="half"), "center_rate must be a number, got 'half'"),
    "dropout": (lambda: Captioner(4, 5, dropout=1.0), "dropout must be at least 0 and below 1, got 1.0"),
    "pad": (lambda: Captioner(4, 5, pad=-1), "pad must be at least 0, got -1"),
    "gamma": (lambda: ClassAdversary(4, 2, 2, TRIPLET, gamma=math.inf), "gamma must be finite, got inf"),
    "temperature": (lambda: InfoNCE(math.inf), "temperature must be finite, got inf"),
}


def _found():
    addr = ADDR(8)
    return addr.discriminators(addr.items(FEATURES))


@pytest.mark.bad_input
@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("value", [-math.inf, -1, 0, 0.5, 1, 2, math.inf, math.nan])
def test_ranges_are_those_of_comparisons(value):
    tests = {
        "least": lambda bound: value >= bound,
        "above": lambda bound: value > bound,
        "most": lambda bound: value <= bound,
        "below": lambda bound: value < bound,
    }
    for low in ({}, {"least": 0}, {"above": 0}):
        for high in ({}, {"most": 1}, {"below": 1}):
            bounds = {**low, **high}
            if math.isfinite(value) and all(tests[name](bound) for name, bound in bounds.items()):
                check_number("option", value, **bounds)
            else:
                with pytest.raises(ValueError, match="option must be"):
                    check_number("option", value, **bounds)


def random_features(seed=0):
    """Padding in both sides, and in float64."""
    generator = torch.Generator().manual_seed(seed)
    words, regions = (torch.randn(4, n, 8, generator=generator, dtype=torch.float64) for n in (3, 5))
    masks = (torch.arange(n) < torch.randint(1, n, (4, 1), generator=generator) for n in (3, 5))
    return [words, regions, *masks]


ON_PADDED = {
    "mean_match_loss": mean_match_loss,
    "addr_loss": lambda *sides: addr_loss(*sides, SCORES.double())["total"],
    "addr_loss with L_reg": lambda *sides: addr_loss(*sides, SCORES.double(), encoder_reg=0.5)["total"],
    "ADDR": lambda *sides: ADDR(8).double()(DomainFeatures(*sides), SCORES.double())["total"],
    "pair_errors": lambda *sides: pair_errors(
        *sides, torch.ones(4, 8).double().requires_grad_(), torch.zeros(4).double()
    ).sum(),
}


@pytest.mark.parametrize("held", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("call", ON_PADDED.values(), ids=ON_PADDED)
def test_padding_is_invisible_whatever_it_holds(call, held):
    *sides, word_mask, region_mask = random_features()
    results = []
    for filling in (0.0, held):
        filled = [
            side.masked_fill(~mask[..., None], filling).requires_grad_()
            for side, mask in zip(sides, (word_mask, region_mask), strict=True)
        ]
        loss = call(*filled, word_mask, region_mask)
        results.append((loss.detach(), *torch.autograd.grad(loss, filled)))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert not results[1][1][~word_mask].any()


def test_means_pass_over_padding_of_any_content():
    words, _, mask, _ = random_features()
    real = [some[which] for some, which in zip(words, mask, strict=True)]
    wanted = [(items / items.norm(dim=1, keepdim=True)).mean(dim=0) for items in real]
    torch.testing.assert_close(unit_means(words.masked_fill(~mask[..., None], math.nan), mask), torch.stack(wanted))


EMBEDDINGS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EMBEDDINGS[2] = 0.0
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def metric(name, **options):
    torch.manual_seed(0)
    return MetricLoss(name, **options).double()


def daml(name):
    torch.manual_seed(0)
    objective = DAML(8, {"name": name}, normalize=True).double()
    return lambda embeddings: objective(embeddings, LABELS)["total"]


ON_ZEROS = {
    "binomial_deviance_loss": lambda x: binomial_deviance_loss(x, LABELS),
    "angular": lambda x: metric("angular")(x, LABELS),
    "multi_similarity": lambda x: metric("multi_similarity")(x, LABELS),
    "proxy_nca": lambda x: metric("proxy_nca", dim=8, classes=3)(x, LABELS),
    "DAML": daml("triplet"),
    "DAML angular": daml("angular"),
    "mean_match_loss": lambda x: mean_match_loss(x.view(2, 3, 8), WORDS[:2].double()),
    "addr_loss": lambda x: addr_loss(x.view(2, 3, 8), WORDS[:2].double())["total"],
    "addr_loss with L_reg": lambda x: addr_loss(
        x.view(2, 3, 8), WORDS[:2].double(), scores=SCORES[:2, :2].double(), encoder_reg=1.0, alpha=1.0, beta=0.0
    )["total"],
}


@pytest.mark.parametrize("call", ON_ZEROS.values(), ids=ON_ZEROS)
def test_a_zero_vector_does_not_drown_the_gradients_of_others(call):
    """Divided by a floor instead of a length, its own was up to 1e23 times as large."""
    leaf = EMBEDDINGS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(leaf), leaf)
    others = gradient[LABELS.new_tensor([0, 1, 3, 4, 5])].norm(dim=1)
    assert others.any()
    assert gradient[2].norm() < 100 * others.max()


def test_the_gradient_of_a_zero_vector_is_that_of_one_divided_by_one():
    leaf = EMBEDDINGS.view(2, 3, 8).clone().requires_grad_()
    other = torch.ones(2, 1, 8).double()
    (gradient,) = torch.autograd.grad(mean_match_loss(leaf, other), leaf)
    with torch.no_grad():  # mean over two pairs of |mean of words / length - region|^2
        lengths = leaf.norm(dim=2, keepdim=True)
        gap = (leaf / lengths.masked_fill(lengths == 0, 1)).mean(dim=1) - other[:, 0] / math.sqrt(8)
        torch.testing.assert_close(gradient[0, 2], gap[0] / 3)
