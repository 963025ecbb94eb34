"""Programs are made by the machine's compiler, once; without one nothing is missed but time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from xmodal import compiled

SOURCE = 'extern "C" int two() { return 2; }'


@pytest.fixture
def make(monkeypatch, tmp_path):
    """Make a program from the source, as a new process would."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "two.cpp").write_text(SOURCE)
    return lambda: compiled.program.__wrapped__(tmp_path / "two.cpp")


def test_a_program_is_made_once(make, tmp_path, monkeypatch):
    if (made := make()) is None:
        pytest.skip("there is no C++ compiler; install g++")
    assert made.two() == 2
    monkeypatch.setattr("subprocess.run", None)  # nothing is made again
    assert make().two() == 2
    assert [path.suffix for path in (tmp_path / "cache/xmodal").iterdir()] == [".so"]


def test_another_source_is_another_program(make, tmp_path):
    if make() is None:
        pytest.skip("there is no C++ compiler; install g++")
    (tmp_path / "two.cpp").write_text(SOURCE.replace("2", "3"))
    assert make().two() == 3


def test_a_compiler_that_fails_is_named_and_a_lack_of_one_is_no_error(make, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/bin/false")
    assert make() is None
    assert "/bin/false could not make a program of" in caplog.text
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert make() is None
    monkeypatch.setenv("XMODAL_NATIVE", "0")
    assert make() is None
    assert not list(tmp_path.rglob("*.so"))
    assert not list(tmp_path.rglob("*.tmp"))


HOMELESS = """
import pwd
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown  # as for a user that the system does not know

import logging, torch
from xmodal.heads import attended_program, scan_scores
logging.basicConfig()
attended_program.FEW = 0
regions, words = torch.randn(16, 5, 8), torch.randn(16, 3, 8)
exact = scan_scores(regions.double(), words.double())
torch.testing.assert_close(scan_scores(regions, words).double(), exact, rtol=0, atol=1e-5)
"""


def test_without_a_home_torch_computes_the_same():
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    run = subprocess.run([sys.executable, "-c", HOMELESS], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    if shutil.which("g++"):
        assert "there is no home to keep a program of attended.cpp in" in run.stderr
