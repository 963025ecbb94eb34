"""Whoever is killed while writing leaves the checkpoint and the best model before it, whole."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time

import numpy as np
import pytest
import torch

from xmodal.model import Matcher
from xmodal.training import checkpoints


def matcher_of(value: float) -> Matcher:
    """A matcher whose every weight is one value."""
    matcher = Matcher(
        image={"name": "regions", "input_dim": 300, "dim": 300},
        text={"name": "gru", "dim": 300, "word_dim": 300},
        head={"name": "cosine"},
        vocabulary=["a", "dog"],
    )
    for parameter in matcher.parameters():
        torch.nn.init.constant_(parameter, value)
    return matcher


def killed_while(write, seconds: float) -> None:
    """Run `write(number)` for 1, 2, 3, ... in a child process and kill it."""

    def run() -> None:
        for number in itertools.count(1):
            write(number)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_leaves_a_whole_checkpoint(tmp_path, seed):
    checkpoints.save_checkpoint(tmp_path, {"step": 0, "tensor": torch.zeros(2_000_000)})
    seconds = random.Random(seed).uniform(0.02, 0.15)
    killed_while(
        lambda number: checkpoints.save_checkpoint(
            tmp_path, {"step": number, "tensor": torch.full((2_000_000,), float(number))}
        ),
        seconds,
    )
    state = checkpoints.load_checkpoint(tmp_path)
    assert (state["tensor"] == state["step"]).all()
    others = [path.name for path in tmp_path.iterdir() if path.name not in (checkpoints.CHECKPOINT, "checkpoint.1.pt")]
    assert all(name.startswith(".") and name.endswith(".partial") for name in others)


def test_the_last_checkpoints_are_kept(tmp_path):
    for step in range(5):
        checkpoints.save_checkpoint(tmp_path, {"step": step}, keep=3)
    steps = {path.name: torch.load(path)["step"] for path in tmp_path.iterdir()}
    assert steps == {"checkpoint.pt": 4, "checkpoint.1.pt": 3, "checkpoint.2.pt": 2}


def test_the_youngest_whole_checkpoint_is_offered_however_many_are_kept(tmp_path):
    for step in range(13):
        checkpoints.save_checkpoint(tmp_path, {"step": step}, keep=12)
    for name in ("checkpoint.pt", "checkpoint.1.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint\.2\.pt is whole, of step 10: "):
        checkpoints.load_checkpoint(tmp_path)


@pytest.mark.parametrize("place", ["first", "middle", "last", "cut", "empty"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_offered(tmp_path, place):
    for step in (100, 200):
        checkpoints.save_checkpoint(tmp_path, {"step": step, "tensor": torch.rand(10_000)})
    path = tmp_path / checkpoints.CHECKPOINT
    damaged = bytearray(path.read_bytes())
    if place == "cut":
        damaged = damaged[: len(damaged) // 2]
    elif place == "empty":
        damaged.clear()
    else:
        # "last" is in the directory of the records: in the name of one of them.
        damaged[{"first": 2, "middle": len(damaged) // 2, "last": damaged.rindex(b"version")}[place]] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*checkpoint\.1\.pt is whole, of step 100: rename"):
        checkpoints.load_checkpoint(tmp_path)
    (tmp_path / "checkpoint.1.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="No other checkpoint is whole: start a new run"):
        checkpoints.load_checkpoint(tmp_path)


@pytest.mark.parametrize("line", ['{"step": 1', "1", '{"loss": 2}', "\xff", "[" * 10_000, '{"step": [1]}'])
def test_a_damaged_log_is_named_with_the_line(tmp_path, line):
    (tmp_path / checkpoints.LOG).write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2 is damaged"):
        checkpoints.Log(tmp_path, step=5)


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_leaves_a_whole_best_model_or_none_yet(tmp_path, seed):
    matchers = [matcher_of(value) for value in (1.0, 2.0)]
    seconds = random.Random(seed).uniform(0.0, 0.2)
    killed_while(lambda number: checkpoints.save_best(tmp_path, matchers[number % 2]), seconds)
    if (tmp_path / checkpoints.BEST).exists():
        best = Matcher.from_pretrained(tmp_path / checkpoints.BEST)
        assert len({parameter.unique().item() for parameter in best.parameters()}) == 1
        assert len(best.tokenizer.words) == 6
    checkpoints.save_best(tmp_path, matcher_of(3.0))
    assert (Matcher.from_pretrained(tmp_path / checkpoints.BEST).image_encoder.projection.bias == 3.0).all()


def test_random_states_come_back():
    states = checkpoints.random_states()
    drawn = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    checkpoints.restore_random_states(states)
    assert torch.equal(torch.rand(3), drawn[0])
    assert (np.random.rand(3) == drawn[1]).all()  # noqa: NPY002
    assert random.random() == drawn[2]


def test_the_log_is_on_the_disk_line_by_line(tmp_path):
    with checkpoints.Log(tmp_path) as log:
        log.write(1, loss=0.5)
        assert json.loads((tmp_path / checkpoints.LOG).read_text()) == {"step": 1, "loss": 0.5}


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    seen = {}

    class Writer:
        def add_scalar(self, name, value, step):
            seen[name, step] = value

        def close(self):
            seen["closed"] = True

    monkeypatch.setattr(checkpoints, "_tensorboard", lambda folder, step: Writer())
    with checkpoints.Log(tmp_path) as log:
        log.write(3, **{"loss/total": 1.5}, validation={"i2t": {"R@1": 20.0}, "protocol": "plain", "folds": [{}]})
    assert seen == {("loss/total", 3): 1.5, ("validation/i2t/R@1", 3): 20.0, "closed": True}


def test_the_environment_is_told_without_installation_or_repository(monkeypatch):
    def absent(_):
        raise checkpoints.metadata.PackageNotFoundError

    monkeypatch.setattr(checkpoints.metadata, "version", absent)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("git")))
    told = checkpoints._surroundings.__wrapped__()
    assert told["packages"]["torch"] is None
    assert told["git_commit"] is None
    json.dumps(told)
