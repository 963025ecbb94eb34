"""Experiments choose on dev, compare on test, and write pages whose figures are those of the runs."""

from __future__ import annotations

import json
import re

import pytest
import torch

from scripts.experiments import study
from scripts.experiments.addr.__main__ import main as compare_addr
from scripts.experiments.addr.settings import Experiment as AddrExperiment
from scripts.experiments.zero_shot.__main__ import main as compare_zero_shot
from scripts.experiments.zero_shot.methods import METHODS
from scripts.experiments.zero_shot.runs import Experiment as ZeroShotExperiment
from xmodal.data.labelled import LabelledSet, save_features
from xmodal.training.checkpoints import LOG


def trained_at_once(monkeypatch, result_of):
    """Every run is finished when it begins, with the result that a function of its configuration says."""
    trained = []

    def train(run):
        run.output.mkdir(parents=True, exist_ok=True)
        (run.output / study.TEST).write_text(json.dumps(result_of(run)))
        line = {"seconds": 0.25, "loss/addr/adv": 0.6, "loss/addr/reg": 0.1, "addr/gradient_ratio": 0.01}
        (run.output / LOG).write_text(json.dumps(line) + "\n")
        trained.append(run)
        return result_of(run)

    monkeypatch.setattr(study, "train", train)
    return trained


def rows_of(page):
    """Every table row as its cells."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]


def test_addr_page_has_what_the_runs_gave(tmp_path, monkeypatch):
    def result(run):
        recall = 10.0 + run.seed % 1000 + run.adversary.get("beta", 0.0)
        side = {"R@1": recall, "R@5": 2 * recall, "R@10": 3 * recall}
        return {"i2t": side, "t2i": side, "rsum": 12 * recall}

    trained = trained_at_once(monkeypatch, result)
    experiment = AddrExperiment(output=tmp_path / "runs", pages=tmp_path, heads=("BFAN prob", "VSRN"), seeds=2)
    compare_addr(experiment)
    assert len(trained) == 2 * (1 + 4) + 2 * 2 * 2
    page = tmp_path / "addr_coco_objects.md"
    rows = rows_of(page)
    assert ["BFAN prob", *["10.5 ± 0.7", "21.0 ± 1.4", "31.5 ± 2.1"] * 2, "126.0 ± 8.5"] in rows
    assert ["BFAN prob + ADDR", *["20.5 ± 0.7", "41.0 ± 1.4", "61.5 ± 2.1"] * 2, "246.0 ± 8.5"] in rows
    gains = [f"**+{gain}.0 [+{gain}.0, +{gain}.0]**" for gain in (10, 20, 30)]
    assert ["difference", *gains * 2, "**+120.0 [+120.0, +120.0]**"] in rows
    assert ["beta 3", "156.0", "156.0"] in rows
    assert ["ADDR", "0.25", "0.25"] in rows
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ADDR on coco_objects\n\nWritten by `python -m scripts.experiments.addr --data-set coco")
    assert "- VSRN: beta 10, ridge\n" in text
    assert "![curves](addr_coco_objects.png)" in text
    assert (tmp_path / "addr_coco_objects.png").is_file()
    assert "$" not in text
    compare_addr(experiment)
    assert len(trained) == 18, "what is finished is not done again"


def test_zero_shot_page_has_what_the_runs_gave(tmp_path, monkeypatch):
    def result(run):
        weight = run.objective.get("weight", 0.0)
        return dict.fromkeys(("mAP@R", "R@1", "R-precision", "NMI", "F1"), 40.0 + run.seed % 1000 + weight)

    trained = trained_at_once(monkeypatch, result)
    images = LabelledSet([f"{n}.png" for n in range(8)], list("aabbccdd"), ["test"] * 8)
    save_features(tmp_path / "emoji.h5", torch.eye(8), images, {})
    page = tmp_path / "zero_shot.md"
    compare_zero_shot(ZeroShotExperiment((tmp_path / "emoji.h5",), tmp_path / "runs", page, seeds=2))
    rows = rows_of(page)
    assert ["metric loss", "triplet", "rate 0.0001", *["40.5 ± 0.7"] * 5, ""] in rows
    assert ["ECAML", "triplet", "weight 0.5", *["41.0 ± 0.7"] * 5, "**+0.5 [+0.5, +0.5]**"] in rows
    assert ["ECAML over metric loss", "+0.5, 8 / 0 of 8"] in rows
    assert ["IE magnet over softmax", "+1.0, 1 / 0 of 1"] in rows
    assert {run.objective["name"] for run in trained} == {method.objective["name"] for method in METHODS.values()}
    text = page.read_text(encoding="utf-8")
    assert "a linear layer of 128 dims is trained on\nthem for 5 epochs of 40 batches of 64" in text
    assert "## emoji: 8 test images of 4 classes\n" in text
    assert "## Pictures" not in text, "nothing is drawn where the drawings are not there"
    assert (tmp_path / "zero_shot_gains.png").is_file()


def test_a_run_that_fails_leaves_no_page(tmp_path, monkeypatch):
    def fails(run):
        raise FloatingPointError("the loss is not finite")

    trained_at_once(monkeypatch, fails)
    with pytest.raises(FloatingPointError):
        compare_addr(AddrExperiment(output=tmp_path / "runs", pages=tmp_path))
    assert not list(tmp_path.glob("*.md"))
