"""Whatever a run is killed at, and whatever is missing or in the way, somebody can go on."""

from __future__ import annotations

import signal

import pytest
import torch

from scripts.attack.kills import run_until_event
from xmodal.data.atomic import locked
from xmodal.model import Matcher
from xmodal.training import checkpoints
from xmodal.training.trainer import train

KILLS = 6
"""Kills, spread over all file events of a training."""


def run_apart(config, number=-1):
    """The exit code of a training that is killed at a file event, and how many events it had."""
    return run_until_event(lambda: train(config), config.output, number, seconds=900)


def final_state(config):
    return torch.load(config.output / checkpoints.CHECKPOINT, weights_only=True)


def test_a_run_that_is_killed_at_any_file_event_goes_on_to_the_same_end(config, change):
    config = change(config, epochs=2, batch_size=32)
    whole = change(config, output=config.output.with_name("whole"))
    code, events = run_apart(whole)
    assert code == 0
    wanted = final_state(whole)
    for kill in range(KILLS):
        number = 1 + kill * events // KILLS
        killed = change(config, output=config.output.with_name(f"run{number}"))
        assert run_apart(killed, number)[0] == -signal.SIGKILL
        best = train(change(killed, resume_if_present=True))
        found = final_state(killed)
        assert all(torch.equal(found["step_module"][name], value) for name, value in wanted["step_module"].items())
        assert best == wanted["best"], f"killed at event {number} of {events}"
        assert Matcher.from_pretrained(killed.output / "best").state_dict().keys()
        remains = [path.name for path in killed.output.parent.rglob(".*.partial") if f"run{number}" in str(path)]
        assert not remains


def test_a_kill_between_the_state_and_the_best_model_is_made_up_for(config, change, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_best", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert not (config.output / checkpoints.BEST).exists()
    train(change(config, resume=True))
    Matcher.from_pretrained(config.output / checkpoints.BEST)


def test_a_finished_run_whose_best_model_is_gone_says_so_and_keeps_its_last_one(config, change, capsys):
    train(config)
    state = final_state(config)
    best = config.output / checkpoints.BEST
    best.rename(config.output / "elsewhere")
    checkpoints.save_checkpoint(config.output, {**state, "best": {**state["best"], "step": 1}})  # of an earlier step
    again = train(change(config, resume=True))
    assert "best is gone; the best model from here on is kept" in capsys.readouterr().out
    assert again["step"] == state["step"]
    Matcher.from_pretrained(best)


def test_a_model_without_a_checkpoint_is_never_written_over_and_the_way_out_is_named(config, change):
    train(config)
    (config.output / checkpoints.CHECKPOINT).unlink()
    for options in ({}, {"resume_if_present": True}):
        with pytest.raises(FileExistsError, match="without a checkpoint to go on from; pass another --output"):
            train(change(config, **options))
    with pytest.raises(FileNotFoundError, match="in another folder if this one holds a model"):
        train(change(config, resume=True))


def test_a_run_is_started_where_there_is_none_and_resumed_where_there_is(config, change):
    supervised = change(config, resume_if_present=True)
    train(supervised)
    steps = final_state(config)["step"]
    train(supervised)
    assert final_state(config)["step"] == steps
    train(change(supervised, epochs=2 * config.epochs))
    assert final_state(config)["step"] == 2 * steps


def test_two_trainings_into_one_folder_are_one_too_many(config):
    with locked(config.output), pytest.raises(BlockingIOError, match=r"run is being written by process \d+"):
        train(config)
    train(config)


def test_a_checkpoint_of_something_else_is_refused_by_name(config, change):
    checkpoints.save_checkpoint(config.output, {"step": 3, "weights": torch.ones(2)})
    with pytest.raises(ValueError, match=r"checkpoint\.pt holds another kind of state: it lacks adversary, best"):
        train(change(config, resume=True))
