"""How the released code of VSRN, SCAN and BFAN steps, clips and picks its best checkpoint, written plainly."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from tiny_data import DIM

from xmodal.training import checkpoints
from xmodal.training.config import OptimizerConfig, RetrievalConfig, TrainConfig, criterion_of, load_recipe
from xmodal.training.matching import MatchingTask
from xmodal.training.optimizer import clip_gradient, make_optimizer, parameter_groups
from xmodal.training.trainer import Interrupted, set_seed, train


@pytest.fixture
def vsrn(config, change):
    """VSRN's recipe with its captioner, small."""
    published = load_recipe("vsrn_f30k")
    model = dataclasses.replace(
        published.model,
        image={**published.model.image, "dim": DIM},
        text={**published.model.text, "word_dim": 6},
        captioner={"hidden_dim": 8, "word_dim": 6, "dropout": 0.2},
    )
    optimizer = dataclasses.replace(published.optimizer, learning_rate=0.01, decay_epochs=4)
    return change(config, model=model, optimizer=optimizer, objective=published.objective, epochs=10, batch_size=18)


class Listed(torch.optim.Adam):
    """The plain loop of Adam over a list that may name a parameter twice."""

    def __init__(self, parameters, rate):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate parameters")
            super().__init__(parameters, lr=rate, foreach=False)


def released_clipping(parameters, limit):
    """Norms of the list are summed, then every entry of the list is scaled."""
    norm = sum(float(parameter.grad.norm()) ** 2 for parameter in parameters) ** 0.5
    for parameter in parameters:
        parameter.grad.mul_(min(1.0, limit / (norm + 1e-6)))
    return norm


def released_training(config):
    """Parameters, and norms of gradients, after all steps of the released VSRN's rule."""
    set_seed(config.seed)
    task = MatchingTask(config, torch.device("cpu"))
    module = task.step_module.train()
    matcher, settings = task.model, config.optimizer
    listed = [p for name, p in matcher.named_parameters() if not name.startswith("captioner")]
    listed += [*matcher.captioner.parameters(), *matcher.captioner.parameters()]
    optimizer = Listed(listed, settings.learning_rate)
    batches, step, norms = task.batches(0, 1), 0, []
    for epoch in range(config.epochs):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * 0.1 ** (epoch // settings.decay_epochs)
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            module(task.dataset.__getitems__(batch), step)["total"].backward()
            norms.append(released_clipping(listed, settings.clip_norm))
            optimizer.step()
            step += 1
    return module.state_dict(), norms


def test_fifty_steps_of_vsrn_are_those_of_the_released_rule(vsrn, read_log):
    """The optimizer lists the captioner twice: two steps a batch, twice in the norm, scaled twice."""
    train(vsrn)
    trained = checkpoints.load_checkpoint(vsrn.output)
    expected, norms = released_training(vsrn)
    assert trained["step"] == len(norms) == 50
    assert min(norms) > vsrn.optimizer.clip_norm  # every step is clipped
    logged = [line["gradient_norm"] for line in read_log(vsrn.output) if "gradient_norm" in line]
    assert logged == pytest.approx(norms, rel=1e-4)
    for name, value in expected.items():
        # A bias before batch norm has no gradient but rounding, of which Adam makes whole steps; the mean absorbs it.
        if "head.graph" not in name or not name.endswith(("output.bias", "running_mean")):
            torch.testing.assert_close(trained["step_module"][name], value, rtol=1e-4, atol=1e-5)
    assert {int(state["step"]) for state in trained["optimizer"]["state"].values()} == {50, 100}


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax"])
def test_repeated_steps_are_those_of_a_list_with_duplicates(name):
    """Bit for bit, with weight decay and a part that steps three times, in groups of their own rates."""
    config = OptimizerConfig(name, 0.1, rates={"1": 0.5}, weight_decay=0.1, repeated={"1": 2, "1.bias": 3})
    one, other = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    optimizer = make_optimizer(one, config)
    last = [other[1].weight] * 2 + [other[1].bias] * 3
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}[name]
    with pytest.warns(UserWarning, match="duplicate parameters"):
        listed = kind([{"params": other[0].parameters()}, {"params": last}], 0.1, weight_decay=0.1, foreach=False)
    inputs = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0))
    for batch in inputs:
        for module, stepping in ((one, optimizer), (other, listed)):
            stepping.zero_grad()
            module(batch).square().sum().backward()
            stepping.step()
    for wanted, parameter in zip(other.parameters(), one.parameters(), strict=True):
        assert torch.equal(parameter, wanted)
    assert optimizer.param_groups[0]["times"] == 1  # and its gradients are still there
    assert all(parameter.grad is not None for parameter in one.parameters())


def test_clipping_counts_and_scales_as_often_as_listed():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    groups = parameter_groups(module, OptimizerConfig(repeated={"1": 2, "1.bias": 3}))
    listed = [*module[0].parameters(), module[1].weight, module[1].weight, *[module[1].bias] * 3]
    for limit in (0.5, 1000.0, float("inf")):
        module.zero_grad()
        module(torch.ones(5, 3)).square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in module.parameters()]
        norm = clip_gradient(groups, limit)
        clipped = [parameter.grad.clone() for parameter in module.parameters()]
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            parameter.grad.copy_(gradient)
        assert released_clipping(listed, limit) == pytest.approx(float(norm))
        for parameter, gradient in zip(module.parameters(), clipped, strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


@pytest.fixture
def stopped_at_step_3(monkeypatch):
    """Trains until the end of the third step, and is told to stop."""

    def stop(config):
        agreed = iter([False, False, True])
        with monkeypatch.context() as patch:
            patch.setattr("xmodal.training.trainer._SignalFlag.agreed", lambda *_: next(agreed))
            with pytest.raises(Interrupted):
                train(config)

    return stop


def test_a_run_that_repeats_steps_is_resumed_exactly(vsrn, change, read_log, stopped_at_step_3):
    vsrn = change(vsrn, epochs=2, validate_every=2)
    whole, parts = (change(vsrn, output=vsrn.output / name) for name in ("whole", "parts"))
    best = train(whole)
    stopped_at_step_3(parts)
    assert checkpoints.load_checkpoint(parts.output)["step"] == 3
    with pytest.raises(ValueError, match=r"optimizer.repeated.matcher.captioner: 2 then, None now"):
        train(change(parts, resume=True, optimizer__repeated={}))
    assert train(change(parts, resume=True)) == best
    assert read_log(parts.output) == read_log(whole.output)
    one, other = (checkpoints.load_checkpoint(run.output)["step_module"] for run in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def scripted(monkeypatch):
    """Validations, one after another, whose results are given."""

    def arrange(*results):
        remaining = iter(results)
        monkeypatch.setattr(MatchingTask, "validate", lambda _: next(remaining))
        monkeypatch.setattr(MatchingTask, "summary", lambda *_: "")

    return arrange


def validation(rsum, first=0.0, tenth=0.0):
    way = {"R@1": first, "R@5": first, "R@10": tenth}
    return {"i2t": way, "t2i": way, "rsum": rsum}


@pytest.mark.parametrize(("best_at", "step"), [("every_validation", 4), ("epoch_ends", 6)])
def test_the_best_model_is_picked_where_it_may_be(config, change, scripted, read_log, best_at, step):
    """Six steps an epoch, validated every two: SCAN and BFAN only log what is no epoch's end, VSRN picks from all."""
    scripted(*map(validation, (100, 300, 200, 150, 250, 190)))
    best = train(change(config, epochs=2, validate_every=2, best_at=best_at))
    assert (best["step"], best["rsum"]) == (step, {4: 300, 6: 200}[step])
    assert [line["step"] for line in read_log(config.output) if "validation" in line] == [2, 4, 6, 8, 10, 12]


def test_a_run_without_an_epochs_end_yet_has_no_best_model(config, change, scripted, stopped_at_step_3):
    config = change(config, epochs=1, validate_every=2, best_at="epoch_ends")
    scripted(*map(validation, (300, 200, 100)))
    stopped_at_step_3(config)
    assert not (config.output / checkpoints.BEST).exists()
    assert train(change(config, resume=True))["step"] == 6
    assert (config.output / checkpoints.BEST).is_dir()


def test_a_criterion_may_be_a_sum(config, change, scripted):
    """VSRN leaves R@10 out."""
    scripted(validation(500.0, first=20.0, tenth=90.0), validation(400.0, first=30.0, tenth=40.0))
    criterion = "i2t.R@1 + i2t.R@5 + t2i.R@1 + t2i.R@5"
    assert criterion_of(validation(0.0, first=30.0, tenth=40.0), criterion) == 120.0
    assert train(change(config, criterion=criterion))["rsum"] == 400.0


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(criterion="i2t.R@1 + t2i.R@7"), r"'t2i.R@7' is no result \(did you mean 't2i.R@"),
        (lambda: TrainConfig(criterion="rsum +"), "'' is no result"),
        (lambda: RetrievalConfig(criterion="R@1+mAP"), "'mAP' is no result"),
        (lambda: TrainConfig(best_at="epoch_end"), "best_at is 'epoch_end' .*wanted every_validation or epoch_ends"),  # type: ignore[arg-type]
        (lambda: OptimizerConfig(repeated={"matcher": 0}), "repeated.matcher is 0; wanted a whole number"),
        (lambda: OptimizerConfig(repeated={"matcher": 1.5}), "repeated.matcher is 1.5; wanted a whole number"),  # type: ignore[dict-item]
    ],
)
def test_options_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.bad_input
def test_a_part_to_repeat_must_exist():
    with pytest.raises(ValueError, match=r"repeated: no name of a trained parameter begins with 'wieght'"):
        parameter_groups(torch.nn.Linear(2, 3), OptimizerConfig(repeated={"wieght": 2}))


SCAN_VARIANTS = {  # from the tables of arguments in the released README
    ("t2i", "lse"): {"direction": "t2i", "aggregation": "logsumexp", "lse_scale": 6.0, "temperature": 9.0},
    ("t2i", "avg"): {"direction": "t2i", "aggregation": "mean", "temperature": 9.0},
    ("i2t", "lse"): {"direction": "i2t", "aggregation": "logsumexp", "lse_scale": 5.0, "temperature": 4.0},
    ("i2t", "avg"): {"direction": "i2t", "aggregation": "mean", "temperature": 4.0},
}


def released_arguments():
    """Epochs, epochs between decays, learning rate, steps between validations, head; by the name of the recipe."""
    for (direction, aggregation), head in SCAN_VARIANTS.items():
        name, head = f"scan_{direction}_{aggregation}", {"name": "scan", "normalization": "clipped_l2", **head}
        yield f"{name}_f30k", 30, 15, 2e-4, 500, head
        larger = {"lse_scale": 20.0} if (direction, aggregation) == ("i2t", "lse") else {}
        yield f"{name}_coco", 20, 10, 5e-4, 500, {**head, **larger}
    for focal in ("equal", "prob"):
        head = {"name": "bfan", "focal": focal, "temperature": 20.0}
        yield f"bfan_{focal}_f30k", 15, 15, 2e-4, 1500, head
        yield f"bfan_{focal}_coco", 20, 15, 5e-4, 1500, head
    naaf = {"name": "naaf", "temperature": 20.0, "intra_temperature": 5.0, "penalty": 2.0, "learn_threshold": True}
    yield "naaf_f30k", 20, 10, 5e-4, 0, naaf
    yield "naaf_coco", 20, 10, 5e-4, 0, naaf
    pooling = {"name": "self_attention", "dropout": 0.4}
    for module, epochs, decay_epochs in (("sgr", 40, 30), ("saf", 30, 20)):
        head = {"name": "sgraf", "module": module, "sim_dim": 256, "steps": 3, "temperature": 9.0}
        head |= {"pooling": {**pooling, "norm": "slot", "slots": 36}, "caption_pooling": {**pooling, "norm": "none"}}
        yield f"sgraf_{module}_f30k", epochs, decay_epochs, 2e-4, 1000, head
        yield f"sgraf_{module}_coco", 20, 10, 2e-4, 1000, head
    head = {"name": "vsrn", "layers": 4, "region_norm": "region"}
    yield "vsrn_f30k", 30, 10, 2e-4, 500, {**head, "norm": "batch"}
    yield "vsrn_coco", 30, 15, 2e-4, 500, {**head, "norm": "l2"}


@pytest.mark.parametrize("arguments", released_arguments(), ids=lambda arguments: arguments[0])
def test_recipes_hold_the_released_arguments(arguments):
    """Every value of the released parsers and of the README's commands that decides what is trained and picked."""
    name, epochs, decay_epochs, rate, validate_every, head = arguments
    config, is_vsrn = load_recipe(name), name.startswith("vsrn")
    assert config.model.head == head
    batch_size = 256 if name == "naaf_coco" else 128
    assert (config.epochs, config.batch_size, config.validate_every) == (epochs, batch_size, validate_every)
    assert config.optimizer == OptimizerConfig(
        "adam", rate, clip_norm=2.0, decay_epochs=decay_epochs, repeated={"matcher.captioner": 2} if is_vsrn else {}
    )
    assert (config.optimizer.schedule, config.optimizer.decay, config.accumulate) == ("step", 0.1, 1)
    hinge = {"margin": 0.2, "hardest": 1.0, "reduction": "sum", "warmup_steps": 0, "mask_false_negatives": False}
    assert config.objective == {"name": "hinge", **hinge}
    assert config.data.validation_images == 1000
    assert (config.best_at, config.criterion) == (
        ("every_validation", "i2t.R@1 + i2t.R@5 + t2i.R@1 + t2i.R@5") if is_vsrn else ("epoch_ends", "rsum")
    )
    dim = 2048 if is_vsrn else 1024
    image = {"name": "regions", "dim": dim, "normalize": not is_vsrn}
    assert config.model.image == (image if is_vsrn else {**image, "weight_norm": False})
    text = {"name": "gru", "word_dim": 300, "bidirectional": not is_vsrn}
    text |= {"word_dropout": 0.4} if name.startswith("sgraf") else {}
    assert config.model.text == ({**text, "normalize": False} if is_vsrn else text)
    assert config.model.captioner == ({"hidden_dim": 512, "word_dim": 300, "dropout": 0.2} if is_vsrn else {})
    assert config.model.captioning_weight == 1.0
    assert (config.data.drop_regions, config.data.drop_words, config.adversary, config.protocol) == (0, 0, {}, "plain")


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
@pytest.mark.parametrize("base", ["scan_t2i_lse", "bfan_prob", "vsrn"])
def test_addr_recipes_change_nothing_else(base, dataset):
    config, published = load_recipe(f"{base}_addr_{dataset}"), load_recipe(f"{base}_{dataset}")
    assert dataclasses.replace(config, adversary={}, output=published.output) == published
