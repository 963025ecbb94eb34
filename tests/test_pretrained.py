"""Models are found where people keep them, and what is none of a kind is told by name."""

from __future__ import annotations

import pytest
import torch

from xmodal.cli import main
from xmodal.embedder import Embedder
from xmodal.model import Matcher


@pytest.fixture
def runs(tmp_path):
    """A run folder of each kind."""
    torch.manual_seed(0)
    matcher = Matcher({"name": "regions", "input_dim": 4, "dim": 8}, {"name": "gru"}, {"name": "scan"}, ["a", "dog"])
    embedder = Embedder({"name": "mlp", "input_dim": 4}, dim=8)
    for kind, model in {"matcher": matcher, "embedder": embedder}.items():
        model.save_pretrained(tmp_path / kind / "best")
        (tmp_path / kind / "config.yaml").write_text("{}")
    return {
        "matcher": (Matcher, matcher, tmp_path / "matcher"),
        "embedder": (Embedder, embedder, tmp_path / "embedder"),
    }


@pytest.mark.parametrize("kind", ["matcher", "embedder"])
@pytest.mark.parametrize("within", [".", "best"])
@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_run_folders_load_as_their_best_model(runs, kind, within, device):
    cls, model, run = runs[kind]
    for folder in (run / within, str(run / within)):
        loaded = cls.from_pretrained(folder, map_location=device)
        assert not loaded.training
        state = loaded.state_dict()
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_models_are_loaded_to_the_device_asked_for(runs):
    cls, _, run = runs["matcher"]
    assert {p.device.type for p in cls.from_pretrained(run, map_location=torch.device("meta")).parameters()} == {"meta"}


@pytest.mark.parametrize(("given", "wanted"), [("matcher", "embedder"), ("embedder", "matcher")])
@pytest.mark.parametrize("within", [".", "best"])
def test_a_model_of_another_kind_is_refused_by_name(runs, given, wanted, within):
    (other, _, _), (_, _, run) = runs[wanted], runs[given]
    kind = runs[given][0].__name__
    with pytest.raises(ValueError, match=rf"best holds no {other.__name__}: its config.json lacks .*kind {kind}"):
        other.from_pretrained(run / within)


def test_programs_say_it_in_one_line(runs, tmp_path, capsys):
    photograph = tmp_path / "7.png"
    photograph.write_bytes(b"")
    for command in (
        ["evaluate", str(runs["embedder"][2]), "--data.folder", str(tmp_path)],
        ["evaluate-embedder", str(runs["matcher"][2]), "--path", str(tmp_path)],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"xmodal {command[0]}: ")


def test_a_run_without_a_model_yet_is_named(tmp_path):
    (tmp_path / "run" / "best").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"best holds no model: config.json is missing"):
        Matcher.from_pretrained(tmp_path / "run")
