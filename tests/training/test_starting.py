"""Runs that begin with the weights of a model: fine-tuning, and training in stages."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from xmodal.data import Vocabulary
from xmodal.data.labelled import LabelledSet, save_features
from xmodal.embedder import Embedder
from xmodal.model import Matcher
from xmodal.training.config import EmbedderConfig, LabelledDataConfig, OptimizerConfig, RetrievalConfig
from xmodal.training.trainer import train

DPRNN = {"name": "dprnn", "candidates": 3}


def weights(run):
    return Matcher.from_pretrained(run).state_dict()


def test_a_run_that_does_not_move_is_the_model_it_began_with(config, change, tmp_path):
    earlier = train(config)
    later = change(config, output=tmp_path / "later", model__start_from=config.output, seed=7, epochs=1)
    later = change(later, optimizer__learning_rate=0.0)
    result = train(later)
    assert result["rsum"] == earlier["rsum"]
    taken, given = weights(later.output), weights(config.output)
    assert all(torch.equal(taken[name], given[name]) for name in given)


def test_dprnn_is_trained_in_stages(config, change, tmp_path, capsys):
    """As published: first without the recurrence, then the recurrence alone, then everything."""
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    run = change(config, epochs=1, optimizer__warmup_steps=0)
    train(change(run, output=one, model__head={**DPRNN, "recurrent": False}))

    alone = OptimizerConfig(learning_rate=0.01, rates={"matcher": 0.0, "matcher.head.rnn": 1.0})
    staged = change(run, model__head=DPRNN)
    train(change(staged, output=two, model__start_from=one, optimizer=alone, progress=True))
    assert f"weights of {one}; new: head.rnn\n" in capsys.readouterr().out
    before, after = weights(one), weights(two)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert set(after) - set(before) == {name for name in after if name.startswith("head.rnn.")}

    train(change(staged, output=three, model__start_from=two))
    moved = {name for name, tensor in weights(three).items() if not torch.equal(tensor, after[name])}
    assert {name.split(".")[0] for name in moved} == {"image_encoder", "text_encoder", "head"}


def test_a_gru_that_learns_alone_moves(config, change, tmp_path):
    """The stage before says nothing of it, so two lengths of the same stage tell."""
    train(change(config, output=tmp_path / "one", model__head={**DPRNN, "recurrent": False}, epochs=1))
    rates = {"matcher": 0.0, "matcher.head.rnn": 1.0}
    ends = []
    for epochs in (1, 2):
        run = change(config, output=tmp_path / str(epochs), model__head=DPRNN, model__start_from=tmp_path / "one")
        train(change(run, epochs=epochs, optimizer__rates=rates, validate_every=10_000))
        ends.append(torch.load(run.output / "checkpoint.pt", weights_only=False)["step_module"])
    same = {name for name in ends[0] if torch.equal(ends[0][name], ends[1][name])}
    assert {name for name in ends[0] if "head.rnn" in name} == set(ends[0]) - same


def test_the_words_are_those_of_the_model(config, change, tmp_path):
    train(change(config, epochs=1))
    folder = tmp_path / "data"
    shutil.copytree(config.data.folder, folder)
    Vocabulary(["cat"]).save(folder / "vocabulary.json")
    later = change(config, output=tmp_path / "later", data__folder=folder, model__start_from=config.output, epochs=1)
    train(later)
    words = [Matcher.from_pretrained(run.output).tokenizer.words for run in (config, later)]
    assert words[0] == words[1] != ["cat"]


@pytest.mark.parametrize("option", ["resume", "resume_if_present"])
def test_such_a_run_goes_on(config, change, tmp_path, read_log, capsys, option):
    """What was drawn and what was taken is in the checkpoint."""
    train(change(config, epochs=1))
    whole = change(config, output=tmp_path / "whole", model__start_from=config.output)
    train(whole)
    parts = change(whole, output=tmp_path / "parts", progress=True)
    train(dataclasses.replace(parts, epochs=1))
    assert "begins with" in capsys.readouterr().out
    train(dataclasses.replace(parts, **{option: True}))
    assert "begins with" not in capsys.readouterr().out
    assert read_log(parts.output)[-1] == read_log(whole.output)[-1]


def test_an_embedder_begins_with_another(tmp_path):
    names, classes = [f"{number}.jpg" for number in range(8)], ["gull", "wren", "tern", "owl"] * 2
    save_features(tmp_path / "birds.h5", torch.randn(8, 16), LabelledSet(names, classes, ["train", "dev"] * 4), {})
    earlier = Embedder({"name": "mlp", "input_dim": 16}, dim=4)
    earlier.save_pretrained(tmp_path / "earlier")
    config = RetrievalConfig(
        output=tmp_path / "run",
        data=LabelledDataConfig(tmp_path / "birds.h5", images_per_class=2),
        model=EmbedderConfig({"name": "mlp"}, dim=4, start_from=tmp_path / "earlier"),
        optimizer=OptimizerConfig(learning_rate=0.0),
        batch_size=4,
        epochs=1,
        recall_at=(1,),
        progress=False,
    )
    train(config)
    later = Embedder.from_pretrained(config.output).state_dict()
    assert all(torch.equal(later[name], tensor) for name, tensor in earlier.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__image": {"name": "regions", "dim": 8}, "model__text": {"name": "gru", "word_dim": 8}}, "has shape"),
        ({"model__word_vectors": Path("vectors.txt")}, "both say what words begin with"),
        ({"model__start_from": Path("nowhere")}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(config, change, tmp_path, fields, message):
    first = change(config, epochs=1)
    train(first)
    later = change(config, output=tmp_path / "later", model__start_from=first.output)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(change(later, **fields))
    assert not later.output.exists() or not list(later.output.glob("*.pt"))


def test_a_model_of_another_kind_is_refused(config, change, tmp_path):
    Embedder({"name": "mlp", "input_dim": 16}, dim=4).save_pretrained(tmp_path / "embedder")
    with pytest.raises(ValueError, match="Embedder"):
        train(change(config, model__start_from=tmp_path / "embedder"))
