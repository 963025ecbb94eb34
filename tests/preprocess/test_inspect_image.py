"""One photograph: its regions are told and drawn, and its scores are those of the matcher on the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mean_color import MeanColor
from PIL import Image

from preprocess.inspect_image import Config, main
from xmodal.encoders.extractors import EXTRACTORS
from xmodal.model import Matcher

SENTENCES = ("a dog", "a cat", "dog", "cat", "a a")


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "mean-color", MeanColor)
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    matcher = Matcher(
        image={"name": "regions", "input_dim": 3, "dim": 8},
        text={"name": "gru", "dim": 8, "word_dim": 4},
        head={"name": "scan", "aggregation": "mean"},
        vocabulary=["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "cat"],
        extractor="mean-color",
    )
    matcher.save_pretrained(tmp_path / "run" / "best")
    return tmp_path / "run"


def test_regions_picture_and_scores(photo, model, tmp_path, capsys):
    main(Config(photo, model, SENTENCES, output=tmp_path / "out.png"))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{photo}: 60 x 40, 1 regions of dim 3"
    assert told[1].split() == ["0", "0.0", "0.0", "60.0", "40.0"]
    scores = Matcher.from_pretrained(model / "best").score(photo, SENTENCES)[0]
    expected = sorted(zip(scores.tolist(), SENTENCES, strict=True), reverse=True)
    assert told[2:7] == [f"{score:8.4f}  {sentence}" for score, sentence in expected]
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width == 960


def test_an_extractor_will_do(photo, tmp_path, capsys):
    main(Config(photo, extractor="mean-color", output=tmp_path / "out.png"))
    assert "1 regions" in capsys.readouterr().out


def test_bad_choices(photo, model, tmp_path):
    for wrong in ({}, {"model": model, "extractor": "mean-color"}):
        with pytest.raises(ValueError, match="either --model or --extractor"):
            main(Config(photo, **wrong))
    with pytest.raises(ValueError, match="--sentences need --model"):
        main(Config(photo, extractor="mean-color", sentences=SENTENCES))
    photo.write_bytes(photo.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cannot read .*photo\.png"):
        main(Config(photo, model, output=tmp_path / "out.png"))
    assert not (tmp_path / "out.png").exists()
