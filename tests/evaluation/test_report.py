from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from xmodal.evaluation import evaluate_protocol, format_table
from xmodal.evaluation.report import format_markdown, plot_learning_curves, write_report


@pytest.fixture
def results() -> dict:
    scores = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    return {
        "SCAN": evaluate_protocol(torch.eye(2), torch.arange(2)),
        "a long | name": evaluate_protocol(scores, torch.arange(2)),
    }


def test_table_lines_up_and_holds_every_number(results):
    header, rule, first, second = format_table(results).splitlines()
    assert len(header) == len(rule) == len(first) == len(second)
    assert first.split() == ["SCAN", *["100.0"] * 6, "600.0"]
    assert second.removeprefix("a long | name").split() == ["50.0", "100.0", "100.0", "50.0", "100.0", "100.0", "500.0"]
    assert format_table({}).startswith("model")


def test_markdown_has_the_same_cells(results):
    lines = format_markdown(results).splitlines()
    assert lines[0].replace("|", " ").split() == format_table(results).splitlines()[0].split()
    assert lines[1].count("-:") == 7
    assert lines[3].startswith(r"| a long \| name |")


def test_report_holds_tables_folds_pictures_and_details(tmp_path, results):
    results["folded"] = {**results["SCAN"], "protocol": "coco-1k-5fold", "folds": [results["SCAN"]] * 5}
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "top.png"
    picture.touch()
    write_report(
        tmp_path / "report.md", results, title="Demo", details={"seed": 1, "run": tmp_path}, pictures={"Top 5": picture}
    )
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Demo\n\n| model")
    assert "- folded: `coco-1k-5fold`" in text
    assert "| folded, fold 5 |" in text
    assert "SCAN, fold" not in text
    assert "i2t MedR" in text
    assert "![Top 5](pictures/top.png)" in text
    assert json.loads(text.split("```json")[1].split("```")[0]) == {"seed": 1, "run": str(tmp_path)}


def test_a_missing_picture_and_an_unwritable_folder_are_refused(tmp_path, results):
    with pytest.raises(FileNotFoundError, match=r"picture 'Top 5' .* not there: .*none\.png"):
        write_report(tmp_path / "report.md", results, pictures={"Top 5": tmp_path / "none.png"})
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*report\.md"):
        write_report(tmp_path / "file" / "report.md", results)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_report_that_fails_leaves_the_previous_one(tmp_path, results):
    path = tmp_path / "report.md"
    write_report(path, results)
    whole = path.read_text()
    with pytest.raises(UnicodeEncodeError):
        write_report(path, results, title="\ud800")
    assert path.read_text() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]


def test_learning_curves_are_drawn(tmp_path, results):
    log = [{"step": step, "epoch": 0, "loss/total": 9.0 / step, "lr": 2e-4} for step in (1, 2, 3, 2, 4)]
    log += [{"step": step, "epoch": 0, "validation": results["SCAN"]} for step in (2, 4)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    plot_learning_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1500, 600)


@pytest.mark.parametrize(
    "entry",
    [{"loss/total": 1.0}, {"loss/$_$": 1.0}, {"validation": evaluate_protocol(torch.eye(2), torch.arange(2))}],
)
def test_a_log_of_one_kind_is_drawn(tmp_path, entry):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, **entry}))
    plot_learning_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"step": 1}\n{"step": 2, "lo', "line 2 is no JSON "),
        ("[1]", "line 1 is no JSON object with a step"),
        ('{"epoch": 1}', "line 1 is no JSON object with a step"),
    ],
)
def test_a_broken_log_is_refused(tmp_path, text, message):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        plot_learning_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")


def test_a_missing_log_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no training log .*log\.jsonl"):
        plot_learning_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")


def test_plausible_matches_alone_have_no_empty_tables(tmp_path):
    sides = {side: {"R-precision": 12.5, "R@1": 50.0, "queries": 3} for side in ("i2t", "t2i")}
    write_report(tmp_path / "report.md", {"scan": {"protocol": "pmrp", **sides}})
    text = (tmp_path / "report.md").read_text()
    assert "rsum" not in text
    assert "## Ranks" not in text
    assert "## Protocols\n\n- scan: `pmrp`" in text
    assert "12.5" in text
