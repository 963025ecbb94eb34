"""`xmodal index` and `xmodal search --index`, as a person types them."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.tiny_data import THINGS, make_data
from xmodal.cli import main
from xmodal.data import Caption, RegionStore, save_captions
from xmodal.evaluation.calibration import LIKELY, Calibration
from xmodal.model import Matcher
from xmodal.search.index import Index


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    make_data(folder)
    torch.manual_seed(0)
    image, text = {"name": "regions", "input_dim": 8, "dim": 8}, {"name": "gru", "dim": 8, "word_dim": 8}
    Matcher(image, text, {"name": "scan"}, vocabulary=["a", "and", *THINGS]).save_pretrained(folder / "model")
    return folder


def test_an_index_is_built_measured_and_searched(home, capsys):
    model, store = str(home / "model"), home / "dev.h5"
    main(["index", model, str(store), "--queries", str(home / "captions.jsonl"), "--measured", "5"])
    told = capsys.readouterr().out
    assert f"{home / 'dev.index'}: 10 images, " in told
    assert "inexact search finds 100.0% of the exact top 10 (" in told
    main(["search", model, "a dog", "a cat", "--index", str(home / "dev.index"), "--top", "2"])
    lines = capsys.readouterr().out.splitlines()
    scores = Matcher.from_pretrained(model).score_all(RegionStore(store), ["a dog"])[:, 0]
    assert lines[0] == "a dog  (certified, 10 of 10 scored)"
    assert lines[1] == f"  {float(scores.max()):.3f}  dev-{int(scores.argmax())}"
    assert len(lines) == 6
    main(["index", model, str(store), "--verify"])
    assert "10 images, every file as it was written" in capsys.readouterr().out


def test_captions_are_indexed_too(home, capsys):
    arguments = ["--output", str(home / "told.index"), "--split", "dev", "--bits", "4"]
    main(["index", str(home / "model"), str(home / "captions.jsonl"), *arguments])
    assert " captions, " in capsys.readouterr().out
    (home / "servers.yaml").write_text(f"- {{name: folder, path: {home / 'one'}}}")
    main(["cluster", str(home / "told.index"), str(home / "servers.yaml"), "--output", str(home / "told.json")])
    assert " captions\n" in capsys.readouterr().out


def test_measured_sentences_are_spread_evenly(home, capsys, monkeypatch, tmp_path):
    """Of 12 sentences 8 are one and a half apart from first to last, and never more than are there."""
    told = [Caption(f"dev-{number % 10}", str(number), f"a dog {'and a cat ' * number}", "dev") for number in range(12)]
    save_captions(tmp_path / "told.jsonl", told)
    measured = []
    measure = Index.measure
    monkeypatch.setattr(
        Index, "measure", lambda self, matcher, queries: measured.append(queries) or measure(self, matcher, queries)
    )
    for wanted, numbers in (("8", [0, 1, 3, 4, 6, 7, 9, 10]), ("3", [0, 4, 8]), ("99", range(12))):
        arguments = ["--queries", str(tmp_path / "told.jsonl"), "--measured", wanted, "--output", str(tmp_path / "i")]
        main(["index", str(home / "model"), str(home / "dev.h5"), *arguments, "--overwrite"])
        assert f"({len(numbers)} sentences)" in capsys.readouterr().out
        assert measured.pop() == [told[number].caption for number in numbers]


def test_what_cannot_be_measured_is_told_before_anything_is_built(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr(Index, "build", lambda *_, **__: pytest.fail("an index was built"))
    save_captions(home / "others.jsonl", [Caption("elsewhere", "0", "a dog", "dev")])
    for arguments, message in (
        (["dev.h5", "--queries", "captions.jsonl", "--measured", "0"], "measured must be at least 1, got 0"),
        (["dev.h5", "--queries", "captions.jsonl", "--measured", "-5"], "measured must be at least 1, got -5"),
        (["dev.h5", "--queries", "nowhere.jsonl"], "no captions file at nowhere.jsonl"),
        (["dev.h5", "--queries", "others.jsonl"], "others.jsonl has no caption of an image of dev.h5"),
        (["dev.h5", "--split", "dev"], "--split is for a file of captions (.jsonl); dev.h5 is indexed whole"),
        (["captions.jsonl", "--queries", "captions.jsonl"], "captions.jsonl holds captions: index a region store"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["index", "model", *arguments, "--output", "new.index"])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_the_first_image_alone_has_the_probability_that_it_has_among_all(home, capsys, tmp_path):
    shutil.copytree(home / "model", tmp_path / "model")
    calibration = Calibration(score_weight=1.0, lead_weight=9.0, size_weight=-0.5, bias=1.0)
    calibration.save(tmp_path / "model")
    main(["index", str(home / "model"), str(home / "dev.h5"), "--output", str(tmp_path / "dev.index")])
    capsys.readouterr()
    scores = Matcher.from_pretrained(home / "model").score_all(RegionStore(home / "dev.h5"), ["a dog"])[:, 0]
    likely = float(calibration.probability(scores).max())
    main(["search", str(tmp_path / "model"), "a dog", "--index", str(tmp_path / "dev.index"), "--top", "1"])
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"  {float(scores.max()):.3f}  {100 * likely:3.0f}%  dev-{int(scores.argmax())}"
    assert lines[:-1] == (["  no good match"] if likely < LIKELY else [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "model", "a dog", "--index", "told.index"], "told.index holds captions; sentences find images"),
        (["search", "model", "a dog", "--index", "told.json"], "told.json holds captions; sentences find images"),
        (["search", "model", "a dog", "--index", "dev.index", "--top", "0"], "top must be at least 1, got 0"),
        (["index", "model", "dev.h5", "--output", "captions.jsonl"], "exists. Pass overwrite=True"),
        (["search", "model", "a dog"], "give either --data.folder or --index"),
        (["search", "model", "a dog", "--index", "nowhere"], "nowhere holds no index"),
        (["index", "model", "dev.h5", "--bits", "5", "--output", "five"], "bits is 5; wanted 8, or 4"),
        (["index", "model", "dev.h5", "--cells", "9999", "--output", "many"], "9999 cells take at least as many"),
    ],
)
def test_mistakes_end_in_one_line(home, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(home)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
