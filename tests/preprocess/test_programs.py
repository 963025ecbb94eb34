"""`xmodal prepare NAME` and `python -m preprocess.MODULE` are the same program."""

from __future__ import annotations

import inspect
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import preprocess
from preprocess.programs import PROGRAMS, as_installed
from xmodal.cli import main
from xmodal.entry import run_program


def test_every_program_is_listed(capsys):
    modules = [module.name for module in pkgutil.iter_modules(preprocess.__path__)]
    programs = {name for name in modules if hasattr(import_module(f"preprocess.{name}"), "main")}
    assert {program.module for program in PROGRAMS.values()} == programs
    with pytest.raises(SystemExit, match="0"):
        main(["prepare", "--help"])
    told = capsys.readouterr().out
    assert told.startswith("usage: xmodal prepare PROGRAM ...")
    assert all(f"  {name} " in told and program.help in told for name, program in PROGRAMS.items())


def told_by(call, capsys) -> str:
    with pytest.raises(SystemExit, match="0"):
        call()
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_the_same_but_for_the_name(name, capsys):
    module = import_module(f"preprocess.{PROGRAMS[name].module}")
    here = told_by(lambda: run_program(module.main, ["--help"], prog=f"python -m {module.__name__}"), capsys)
    installed = told_by(lambda: main(["prepare", name, "--help"]), capsys)
    assert installed.split() == as_installed(here).split()
    assert f"xmodal prepare {name} " in installed
    assert "preprocess." not in installed


def test_both_names_are_one_file_each():
    """So that other processes find what is pickled, under whichever name it was imported."""
    for _, name, _ in pkgutil.iter_modules(preprocess.__path__):
        one, other = (import_module(f"{package}.{name}") for package in ("preprocess", "xmodal.prepare"))
        assert Path(str(one.__file__)).samefile(str(other.__file__))
        for value in vars(other).values():
            if inspect.isclass(value) and ".prepare" in value.__module__:
                assert value is getattr(import_module(value.__module__), value.__name__)


def test_programs_that_the_pages_name_exist():
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *(root / "docs").rglob("*.md"), *(root / "scripts" / "recipes").rglob("*.yaml")]
    text = " ".join(page.read_text() for page in pages)
    assert {"folder", "captions"} <= set(re.findall(r"xmodal prepare ([a-z-]+)", text)) <= set(PROGRAMS)
    modules = {program.module for program in PROGRAMS.values()}
    assert set(re.findall(r"-m preprocess\.(\w+)", text)) <= modules


def test_the_checkouts_name_is_a_program_too():
    arguments = ["--checkpoint", "nowhere", "--vocabulary", "nowhere", "--architecture", "scan", "--output", "nowhere"]
    command = [sys.executable, "-m", "preprocess.import_checkpoint", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "python -m preprocess.import_checkpoint: no checkpoint at nowhere\n")


def test_a_wrong_name_is_answered_with_the_near_miss(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "vocab"])
    assert stopped.value.code == 2
    assert "unknown program 'vocab' (did you mean 'vocabulary'?); known: " in capsys.readouterr().err
