"""Every objective is called without a step and gives named terms, of which `total` is minimized."""

from __future__ import annotations

import pytest
import torch

from xmodal.objectives import METRIC_OBJECTIVES, OBJECTIVES, addr_loss

METRIC_OPTIONS = {
    "metric": {"metric": {"name": "triplet"}},
    "daml": {"feature_dim": 6, "metric": {"name": "triplet"}, "warmup_steps": 5},
    "ecaml": {"metric": {"name": "binomial"}, "row_weight": 0.0},
    "ie": {"dim": 6, "classes": 3},
    "class_adversarial": {"feature_dim": 6, "dim": 6, "classes": 3, "metric": {"name": "binomial"}, "ramp_steps": 5},
}


def check(terms, *learned):
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    gradients = torch.autograd.grad(terms["total"], learned)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ranking_objectives_take_scores(name):
    scores = torch.randn(4, 4, requires_grad=True)
    check(OBJECTIVES[name]()(scores), scores)


@pytest.mark.parametrize("name", METRIC_OBJECTIVES)
def test_metric_objectives_take_embeddings_and_labels(name):
    objective = METRIC_OBJECTIVES[name](**METRIC_OPTIONS[name])
    embeddings = torch.randn(6, 6, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    check(objective(embeddings, labels), embeddings)
    torch.manual_seed(0)
    terms = objective(embeddings, labels)
    torch.manual_seed(0)
    assert terms == objective(embeddings, labels, embed=torch.nn.Identity(), step=1000)


def test_addr_takes_words_and_regions_and_warms_up_only_with_a_step():
    words, regions = torch.randn(4, 5, 8, requires_grad=True), torch.randn(4, 6, 8, requires_grad=True)
    terms = addr_loss(words, regions, beta=0.5, beta_warmup_steps=10)
    check(terms, words, regions)
    assert terms["beta"] == 0.5
