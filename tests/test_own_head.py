"""A head in a file of its own, outside the package: trained, saved, evaluated and searched from the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from PIL import Image
from tiny_data import make_data

from xmodal.cli import main
from xmodal.model import Matcher

ROOT = Path(__file__).parents[1]

HEAD = '''
import torch
from torch import nn

from xmodal.heads import Head


class SAF(Head):
    """Similarity vectors of words, filtered by attention (after Diao et al., AAAI 2021).

    Args:
        dim: length of a region and of a word.
        similarity_dim: length of a similarity vector.
        steps: layers of the filter.
        gate: which function filters.
    """

    def __init__(self, dim: int, similarity_dim: int = 6, steps: int = 1, gate: str | None = "sigmoid") -> None:
        super().__init__()
        self.vector = nn.Linear(dim, similarity_dim)
        self.filter = nn.Sequential(*(nn.Linear(similarity_dim, similarity_dim) for _ in range(steps)))
        self.score = nn.Linear(similarity_dim, 1)
        self.gate = getattr(torch, gate) if gate else lambda x: x

    def compare(self, images, captions, region_mask=None, word_mask=None):
        products = torch.einsum("ird,cwd->icwr", images, captions)
        if region_mask is not None:
            products = products.masked_fill(~region_mask[:, None, None], float("-inf"))
        context = torch.einsum("icwr,ird->icwd", (9 * products).softmax(dim=-1), images)
        vectors = self.vector((context - captions) ** 2)
        vectors = vectors * self.gate(self.filter(vectors))
        if word_mask is not None:
            vectors = vectors * word_mask[..., None]
        return self.score(torch.tanh(vectors.sum(dim=2))).squeeze(-1)
'''


@pytest.fixture
def home(tmp_path):
    """Where somebody works: data, pictures and the file with the head; the program lies elsewhere."""
    home = tmp_path / "home"
    data = home / "data"
    data.mkdir(parents=True)
    make_data(data, train=8, dev=5)
    (home / "photos").mkdir()
    for number in range(5):
        Image.new("RGB", (32, 24), (40 * number, 0, 0)).save(home / "photos" / f"dev-{number}.jpg")
    (home / "my_head.py").write_text(HEAD)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "xmodal").write_text("from xmodal.cli import main\nmain()\n")
    return home


def xmodal(home: Path, *arguments: str, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the program as one that is installed: Python then does not look for modules in the current folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path))), "ACCELERATE_USE_CPU": "1"}
    command = [sys.executable, str(home.parent / "bin" / "xmodal"), *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)


SMALL = ("--data.folder", "data", "--epochs", "1", "--batch-size", "8", "--no-progress", "--output", "runs/saf")
SMALL += ("--model.image.dim", "8", "--model.text.word-dim", "4", "--criterion", "i2t.R@1 + t2i.R@1")


def test_a_head_of_ones_own_goes_all_the_way(home):
    named = ("--model.head.name", "my_head:SAF", "--model.head.steps", "2")
    trained = xmodal(home, "train", *SMALL, *named)
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"best i2t.R@1 \+ t2i.R@1 [0-9.]+ at step \d+; model in runs/saf/best", trained.stdout)

    stored = json.loads((home / "runs" / "saf" / "best" / "config.json").read_text())["head"]
    assert stored["name"] == "my_head:SAF"
    assert stored["steps"] == 2
    run = yaml.safe_load((home / "runs" / "saf" / "config.yaml").read_text())
    assert run["model"]["head"] == {"name": "my_head:SAF", "similarity_dim": 6, "steps": 2, "gate": "sigmoid"}
    assert "dim" not in run["model"]["text"]  # it is the image encoder's

    again = xmodal(home, "train", "--recipe=runs/saf/config.yaml", "--resume", "--epochs", "2")
    assert again.returncode == 0, again.stderr

    evaluated = xmodal(home, "evaluate", "runs/saf", "--data.folder", "data", "--data.split", "dev")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "runs/saf" in evaluated.stdout

    place = ("--data.folder", "data", "--data.split", "dev", "--images", "photos")
    searched = xmodal(home, "search", "runs/saf", "a cat and a dog", *place, "--output", "found.png")
    assert searched.returncode == 0, searched.stderr
    assert (home / "found.png").stat().st_size > 0

    (home / "my_head.py").rename(home / "my_old_head.py")
    lost = xmodal(home, "evaluate", "runs/saf", "--data.folder", "data", "--data.split", "dev")
    assert lost.returncode == 2
    assert "head 'my_head:SAF': there is no module 'my_head' (did you mean 'my_old_head'?)" in lost.stderr


def test_its_options_are_listed_and_checked(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--model.head.name", "my_head:SAF", "--help"])
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--model.head.steps INT Layers of the filter. (default: 1)" in printed
    assert "--model.head.gate {None}|STR Which function filters. (default: sigmoid)" in printed
    assert "--model.head.lse-scale" not in printed

    with pytest.raises(SystemExit) as stopped:
        main(["train", *SMALL, "--model.head.name=my_head:SAF", "--model.head.step=2"])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "unknown option --model.head.step (did you mean '--model.head.steps'?)" in told
    assert told.count("\n") == 1


def test_a_package_brings_a_head_by_an_entry_point(home, tmp_path):
    installed = tmp_path / "site"
    (installed / "saf-1.0.dist-info").mkdir(parents=True)
    (installed / "saf-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: saf\nVersion: 1.0\n")
    (installed / "saf-1.0.dist-info" / "entry_points.txt").write_text("[xmodal.heads]\nsaf = saf_package:SAF\n")
    (installed / "saf_package.py").write_text(HEAD)
    trained = xmodal(home, "train", *SMALL, "--model.head.name", "saf", "--model.head.gate", "None", path=(installed,))
    assert trained.returncode == 0, trained.stderr
    stored = json.loads((home / "runs" / "saf" / "best" / "config.json").read_text())["head"]
    assert stored["name"] == "saf_package:SAF"


def test_a_class_of_a_script_is_refused_elsewhere(home):
    """A script registers its head and saves a model; it is warned then, and another process is told why it cannot."""
    (home / "script.py").write_text(
        HEAD
        + dedent(
            """
            from xmodal.heads import HEADS
            from xmodal.model import Matcher

            HEADS["mine"] = SAF
            parts = {"image": {"name": "regions", "input_dim": 8, "dim": 8}, "text": {"name": "gru", "word_dim": 4}}
            Matcher(**parts, head={"name": "mine"}, vocabulary=["a", "dog"]).save_pretrained("model")
            assert type(Matcher.from_pretrained("model").head) is SAF
            print("loaded here")
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=home, env=environment, capture_output=True, text=True, check=True
    )
    assert "stored as '__main__:SAF'. Another process cannot load it" in done.stderr
    assert "loaded here" in done.stdout
    with pytest.raises(ValueError, match=r"'__main__' .* has no 'SAF'.* put the class at the top of a file of its own"):
        Matcher.from_pretrained(home / "model")
