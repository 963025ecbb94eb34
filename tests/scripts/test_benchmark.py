"""The benchmark's suites are there, and measure what they say: no test asserts how long anything takes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from importlib import import_module
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.benchmark import history, step
from scripts.benchmark.baselines import BareProduct, bare_product, loop_over_captions, vsrn_as_released
from scripts.benchmark.measure import in_fresh_process, peak_memory, time_in_turns
from scripts.benchmark.scoring_report import OUTPUT, Measured
from scripts.benchmark.sets import random_batch, random_sets, random_word_mask
from xmodal.heads import VSRN, scan_scores

SUITES = ("heads", "scoring", "step", "later", "data", "addr", "full-size", "gpu", "index", "certified", "serve")


def test_help_lists_the_suites(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("scripts.benchmark", run_name="__main__")
    printed = capsys.readouterr().out
    assert all(suite in printed for suite in SUITES)


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_is_a_file(suite):
    if suite == "gpu":
        pytest.importorskip("triton")
    assert callable(import_module(f"scripts.benchmark.{suite.replace('-', '_')}").run)


def test_a_suite_is_called_with_the_repetitions(monkeypatch, capsys):
    called = []
    monkeypatch.setitem(
        sys.modules, "scripts.benchmark.data", SimpleNamespace(run=lambda repetitions: called.append(repetitions))
    )
    monkeypatch.setattr(sys, "argv", ["benchmark", "data", "--repetitions", "3"])
    runpy.run_module("scripts.benchmark", run_name="__main__")
    assert called == [3]
    assert "threads, torch" in capsys.readouterr().out


def test_cases_take_turns_and_the_first_is_not_counted():
    calls, now = [], iter(count())
    cases = {name: lambda name=name: calls.append(name) or name.upper() for name in "ab"}
    seconds, results = time_in_turns(cases, 2, clock=lambda: next(now))
    assert "".join(calls) == "baabba"
    assert results == {"a": "A", "b": "B"}
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}
    assert {second for each in seconds.values() for second in each} == {1}


def peak_of_64_megabytes():
    return peak_memory(lambda: np.ones(8 * 2**20).sum())


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_peak_memory_is_that_of_the_work():
    megabytes, result = in_fresh_process(peak_of_64_megabytes)  # this one may have as much to give away
    assert result == 8 * 2**20
    assert 60 < megabytes < 100


def test_a_fresh_process_is_another_one():
    assert in_fresh_process(os.getpid) != os.getpid()


def test_random_sets_are_of_the_sizes_asked_for():
    sets = random_sets(5, 12, regions=3, dim=8)
    assert sets.regions.shape == (5, 3, 8)
    assert sets.words.shape == (12, sets.word_mask.shape[1], 8)
    assert (sets.words[~sets.word_mask] == 0).all()
    assert sets.words[sets.word_mask].norm(dim=-1).allclose(torch.ones(()))
    assert sets.caption_image.bincount().tolist() == [3, 2, 3, 2, 2]
    lengths = random_word_mask(1000, torch.Generator().manual_seed(0), shortest=8, longest=15).sum(1)
    assert (lengths.min(), lengths.max()) == (8, 15)


def test_baselines_compute_what_they_stand_for():
    batch = random_batch(3, 4)
    regions, words = batch.regions[..., :16], batch.words[..., :16]
    expected = scan_scores(regions, words, None, batch.word_mask)
    torch.testing.assert_close(loop_over_captions(regions, words, batch.word_mask), expected, rtol=1e-5, atol=1e-5)
    products = bare_product(regions, words, batch.word_mask)
    assert products.shape == (3 * regions.shape[1], int(batch.word_mask.sum()))
    BareProduct(random_sets(3, 4, regions=3, dim=8))()


def test_vsrn_as_released_is_vsrn():
    torch.manual_seed(0)
    head, regions = VSRN(8).eval(), torch.rand(3, 5, 8)
    with torch.no_grad():
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        torch.testing.assert_close(vsrn_as_released(head, regions), head.embed_images(regions), rtol=1e-4, atol=1e-5)


def test_a_step_is_measured_whole_and_in_parts(monkeypatch, capsys):
    for name, size in {"PAIRS": 4, "INPUT_DIM": 8, "WORDS": 20, "GRAPH_DIM": 8, "DIM": 8}.items():
        monkeypatch.setattr(step, name, size)
    few = random_batch(4, 4)
    monkeypatch.setattr(
        step, "random_batch", lambda *_: few._replace(regions=few.regions[..., :8], words=few.words[..., :8])
    )
    step.run(1)
    printed = capsys.readouterr().out
    for line in ("GFLOP/s", "training step", "SCAN, forward + backward", "VSRN, encoding", "bare product", "chosen"):
        assert line in printed


def test_every_run_is_a_line_of_the_history(tmp_path):
    history.remember(tmp_path, {"1 x 1": {"t2i": 1.25, "BFAN": 2.0}}, machine="one")
    first = (tmp_path / history.HISTORY).read_text()
    history.remember(tmp_path, {"1 x 1": {"t2i": 1.12345}}, machine="other", products={"float32 x 1": "onednn"})
    assert (tmp_path / history.HISTORY).read_text().startswith(first)
    runs = history.read_history(tmp_path)
    assert [run["ratios"]["1 x 1"]["t2i"] for run in runs] == [1.25, 1.123]
    assert runs[1]["products"] == {"float32 x 1": "onednn"}
    assert (tmp_path / history.PLOT).stat().st_size > 1000
    with (tmp_path / history.HISTORY).open("a") as file:
        file.write('{"date": "2026"}\n')
    with pytest.raises(ValueError, match=r"scoring_history.jsonl, line 3 is damaged"):
        history.read_history(tmp_path)


def test_the_history_of_the_page_can_be_read():
    assert all(run["ratios"]["250 x 1250"]["t2i"] > 1 for run in history.read_history(OUTPUT))


def test_ratios_are_to_the_bare_product():
    seconds = {"1 x 1": {"bare product": 2.0, "t2i": 3.0}}
    assert Measured({}, seconds, {}, {}, 0.0).ratios == {"1 x 1": {"bare product": 1.0, "t2i": 1.5}}


@pytest.mark.parametrize(("suite", "told"), [("gpu", "gpu.md"), ("full-size", "BFAN exact")])
def test_dear_suites_are_rehearsed_to_the_last_line_and_leave_the_results_alone(suite, told):
    """In a process of its own: Triton must know before it is imported that it is to interpret."""
    if suite == "gpu":
        pytest.importorskip("triton")
    root = Path(__file__).parents[2]
    before = sorted((path.name, path.stat().st_mtime) for path in (root / "docs/results").iterdir())
    command = [sys.executable, "-m", "scripts.benchmark", suite, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
    assert sorted((path.name, path.stat().st_mtime) for path in (root / "docs/results").iterdir()) == before


def test_only_dear_suites_are_rehearsed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "heads", "--dry-run"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("scripts.benchmark", run_name="__main__")
    assert "heads takes no --dry-run" in capsys.readouterr().err
