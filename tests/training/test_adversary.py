"""Encoders and discriminators in turn: who moves when, and what is measured. In two processes: see test_step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from xmodal.data import PairBatch, RegionBatch
from xmodal.model import Matcher
from xmodal.objectives import HingeRanking
from xmodal.objectives.addr import FORMS
from xmodal.training.adversary import Adversary
from xmodal.training.step import MatchingStep

HEADS = {
    "scan": {"name": "scan"},
    "bfan": {"name": "bfan"},
    "cosine": {"name": "cosine"},
    "vsrn": {"name": "vsrn", "dim": 6, "layers": 1},
}


def step_module(head: str) -> MatchingStep:
    torch.manual_seed(0)
    matcher = Matcher(
        image={"name": "regions", "input_dim": 5, "dim": 6, "normalize": head != "vsrn"},
        text={"name": "gru", "dim": 6, "word_dim": 4, "bidirectional": False, "normalize": head != "vsrn"},
        head=HEADS[head],
        vocabulary=["a", "cat", "dog"],
    )
    module = MatchingStep(matcher, HingeRanking(margin=1.0))
    for parameter in module.parameters():  # also those that start at zero
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def make_batch(seed: int = 0, pairs: int = 8) -> PairBatch:
    """Padded pairs, two of them with the same image."""
    generator = torch.Generator().manual_seed(seed)
    region_mask = torch.arange(3) < torch.randint(1, 4, (pairs, 1), generator=generator)
    word_mask = torch.arange(5) < torch.randint(1, 6, (pairs, 1), generator=generator)
    return PairBatch(
        RegionBatch(torch.randn(pairs, 3, 5, dtype=torch.float64, generator=generator), region_mask),
        torch.randint(0, 7, (pairs, 5), generator=generator) * word_mask,
        word_mask,
        torch.arange(pairs).clamp_min(1),
        torch.arange(pairs),
    )


def make_adversary(form: str = "fast_weights", **options) -> Adversary:
    adversary = Adversary.build({"name": "addr", "form": form, "learning_rate": 0.1, **options}, dim=6, pairs=8)
    adversary.objective.double()
    return adversary


def train(head: str, adversary: Adversary | None, steps: int = 3) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    module = step_module(head)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    log = []
    for step in range(steps):
        terms = module(make_batch(step), step, adversary)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        log.append({name: value.detach() for name, value in terms.items()})
    return module, log


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", HEADS)
def test_beta_zero_is_the_baseline_bit_for_bit(head, form):
    before = torch.get_rng_state()
    adversary = make_adversary(form, beta=0.0)
    assert torch.equal(torch.get_rng_state(), before)
    plain, log = train(head, None)
    with_adversary, other_log = train(head, adversary)
    for one, other in zip(plain.parameters(), with_adversary.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [terms["total"] for terms in log] == [terms["total"] for terms in other_log]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", HEADS)
def test_the_discriminators_step_comes_first_and_moves_nothing_else(head, form):
    module, adversary, batch = step_module(head), make_adversary(form, beta=0.7, alpha=1.0), make_batch()
    encoders, own = copy.deepcopy(list(module.parameters())), copy.deepcopy(adversary.objective.state_dict())
    terms = module(batch, 0, adversary)
    torch.testing.assert_close(list(module.parameters()), encoders, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in module.parameters())
    moved = adversary.objective.state_dict()
    assert any((moved[name] != own[name]).any() for name in own) == (form != "ridge")

    between = copy.deepcopy(moved)
    terms["total"].backward()
    torch.testing.assert_close(adversary.objective.state_dict(), between, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in adversary.objective.parameters())
    torch.testing.assert_close(terms["total"], terms["ranking"] - 0.7 * 8 * terms["addr/adv"])


def test_discriminators_that_remember_are_judged_after_their_step():
    """Zero weights have an error of log 2; a step of theirs has lowered it by the time that the encoders look."""
    module, adversary = step_module("scan"), make_adversary("table", lambda_reg=0.0, learning_rate=0.01)
    terms = module(make_batch(), 0, adversary)
    assert terms["addr/discriminator"].item() == pytest.approx(0.693147, abs=1e-6)
    assert terms["addr/adv"] < 0.692


def test_only_the_rows_of_pairs_in_the_batch_move():
    adversary = make_adversary("table")
    step_module("scan")(make_batch(pairs=5), 0, adversary)
    assert adversary.objective.form.rows.weight.any(dim=1).tolist() == [True] * 5 + [False] * 3


def test_discriminators_win_without_encoders_that_resist():
    module, adversary, batch = step_module("scan"), make_adversary("amortized", beta=0.0), make_batch()
    errors = [module(batch, step, adversary)["addr/adv"].item() for step in range(30)]
    assert errors[-1] < errors[0] / 2


class MeasuredTwice(Adversary):
    """Also takes the gradients of the two losses at the watched embeddings one by one."""

    def watch_gradients(self, embeddings, ranking, adversarial):
        def norm(loss):
            gradients = torch.autograd.grad(loss, embeddings, retain_graph=True)
            return torch.cat([gradient.flatten() for gradient in gradients]).norm().item()

        self.norms = norm(ranking), norm(adversarial)
        return super().watch_gradients(embeddings, ranking, adversarial)


class Unwatched(Adversary):
    """Leaves the gradient of its loss to the backward pass."""

    def watch_gradients(self, embeddings, ranking, adversarial):
        return adversarial


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
def test_a_gradient_that_is_known_arrives_as_it_would_anyway(head, dtype):
    found = []
    for kind in (Adversary, Unwatched):
        module = step_module(head)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            terms = module(make_batch(), 0, kind(make_adversary(beta=3.0).objective))
        (16.0 * terms["total"]).backward()
        found.append({name: parameter.grad for name, parameter in module.named_parameters()})
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("scale", [1.0, 64.0])
@pytest.mark.parametrize("head", HEADS)
def test_gradient_norms_are_those_of_the_two_losses(head, scale):
    """Scaling the loss, as float16 and accumulation do, changes nothing."""
    adversary = MeasuredTwice(make_adversary(beta=2.0).objective)
    (scale * step_module(head)(make_batch(), 0, adversary)["total"]).backward()
    ranking, adversarial = adversary.norms
    assert adversary.gradient_norms() == {
        "addr/ranking_gradient": pytest.approx(ranking, rel=1e-4),
        "addr/adversarial_gradient": pytest.approx(adversarial, rel=1e-4),
        "addr/gradient_ratio": pytest.approx(adversarial / ranking, rel=1e-4),
    }


def test_once_decayed_the_discriminators_rest_and_training_is_the_baseline():
    adversary = make_adversary("amortized", beta=2.0, beta_warmup_steps=1, beta_decay_steps=2)
    module, batch = step_module("scan"), make_batch()
    during = [module(batch, step, adversary) for step in (1, 2)]
    assert [terms["addr/beta"].item() for terms in during] == [2.0, 1.0]
    resting = copy.deepcopy(adversary.state_dict())
    after = module(batch, 3, adversary)
    after["total"].backward()
    torch.testing.assert_close(adversary.state_dict(), resting, rtol=0, atol=0)
    assert after.keys() == module(batch, 3).keys() | {"addr/beta"}
    assert after["addr/beta"] == 0
    assert torch.equal(after["total"], module(batch, 3)["total"])
    assert adversary.gradient_norms() != {}, "those of the last step with a weight, until they are asked for"
    assert adversary.gradient_norms() == {}


@pytest.mark.parametrize("name", ["addr", "mean_match"])
def test_what_is_left_of_an_adversary_is_where_the_losses_are(name, monkeypatch):
    """Or it could not be read together with them; `meta` stands for a GPU."""
    adversary, asked = Adversary.build({"name": name, "beta_decay_steps": 1}, dim=6, pairs=8), []
    (left,) = adversary.terms_at_rest(5, torch.device("meta")).values()
    assert (left.device.type, left.shape) == ("meta", ())
    at_rest = adversary.terms_at_rest
    monkeypatch.setattr(adversary, "terms_at_rest", lambda *given: asked.append(given) or at_rest(*given))
    terms = step_module("scan")(make_batch(), 5, adversary)
    assert asked == [(5, terms["total"].device)]


@pytest.mark.parametrize("head", HEADS)
def test_mean_match_is_an_adversary_without_a_player(head):
    adversary = Adversary.build({"name": "mean_match", "beta": 2.0, "reduction": "mean"}, dim=6, pairs=8)
    assert adversary.optimizer is None
    module = step_module(head)
    terms = module(make_batch(), 0, adversary)
    terms["total"].backward()
    torch.testing.assert_close(terms["total"], terms["ranking"] + 2.0 * terms["mean_match/gap"])
    assert terms["mean_match/beta"] == 2.0
    assert all(value > 0 for value in adversary.gradient_norms().values())


def test_a_resumed_adversary_goes_on_as_the_same_one():
    for form in FORMS:
        module, adversary = step_module("scan"), make_adversary(form)
        module(make_batch(0), 0, adversary)
        resumed = make_adversary(form)
        resumed.load_state_dict(copy.deepcopy(adversary.state_dict()))
        for opponent in (adversary, resumed):
            module(make_batch(1), 1, opponent)
        torch.testing.assert_close(resumed.state_dict(), adversary.state_dict(), rtol=0, atol=0)


def test_mixed_precision_leaves_the_discriminators_in_float32():
    module, adversary = step_module("scan").float(), make_adversary("amortized")
    adversary.objective.float()
    batch = make_batch()
    batch = batch._replace(images=batch.images._replace(regions=batch.images.regions.float()))
    with torch.autocast("cpu", torch.bfloat16):
        terms = module(batch, 0, adversary)
    terms["total"].backward()
    assert terms["addr/adv"].dtype == terms["addr/discriminator"].dtype == torch.float32
    assert all(value > 0 for value in adversary.gradient_norms().values())


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match=r"mean_match' has no option 'alpha'.*known: beta, "):
        Adversary.build({"name": "mean_match", "alpha": 0.1}, dim=6, pairs=8)
    with pytest.raises(ValueError, match=r"unknown adversary 'adr'.*did you mean 'addr'"):
        Adversary.build({"name": "adr"}, dim=6, pairs=8)
    with pytest.raises(ValueError, match=r"no option 'aplha'.*did you mean 'alpha'"):
        Adversary.build({"name": "addr", "aplha": 0.1}, dim=6, pairs=8)
    with pytest.raises(ValueError, match="learning_rate must be at least 0, got -1"):
        make_adversary(learning_rate=-1)
