"""How programs end: one line and a status for mistakes, Ctrl-C and bugs; a traceback only when it is asked for."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from xmodal.cli import main
from xmodal.entry import ends_in_one_line

GREET = """
'''Greets somebody.

python -m greet --name Ada
'''
from dataclasses import dataclass
from xmodal.entry import run_program

@dataclass(frozen=True)
class Greeting:
    name: str

def main(greeting: Greeting) -> None:
    print("ready", flush=True)
    while greeting.name == "everybody":
        print("hello " * 1000)
    if greeting.name == "nobody":
        raise KeyError("nobody is not\\n   to be greeted")
    if greeting.name == "bug":
        [][0]
    input()

if __name__ == "__main__":
    run_program(main)
"""


@pytest.fixture
def greet(tmp_path, monkeypatch):
    """Starts a program of its own, a file that `python -m` runs."""
    (tmp_path / "greet.py").write_text(GREET)
    monkeypatch.chdir(tmp_path)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return lambda *arguments: subprocess.Popen([sys.executable, "-m", "greet", *arguments], text=True, **pipes)


def end(program) -> tuple[int, str]:
    _, told = program.communicate()
    return program.returncode, told


def test_what_can_be_mended_is_one_line_and_status_2(greet):
    assert end(greet("--name", "nobody")) == (2, "python -m greet: nobody is not to be greeted\n")


def test_ctrl_c_is_one_line_and_status_130(greet):
    program = greet("--name", "Ada")
    assert program.stdout.readline() == "ready\n"
    program.send_signal(signal.SIGINT)
    assert end(program) == (130, "python -m greet: stopped by Ctrl-C\n")


def test_a_bug_is_one_line_that_says_where_and_status_1(greet, tmp_path):
    status, told = end(greet("--name", "bug"))
    assert status == 1
    line = 1 + GREET.splitlines().index("        [][0]")
    assert told == (
        f"python -m greet: IndexError at {tmp_path / 'greet.py'}, line {line}: list index out of range "
        "(--debug shows the traceback of an error.)\n"
    )


def test_a_reader_who_goes_away_is_no_error(greet):
    program = greet("--name", "everybody")
    assert program.stdout.readline() == "ready\n"
    program.stdout.close()
    assert program.stderr.read() == ""
    assert program.wait() == 141
    program.stdin.close()
    program.stderr.close()


@pytest.mark.parametrize("place", [0, 2])
def test_debug_shows_the_traceback(greet, place):
    arguments = ["--name", "nobody"]
    arguments.insert(place, "--debug")
    status, told = end(greet(*arguments))
    assert status == 1
    assert told.startswith("Traceback (most recent call last):\n")
    assert "KeyError" in told


def test_wrong_options_are_status_2(greet):
    status, told = end(greet("--nam", "Ada"))
    assert status == 2
    assert "--name" in told
    assert "Traceback" not in told


def test_help_says_how_it_is_called_and_names_debug(greet):
    program = greet("--help")
    told, _ = program.communicate()
    assert program.returncode == 0
    assert told.startswith("usage: python -m greet ")
    assert "--debug shows the traceback" in told


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["prepare", "--help"]])
def test_debug_is_in_every_help(arguments, capsys):
    try:
        main(arguments)
    except SystemExit as stopped:
        assert stopped.code == 0  # noqa: PT017 (the overview ends without)
    assert "--debug shows the traceback" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "verify", "nowhere", "--debug"],
        ["--debug", "prepare", "verify", "nowhere"],
        ["prepare", "--debug", "verify", "nowhere"],
        ["--debug", "evaluate", "nowhere", "--data.folder", "nowhere"],
    ],
)
def test_debug_may_stand_anywhere(arguments):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(arguments)


def test_arguments_are_handed_on_without_debug():
    with ends_in_one_line("xmodal", ["a", "--debug", "b"]) as arguments:
        assert arguments == ["a", "b"]
