"""A number that cannot be meant is refused by name, whoever gives it: NaN, infinity, a negative margin."""

from __future__ import annotations

import math

import pytest
import torch

from xmodal.heads import BFAN, SCAN, VSRN, bfan_scores, scan_scores
from xmodal.objectives import (
    ADDR,
    DAML,
    Captioner,
    ClassAdversary,
    EnergyConfusion,
    HardNegativeGenerator,
    HingeRanking,
    IncludeExclude,
    InfoNCE,
    MetricLoss,
    addr_loss,
    binomial_deviance_loss,
    hinge_ranking_loss,
    include_exclude_loss,
    info_nce_loss,
    reversal_ramp,
    reverse_gradient,
)
from xmodal.objectives.addr import distinctness_loss
from xmodal.objectives.daml import generator_losses
from xmodal.objectives.ie import moved_centers

SCORES, ITEMS = torch.eye(3), torch.ones(2, 3, 4)
FEATURES, LABELS, PAIR = torch.eye(4), torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0])
METRIC = {"name": "binomial"}

POSITIVE = {
    "scan_scores temperature": lambda x: scan_scores(ITEMS, ITEMS, temperature=x),
    "scan_scores lse_scale": lambda x: scan_scores(ITEMS, ITEMS, lse_scale=x),
    "bfan_scores temperature": lambda x: bfan_scores(ITEMS, ITEMS, temperature=x),
    "SCAN temperature": lambda x: SCAN(temperature=x),
    "SCAN lse_scale": lambda x: SCAN(lse_scale=x),
    "BFAN temperature": lambda x: BFAN(temperature=x),
    "info_nce_loss temperature": lambda x: info_nce_loss(SCORES, temperature=x),
    "InfoNCE temperature": lambda x: InfoNCE(temperature=x),
    "include_exclude_loss variance": lambda x: include_exclude_loss(FEATURES, LABELS, FEATURES[:2], variance=x),
    "IncludeExclude variance": lambda x: IncludeExclude(4, 2, variance=x),
    "ClassAdversary gamma": lambda x: ClassAdversary(4, 2, 2, METRIC, gamma=x),
    "reversal_ramp gamma": lambda x: reversal_ramp(0.5, x),
    "moved_centers rate": lambda x: moved_centers(FEATURES[:2], FEATURES, LABELS, rate=x),
    "binomial_deviance_loss scale": lambda x: binomial_deviance_loss(FEATURES, LABELS, scale=x),
    "MetricLoss alpha": lambda x: MetricLoss("multi_similarity", alpha=x),
    "MetricLoss temperature": lambda x: MetricLoss("normalized_softmax", dim=2, classes=2, temperature=x),
    "ADDR ridge": lambda x: ADDR(4, "ridge", ridge=x),
    "DAML alpha": lambda x: DAML(4, {"name": "angular", "alpha": x})(FEATURES, LABELS),
}
NOT_NEGATIVE = {
    "hinge_ranking_loss margin": lambda x: hinge_ranking_loss(SCORES, margin=x),
    "hinge_ranking_loss hardest": lambda x: hinge_ranking_loss(SCORES, hardest=x),
    "HingeRanking margin": lambda x: HingeRanking(margin=x),
    "HingeRanking hardest": lambda x: HingeRanking(hardest=x),
    "HingeRanking warmup_steps": lambda x: HingeRanking(warmup_steps=x),
    "include_exclude_loss margin": lambda x: include_exclude_loss(FEATURES, LABELS, FEATURES[:2], margin=x),
    "IncludeExclude weight": lambda x: IncludeExclude(4, 2, weight=x),
    "EnergyConfusion weight": lambda x: EnergyConfusion(METRIC, weight=x),
    "EnergyConfusion row_weight": lambda x: EnergyConfusion(METRIC, row_weight=x),
    "ClassAdversary weight": lambda x: ClassAdversary(4, 2, 2, METRIC, weight=x),
    "ClassAdversary ramp_steps": lambda x: ClassAdversary(4, 2, 2, METRIC, ramp_steps=x),
    "DAML margin": lambda x: DAML(4, {"name": "triplet"}, margin=x),
    "DAML adv_weight": lambda x: DAML(4, {"name": "triplet"}, adv_weight=x),
    "DAML metric margin": lambda x: DAML(4, {"name": "triplet", "margin": x}),
    "generator_losses margin": lambda x: generator_losses(*torch.ones(6, 2, 1, 4), margin=x),
    "HardNegativeGenerator std": lambda x: HardNegativeGenerator(4, std=x),
    "ADDR rate": lambda x: ADDR(4, rate=x),
    "ADDR beta": lambda x: ADDR(4, beta=x),
    "addr_loss alpha": lambda x: addr_loss(ITEMS, ITEMS, alpha=x),
    "distinctness_loss margin": lambda x: distinctness_loss(SCORES[:2, :2], PAIR, PAIR, margin=x),
    "MetricLoss margin": lambda x: MetricLoss("triplet", margin=x),
    "Captioner dropout": lambda x: Captioner(4, 5, dropout=x),
}
COUNTS = {
    "VSRN dim": lambda x: VSRN(dim=x),
    "VSRN layers": lambda x: VSRN(dim=4, layers=x),
    "Captioner hidden_dim": lambda x: Captioner(4, 5, hidden_dim=x),
    "ClassAdversary hidden_dim": lambda x: ClassAdversary(4, 2, 2, METRIC, hidden_dim=x),
    "HardNegativeGenerator layers": lambda x: HardNegativeGenerator(4, layers=x),
    "ADDR steps": lambda x: ADDR(4, steps=x),
    "ADDR hidden": lambda x: ADDR(4, "amortized", hidden=x),
    "ADDR dim": lambda x: ADDR(x),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0], ids=str)
@pytest.mark.parametrize("call", POSITIVE.values(), ids=POSITIVE)
def test_what_must_be_positive(call, value):
    with pytest.raises(ValueError, match=r"must be|progress"):
        call(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, "0.2"], ids=str)
@pytest.mark.parametrize("call", NOT_NEGATIVE.values(), ids=NOT_NEGATIVE)
def test_what_must_not_be_negative(call, value):
    with pytest.raises(ValueError, match="must be"):
        call(value)


@pytest.mark.parametrize("value", [0, -3, 1.5, True, "2"], ids=str)
@pytest.mark.parametrize("call", COUNTS.values(), ids=COUNTS)
def test_what_counts(call, value):
    with pytest.raises(ValueError, match="must be"):
        call(value)


def test_similarities_may_be_negative_but_are_numbers():
    assert binomial_deviance_loss(FEATURES, LABELS, threshold=-0.5).isfinite()
    with pytest.raises(ValueError, match="threshold must be finite, got nan"):
        binomial_deviance_loss(FEATURES, LABELS, threshold=math.nan)
    with pytest.raises(ValueError, match="scale must be finite"):
        reverse_gradient(FEATURES, math.nan)
