"""`xmodal index` and `xmodal search --index`, as a person types them."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_data import THINGS, make_data
from xmodal.cli import main
from xmodal.data import RegionStore
from xmodal.model import Matcher


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "model", "dev.h5", "--output", "model"], "exists. Pass overwrite=True"),
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
