"""A small dose of the attacks: nothing hangs, dies, is wrong without a word or ends in an error that names nothing."""

from __future__ import annotations

import os
import signal

import pytest

from scripts.attack import kills
from scripts.attack.__main__ import main
from scripts.attack.programs import Program
from scripts.attack.trials import BAD, RAW, WRONG, Tally, in_children


def test_a_small_dose_comes_to_nothing(capsys):
    main(["--dose", "small"])
    table = capsys.readouterr().out
    assert "hostile pickles" in table
    assert "kills: save_pretrained" in table


def test_what_is_lost_is_found_out(tmp_path):
    """A program that writes over what is there is caught."""

    def write_over(folder, output):
        with (output / "file").open("w"):
            pass
        (output / "mark").touch()
        (output / "file").write_text("whole")

    found = list(kills.attack(Program("careless", lambda folder: None, write_over, replaces=True), tmp_path, None))
    assert WRONG in {outcome for _, outcome, _ in found}


def test_deaths_and_errors_are_counted():
    trials = [("dies", lambda: os.kill(os.getpid(), signal.SIGKILL)), ("fails", lambda: (RAW, "no name"))]
    tally = Tally("some")
    for name, outcome, said in in_children(trials):  # type: ignore[arg-type]
        tally.count(outcome, f"{name}: {said}")
    assert tally.bad == ["death: dies: killed by signal 9", "raw: fails: no name"]
    assert set(tally.outcomes) <= set(BAD)


def test_the_exit_status_tells(monkeypatch, capsys):
    monkeypatch.setattr("scripts.attack.__main__.attack", lambda *_: iter([_bad_tally()]))
    monkeypatch.setattr("scripts.attack.__main__.warm_up", lambda: None)
    with pytest.raises(SystemExit, match="1 of 1 were"):
        main([])


def _bad_tally():
    tally = Tally("some")
    tally.count(RAW, "what")
    return tally
