"""The trainer does what its configuration says, goes on where it stopped, and refuses what cannot work."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import signal

import pytest
import torch

from xmodal import products
from xmodal.data import RegionStore, RegionStoreWriter, load_captions
from xmodal.data.captions import caption_image_index
from xmodal.data.split import open_split
from xmodal.evaluation import evaluate_retrieval
from xmodal.model import Matcher
from xmodal.training import checkpoints, matching, trainer
from xmodal.training.config import OptimizerConfig
from xmodal.training.matching import MatchingTask
from xmodal.training.optimizer import make_optimizer, make_schedule
from xmodal.training.step import MatchingStep
from xmodal.training.trainer import Interrupted, train
from xmodal.training.unread import UnreadSteps


def weights(folder):
    return torch.load(folder / checkpoints.CHECKPOINT, weights_only=True)["step_module"]


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def signal_at(monkeypatch):
    """Sends a signal to this process during a step, as a scheduler or Ctrl-C would."""

    def arrange(step, number=signal.SIGTERM):
        add = UnreadSteps.add

        def add_and_signal(steps, done):
            add(steps, done)
            if done.step == step:
                monkeypatch.setattr(UnreadSteps, "add", add)
                signal.raise_signal(number)

        monkeypatch.setattr(UnreadSteps, "add", add_and_signal)

    return arrange


def test_training_learns_and_keeps_the_best_model(config, change, data_folder, read_log, capsys):
    config = change(config, epochs=15, progress=True)
    best = train(config)
    lines = read_log(config.output)
    losses = [line["loss/total"] for line in lines if "loss/total" in line]
    validations = {line["step"]: line["validation"]["rsum"] for line in lines if "validation" in line}
    assert losses[-1] < losses[3]
    assert best["rsum"] == max(validations.values()) == validations[best["step"]] > 350
    assert len(validations) == 15
    assert lines[-1]["epoch"] == 15

    matcher = Matcher.from_pretrained(config.output / "best")
    split = open_split(data_folder, "dev")
    scores = matcher.score_all(split.source, split.sentences)
    assert evaluate_retrieval(scores, split.relevance.caption_image)["rsum"] == best["rsum"]
    assert matcher.extractor == {"name": "by hand"}
    assert f"rsum {best['rsum']:.1f}  (best)" in capsys.readouterr().out

    environment = json.loads((config.output / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"])
    assert trainer.to_dict(trainer.completed(config)) == checkpoints.load_checkpoint(config.output)["config"]


def test_a_resumed_run_multiplies_as_it_did(config, change, signal_at, monkeypatch):
    key = torch.float32, torch.get_num_threads()
    monkeypatch.setattr(products, "candidates", lambda dtype, threads: ["torch", "numpy"])
    monkeypatch.setattr(products, "_chosen", {key: "numpy"})
    signal_at(2)
    with pytest.raises(Interrupted):
        train(config)
    products._chosen[key] = "torch"
    train(change(config, resume=True))
    used = checkpoints.load_checkpoint(config.output)["environment"]["products"]
    assert used[f"float32 x {key[1]}"] == "numpy"
    assert products._chosen[key] == "torch"


def test_a_resumed_run_that_cannot_multiply_as_it_did_says_so(config, change, signal_at, monkeypatch, capsys):
    signal_at(2)
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.setattr(checkpoints, "load_checkpoint", _with_other_products(checkpoints.load_checkpoint))
    train(change(config, resume=True))
    assert "goes on, but not bit for bit: float32 products on 1 threads were cublas's" in capsys.readouterr().out


def test_a_resumed_run_that_attends_otherwise_says_so(config, change, signal_at, monkeypatch, capsys):
    signal_at(2)
    with pytest.raises(Interrupted):
        train(config)
    then = checkpoints.load_checkpoint(config.output)["environment"]["attention"]
    monkeypatch.setattr(checkpoints, "is_compiled", lambda: then != "compiled")
    train(change(config, resume=True))
    assert f"attention was computed otherwise, {then!r} then" in capsys.readouterr().out


def _with_other_products(load):
    def loaded(folder):
        state = load(folder)
        return {**state, "environment": {**state["environment"], "products": {"float32 x 1": "cublas"}}}

    return loaded


@pytest.mark.parametrize("stop", [2, 5, 6])
def test_a_stopped_and_resumed_run_is_the_same_run(config, change, read_log, signal_at, capsys, stop):
    """Within an epoch and after its last step, with validations in between and two batches a step."""
    config = change(config, accumulate=2, validate_every=2, epochs=3, progress=False)
    whole = change(config, output=config.output / "whole")
    parts = change(config, output=config.output / "parts")
    best = train(whole)

    signal_at(stop)
    with pytest.raises(Interrupted) as interrupted:
        train(parts)
    assert interrupted.value.code == 128 + signal.SIGTERM
    assert "stopping after this step" in capsys.readouterr().out
    assert checkpoints.load_checkpoint(parts.output)["step"] == stop
    # What a run that was killed later logged after its checkpoint comes again, and so does half a line.
    with (parts.output / checkpoints.LOG).open("a") as log:
        log.write(json.dumps({"step": stop + 1, "loss/total": -1.0}) + '\n{"step": ')
    torch.rand(7)
    assert train(change(parts, resume=True)) == best

    assert read_log(parts.output) == read_log(whole.output)
    assert_equal_weights(weights(parts.output), weights(whole.output))
    one, other = (Matcher.from_pretrained(run.output / "best").state_dict() for run in (whole, parts))
    assert_equal_weights(one, other)


@pytest.mark.parametrize("name", ["addr", "mean_match"])
def test_a_run_resumed_in_each_phase_of_beta_is_the_same_run(config, change, read_log, signal_at, name):
    """Warm-up, hold, decay and rest, and the steps where one ends and the next begins."""
    steps = {"beta_warmup_steps": 2, "beta_hold_steps": 2, "beta_decay_steps": 3}
    adversary = {"name": name, "beta": 2.0, **steps}
    config = change(config, epochs=2, adversary=adversary | ({"form": "amortized"} if name == "addr" else {}))
    whole = change(config, output=config.output / "whole")
    train(whole)
    lines = [line for line in read_log(whole.output) if "loss/total" in line]
    betas = [line[f"loss/{name}/beta"] for line in lines]
    assert betas == pytest.approx([0.0, 1.0, 2.0, 2.0, 2.0, 4 / 3, 2 / 3, *[0.0] * (len(lines) - 7)])
    assert [f"{name}/gradient_ratio" in line for line in lines] == [step < 7 for step in range(len(lines))]
    for stop in (1, 2, 4, 6, 7, 9):
        parts = change(config, output=config.output / f"parts{stop}")
        signal_at(stop)
        with pytest.raises(Interrupted):
            train(parts)
        train(change(parts, resume=True))
        assert read_log(parts.output) == read_log(whole.output)
        assert_equal_weights(weights(parts.output), weights(whole.output))


def test_a_run_with_dropout_resumes_as_the_same_run_and_keeps_it_in_its_model(config, change, read_log, signal_at):
    image = {**config.model.image, "input_dropout": 0.2, "dropout": 0.1}
    text = {**config.model.text, "word_dropout": 0.2, "dropout": 0.1}
    config = change(config, model__image=image, model__text=text)
    whole, parts = (change(config, output=config.output / name) for name in ("whole", "parts"))
    train(whole)
    signal_at(3)
    with pytest.raises(Interrupted):
        train(parts)
    train(change(parts, resume=True))
    assert read_log(parts.output) == read_log(whole.output)
    assert_equal_weights(weights(parts.output), weights(whole.output))
    model = Matcher.from_pretrained(parts.output / "best")
    assert (model.image_encoder.input_dropout, model.text_encoder.word_dropout) == (0.2, 0.2)


def test_a_finished_run_can_go_on_for_more_epochs(config, change, read_log):
    longer = change(config, epochs=3, output=config.output / "longer")
    train(longer)
    train(config)
    assert train(change(config, resume=True))["step"] > 0  # nothing left to do
    train(change(config, resume=True, epochs=3))
    assert read_log(config.output) == read_log(longer.output)


def test_interrupting_twice_stops_at_once(config, signal_at, monkeypatch):
    signal_at(1, signal.SIGINT)
    monkeypatch.setattr(trainer._SignalFlag, "agreed", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resuming_with_other_settings_is_refused(config, change):
    train(config)
    other = change(config, resume=True, optimizer__learning_rate=0.5, objective={"name": "info_nce"})
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.01 then, 0.5 now") as error:
        train(other)
    assert "objective.name: hinge then, info_nce now" in str(error.value)
    assert " epochs: " not in str(error.value)
    train(change(config, resume=True, data__workers=1, progress=False))


def test_the_length_of_a_cosine_schedule_cannot_change(config, change):
    config = change(config, optimizer__schedule="cosine")
    train(config)
    with pytest.raises(ValueError, match="epochs: 2 then, 3 now"):
        train(change(config, resume=True, epochs=3))


def test_an_existing_run_is_not_overwritten(config, change):
    train(config)
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(config)
    (config.output / checkpoints.CHECKPOINT).unlink()
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(config)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(change(config, resume=True))
    (config.output / checkpoints.CHECKPOINT).write_bytes(b"PK")
    with pytest.raises(ValueError, match="damaged"):
        train(change(config, resume=True))


def test_averaging_two_batches_equals_averaging_their_gradients(config, change):
    """One step over a whole epoch, against the gradients of its batches one by one."""
    config = change(
        config, epochs=1, batch_size=16, accumulate=100, optimizer__clip_norm=0.0, optimizer__warmup_steps=0
    )
    train(config)
    state = checkpoints.load_checkpoint(config.output)
    assert state["step"] == 1

    trainer.set_seed(config.seed)
    task = MatchingTask(config, torch.device("cpu"))
    module, batches = task.step_module, list(task.batches(0, 1).epoch(0))
    for batch in batches:
        (module(task.dataset.__getitems__(batch), 0)["total"] / len(batches)).backward()
    first_moments = [entry["exp_avg"] for entry in state["optimizer"]["state"].values()]
    for moment, parameter in zip(first_moments, module.parameters(), strict=True):
        torch.testing.assert_close(moment, 0.1 * parameter.grad, rtol=1e-4, atol=1e-7)


def test_a_last_group_that_is_smaller_is_averaged_over_its_own_size(config, change, read_log):
    """Three batches in groups of two: the second group is one batch, and its gradient counts whole."""
    norms = {}
    for accumulate in (1, 2):
        run = change(config, output=config.output / str(accumulate), accumulate=accumulate, epochs=1)
        run = change(run, batch_size=32, optimizer__learning_rate=0.0, objective={"name": "hinge", "hardest": 0.5})
        train(run)
        norms[accumulate] = [line["gradient_norm"] for line in read_log(run.output) if "gradient_norm" in line]
    assert len(norms[1]) == 3
    assert norms[2][1] == pytest.approx(norms[1][2])


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_gradients_are_clipped(config, change, read_log, monkeypatch, clip_norm):
    seen = []
    step = torch.optim.Adam.step

    def spy(optimizer, *args, **kwargs):
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        seen.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    train(change(config, epochs=1, optimizer__clip_norm=clip_norm))
    norms = [line["gradient_norm"] for line in read_log(config.output) if "gradient_norm" in line]
    assert max(norms) > 0.5
    wanted = [min(norm, clip_norm) if clip_norm else norm for norm in norms]
    assert seen == pytest.approx(wanted, rel=1e-4)


def test_bfloat16_trains_beside_float32_in_one_process(config, change, read_log):
    full = change(config, output=config.output / "full")
    low = change(config, output=config.output / "low", mixed_precision="bf16")
    losses = []
    for run in (full, low):
        train(run)
        losses.append([line["loss/total"] for line in read_log(run.output) if "loss/total" in line])
    assert losses[0][0] != losses[1][0] == pytest.approx(losses[0][0], rel=1e-2)
    assert losses[1][-1] < 0.1 * losses[1][0]
    assert all(value.dtype == torch.float32 for value in weights(low.output).values())


def test_workers_do_not_change_the_run(config, change, read_log):
    runs = [change(config, output=config.output / str(n), epochs=1, data__workers=n) for n in (0, 2)]
    for run in runs:
        train(run)
    assert read_log(runs[0].output) == read_log(runs[1].output)


def test_features_stay_as_stored_until_they_are_on_the_device(config, change, read_log, data_folder, tmp_path):
    halves = shutil.copytree(data_folder, tmp_path / "halves")
    for split in ("train", "dev"):
        store = RegionStore(data_folder / f"{split}.h5")
        with RegionStoreWriter(
            halves / f"{split}.h5",
            dim=store.dim,
            max_regions=store.max_regions,
            dtype="float16",
            extractor="by hand",
            overwrite=True,
        ) as writer:
            for position, name in enumerate(store.image_id):
                writer.write(name, store[position])
    config = change(config, data__folder=halves)
    task = MatchingTask(config, torch.device("cpu"))
    batch = task.dataset.__getitems__([3, 1])
    assert batch.images.regions.dtype == torch.float16
    prepared, seen = task.prepare(batch), []
    assert prepared.images.regions.dtype == torch.float16
    task.model.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].regions))
    task.step_module(prepared, step=0)
    assert torch.equal(seen[0], RegionStore(halves / "train.h5").batch(batch.image).regions)
    assert seen[0].dtype == torch.float32
    train(config)


@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_how_often_steps_are_read_changes_nothing_but_when(config, change, read_log, log_every):
    runs = [change(config, output=config.output / str(every), log_every=every) for every in (10, log_every)]
    assert train(runs[0]) == train(runs[1])
    assert read_log(runs[0].output) == read_log(runs[1].output)
    steps = [line["step"] for line in read_log(runs[1].output) if "loss/total" in line]
    assert steps == list(range(1, len(steps) + 1))


def test_workers_can_be_started_anew(config):
    """Where processes are spawned and not forked, the data that a worker gets is pickled."""
    pairs = MatchingTask(config, torch.device("cpu")).dataset
    copied = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(copied.__getitems__([3, 1]).tokens, pairs.__getitems__([3, 1]).tokens)


def test_a_loss_that_is_not_finite_stops_naming_its_pairs(config, monkeypatch):
    calls = []
    forward = MatchingStep.forward

    def poisoned(module, batch, step):
        calls.append(batch)
        terms = forward(module, batch, step)
        return {"total": terms["total"] * float("nan")} if step == 7 else terms

    monkeypatch.setattr(MatchingStep, "forward", poisoned)
    with pytest.raises(FloatingPointError, match=r"loss is nan after step 7.*The last checkpoint is intact") as error:
        train(config)
    assert str(calls[7].image.tolist()) in str(error.value)
    assert str(calls[7].caption.tolist()) in str(error.value)
    assert checkpoints.load_checkpoint(config.output)["step"] < 7
    Matcher.from_pretrained(config.output / "best")


def test_a_gradient_that_is_not_finite_stops_too(config, monkeypatch):
    forward = MatchingStep.forward

    def poisoned(module, batch, step):
        total = forward(module, batch, step)["total"]
        total.register_hook(lambda gradient: gradient * float("inf"))
        return {"total": total}

    monkeypatch.setattr(MatchingStep, "forward", poisoned)
    with pytest.raises(FloatingPointError, match="gradient is"):
        train(config)


def test_an_unwritable_output_is_refused_before_training(config, change, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(matching, "open_source", lambda *_: pytest.fail("came too far"))
    with pytest.raises(OSError, match=r"cannot write .*file/run"):
        train(change(config, output=tmp_path / "file" / "run"))


@pytest.mark.parametrize("name", ["train.h5", "dev.h5", "captions.jsonl", "vocabulary.json"])
def test_a_missing_file_is_named(config, change, data_folder, tmp_path, name):
    for file in data_folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(FileNotFoundError, match=name):
        train(change(config, data__folder=tmp_path))


def folder_with(data_folder, tmp_path, split, dim=8, ids=None):
    """The data folder with another region store for one split."""
    for file in data_folder.iterdir():
        if file.name != f"{split}.h5":
            (tmp_path / file.name).symlink_to(file)
    with RegionStoreWriter(tmp_path / f"{split}.h5", dim=dim, extractor="another") as writer:
        for image_id in ids or [f"{split}-{number}" for number in range(40)]:
            writer.write(image_id, torch.ones(2, dim))
    return tmp_path


def test_splits_of_different_dim_are_refused(config, change, data_folder, tmp_path):
    with pytest.raises(ValueError, match=r"'train' has images of input_dim 8 and split 'dev' of input_dim 5"):
        train(change(config, data__folder=folder_with(data_folder, tmp_path, "dev", dim=5)))


def test_validation_can_use_the_first_images_only(config, change, data_folder):
    first = change(config, epochs=1, data__validation_images=3)
    best = train(first)
    store = RegionStore(data_folder / "dev.h5")
    captions = load_captions(data_folder / "captions.jsonl", "dev")
    captions = [caption for caption in captions if caption.image_id in store.image_id[:3]]
    matcher = Matcher.from_pretrained(first.output / "best")
    scores = matcher.score_all(store, [caption.caption for caption in captions])[:3]
    wanted = evaluate_retrieval(scores, caption_image_index(captions, store.image_id[:3]))
    assert best["rsum"] == pytest.approx(wanted["rsum"])


def test_a_caption_without_image_is_refused(config, change, data_folder, tmp_path):
    folder = folder_with(data_folder, tmp_path, "train", ids=["train-0", "train-1"])
    with pytest.raises(ValueError, match="captions are about images that are not there"):
        train(change(config, data__folder=folder))


def test_a_validation_image_without_caption_is_refused(config, change, data_folder, tmp_path):
    with pytest.raises(ValueError, match="30 of 40 images have no caption"):
        train(change(config, data__folder=folder_with(data_folder, tmp_path, "dev")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__head": {"name": "scam"}}, "unknown head 'scam' .*did you mean 'scan'"),
        ({"model__head": {"name": "scan", "temprature": 1}}, "no option 'temprature' .*'temperature'"),
        ({"model__head": {}}, "unknown head None"),
        ({"model__image": {"name": "regions"}}, "image encoder 'regions' needs the option 'dim'"),
        (
            {"model__image": {"name": "regions", "dim": 16, "input_dim": 9}},
            "input_dim is stated as 9, but it is 8 here",
        ),
        ({"model__image": {"name": "regions", "dim": 8}}, "image encoder has dim 8 and the text encoder dim 16"),
        ({"model__text": {"name": "grue", "dim": 16}}, "unknown text encoder 'grue' .*'gru'"),
        ({"objective": {"name": "hing"}}, "unknown objective 'hing' .*'hinge'"),
        (
            {"optimizer__rates": {"matcher.text": 0.1}},
            "no name .* begins with 'matcher.text'",
        ),
        ({"scoring": "triton"}, "the Triton kernel needs a CUDA device"),
        ({"protocol": "f30k_1k"}, "did you mean 'f30k-1k'"),
        ({"protocol": "coco-5k"}, "takes 5000 images and 25000 captions, but there are 10 x"),
        ({"data__train": "trian"}, "trian.h5"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(config, change, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(change(config, **changes))
    assert not (config.output / checkpoints.CHECKPOINT).exists()


def test_word_vectors_start_the_embeddings(config, change, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("cat " + "0.5 " * 8 + "\n")
    matcher = MatchingTask(change(config, model__word_vectors=path), torch.device("cpu")).model
    cat = matcher.tokenizer.words.index("cat")
    assert matcher.text_encoder.embedding.weight[cat].tolist() == [0.5] * 8
    assert matcher.text_encoder.embedding.weight[cat + 1].abs().max() <= 0.1

    path.write_text("cat 1.0 2.0\n")
    with pytest.raises(ValueError, match="set the text encoder's word_dim to 2"):
        train(change(config, model__word_vectors=path))


def test_rates_scale_the_learning_rate_of_the_longest_name_that_fits(config, change):
    rates = {"matcher.text_encoder": 0.1, "matcher.text_encoder.embedding": 0.0}
    module = MatchingTask(config, torch.device("cpu")).step_module
    module.register_parameter("free", torch.nn.Parameter(torch.zeros(1)))
    settings = OptimizerConfig(learning_rate=1.0, rates=rates, schedule="constant")
    optimizer = make_optimizer(module, settings)
    make_schedule(optimizer, settings, steps_per_epoch=1, epochs=1)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    wanted = {"free": 1.0, "image_encoder": 1.0, "text_encoder.rnn": 0.1, "text_encoder.embedding": 0.0}
    for name, parameter in module.named_parameters():
        beginning = next(b for b in wanted if name.removeprefix("matcher.").startswith(b))
        assert rate.pop(id(parameter)) == wanted[beginning]
    assert not rate


def test_a_part_with_rate_zero_stays_as_it_was(config, change):
    trainer.set_seed(config.seed)
    before = {
        name: value.clone() for name, value in MatchingTask(config, torch.device("cpu")).model.state_dict().items()
    }
    train(change(config, optimizer__rates={"matcher.text_encoder.embedding": 0.0}))
    after = Matcher.from_pretrained(config.output / "best").state_dict()
    assert {name for name, value in after.items() if torch.equal(value, before[name])} == {
        "text_encoder.embedding.weight"
    }


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_schedules_follow_their_formulas(schedule, warmup):
    peak, per_epoch, epochs = 2e-4, 7, 12
    config = OptimizerConfig(learning_rate=peak, schedule=schedule, decay_epochs=3, warmup_steps=warmup)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = make_schedule(optimizer, config, per_epoch, epochs)
    for step in range(per_epoch * epochs):
        epoch = step // per_epoch
        wanted = {
            "step": peak * 0.1 ** (epoch // 3),
            "cosine": peak * (1 + math.cos(math.pi * (step - warmup) / (84 - warmup))) / 2,
            "constant": peak,
        }[schedule]
        if step < warmup:
            wanted = peak * (step + 1) / warmup
        assert scheduler.get_last_lr()[0] == pytest.approx(wanted, rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_the_log_says_what_rate_a_step_used(config, read_log):
    train(config)
    rates = [line["learning_rate"] for line in read_log(config.output) if "learning_rate" in line]
    assert rates[:4] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01])


def test_a_run_goes_on_where_its_data_is_now(config, change, data_folder, tmp_path, read_log):
    """Moved, or its path written otherwise: the same run, bit for bit; other data is refused, whatever its path."""
    whole = change(config, output=tmp_path / "whole", epochs=3)
    train(whole)
    train(config)
    moved = tmp_path / "moved"
    shutil.copytree(data_folder, moved)
    train(change(config, resume=True, epochs=3, data__folder=moved / ".." / "moved"))
    assert read_log(config.output) == read_log(whole.output)
    assert_equal_weights(weights(config.output), weights(whole.output))
    assert checkpoints.load_checkpoint(config.output)["config"]["data"]["folder"].endswith("moved")

    lines = (moved / "captions.jsonl").read_text().splitlines(keepends=True)
    (moved / "captions.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(ValueError, match=r"moved holds other data than this run was started with"):
        train(change(config, resume=True, epochs=4, data__folder=moved))


def test_word_vectors_may_move(config, change, tmp_path):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("dog " + " ".join("1" * 8) + "\n")
    config = change(config, model__word_vectors=vectors)
    train(config)
    vectors.rename(tmp_path / "glove.txt")
    train(change(config, resume=True, epochs=3, model__word_vectors=tmp_path / "glove.txt"))


def test_a_checkpoint_that_does_not_know_its_data_goes_on_from_the_same_path_only(
    config, change, data_folder, tmp_path
):
    train(config)
    state = checkpoints.load_checkpoint(config.output)
    del state["data"]
    checkpoints.save_checkpoint(config.output, state)
    shutil.copytree(data_folder, tmp_path / "moved")
    with pytest.raises(ValueError, match=r"data\.folder: .* then, .*moved now"):
        train(change(config, resume=True, data__folder=tmp_path / "moved"))
    train(change(config, resume=True))
