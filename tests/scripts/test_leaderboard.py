"""The leaderboard: every head by its own recipe, scaled; runs that are recorded are not done again."""

from __future__ import annotations

import json

import pytest

from scripts.experiments.heads import __main__ as program
from scripts.experiments.heads.__main__ import Leaderboard, configured, runs_of
from scripts.experiments.heads.entries import ENTRIES
from xmodal.data.split import open_source, open_vocabulary
from xmodal.model import IMAGE_ENCODERS, Matcher
from xmodal.names import fill


@pytest.fixture
def board(data, tmp_path):
    return Leaderboard(
        ("coco_objects",),
        ("SCAN t-i LSE", "GPO"),
        seeds=2,
        dim=8,
        epochs=1,
        data=data,
        output=tmp_path / "runs",
        record=tmp_path / "runs.jsonl",
        page=tmp_path / "leaderboard.md",
    )


@pytest.mark.parametrize("name", ENTRIES)
def test_every_head_is_that_of_its_recipe_in_a_smaller_space(board, name):
    everyone = Leaderboard(**{**vars(board), "heads": tuple(ENTRIES), "dim": 32})
    run = next(run for run in runs_of(everyone) if run.head == name)
    config = configured(everyone, run)
    assert config.model.image["dim"] == run.dim
    assert config.model.word_vectors is None
    assert (config.epochs, config.optimizer.learning_rate, config.optimizer.schedule) == (1, 1e-3, "cosine")
    objective = config.objective
    assert any(
        objective[begun] for begun in ("warmup_steps", "all_negatives_epochs", "curriculum") if begun in objective
    )
    source, vocabulary = open_source(config.data.folder, "train"), open_vocabulary(config.data.folder)
    image = fill("image encoder", IMAGE_ENCODERS, config.model.image, source.sizes)
    matcher = Matcher(image, config.model.text, config.model.head, vocabulary=vocabulary.config)
    assert matcher.score_all(source, ["cat and dog"]).shape == (24, 1)


def test_runs_are_trained_once_and_the_page_has_them_all(board, capsys):
    program.main(board)
    lines = [json.loads(line) for line in board.record.read_text().splitlines()]
    assert [line["run"]["head"] for line in lines] == ["SCAN t-i LSE", "GPO"] * 2
    for line in lines:
        assert 0 <= line["test"]["rsum"] <= 600
        assert line["parameters"] > 0
        assert line["training_seconds"] > 0
        assert line["scoring_seconds_a_million"] > 0
    page = board.page.read_text()
    rows = {row.split("|")[1].strip(): row.split("|")[4].strip() for row in page.splitlines() if row.startswith("|")}
    assert {name: rows[name] for name in board.heads} == dict.fromkeys(board.heads, "2")
    assert not list(board.output.iterdir())
    capsys.readouterr()
    program.main(board)
    assert len(board.record.read_text().splitlines()) == len(lines)
    program.main(Leaderboard(**{**vars(board), "seeds": 3, "only_list": True}))
    assert "2 runs are left" in capsys.readouterr().out


def test_what_takes_longest_is_trained_once_in_a_smaller_space(board):
    runs = runs_of(Leaderboard(**{**vars(board), "dim": 32, "heads": ("RDAN-style", "GPO", "SGRAF SGR")}))
    order = [("RDAN-style", 0, 8), ("GPO", 0, 32), ("SGRAF SGR", 0, 32), ("GPO", 1, 32)]
    assert [(run.head, run.seed, run.dim) for run in runs] == order
    planned = [run for run in runs_of(Leaderboard()) if run.head == "GPO" and run.seed == 0]
    assert [(run.data_set, run.dim, run.epochs) for run in planned] == [
        ("coco_objects", 256, 3),
        ("flickr8k_full", 128, 2),
    ]


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="heads: 'SCAM' does not exist; known: 'mean of regions"):
        Leaderboard(heads=("SCAM",))
    with pytest.raises(ValueError, match="at least 1, dim at least 8"):
        Leaderboard(seeds=0)
