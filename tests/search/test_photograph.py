"""One photograph: its regions are told and drawn, and its scores are those of the matcher on the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.cli import main
from xmodal.commands.inspect import Inspect, inspect
from xmodal.encoders.extractors import EXTRACTORS
from xmodal.encoders.region_extractor import Regions
from xmodal.model import Matcher

SENTENCES = ("a dog", "a cat", "dog", "cat", "a a")


class MeanColor:
    """The whole image, described by its mean color, twice: a sure find and an unsure one."""

    name, dim, max_regions, weights_hash, class_names = "mean-color", 3, 2, "none", {7: "painting"}

    def __init__(self, gain=1.0):
        self.gain = gain

    def __call__(self, images):
        color = [self.gain * torch.tensor([image.resize((1, 1)).getpixel((0, 0))] * 2).float() for image in images]
        boxes = [torch.tensor([[0.0, 0.0, *image.size]] * 2) for image in images]
        sure, kind = torch.tensor([0.9, 0.1]), torch.tensor([7, 8])
        return [Regions(*found, sure, kind) for found in zip(color, boxes, strict=True)]


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
        extractor={"name": "mean-color", "gain": 0.1},
    )
    matcher.save_pretrained(tmp_path / "run" / "best")
    return tmp_path / "run"


def test_regions_picture_and_scores(photo, model, tmp_path, capsys):
    inspect(Inspect(photo, model, SENTENCES, output=tmp_path / "out.png"))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{photo}: 60 x 40, 2 regions by mean-color"
    assert told[1].split() == ["0", "0.0", "0.0", "60.0", "40.0", "0.90", "painting"]
    assert told[2].split() == ["1", "0.0", "0.0", "60.0", "40.0", "0.10", "class", "8"]
    matcher = Matcher.from_pretrained(model / "best")
    scores = matcher.score(photo, SENTENCES)[0]
    expected = sorted(zip(scores.tolist(), SENTENCES, strict=True), reverse=True)
    assert told[3:8] == [f"{score:8.4f}  {sentence}" for score, sentence in expected]
    with Image.open(photo) as image:
        (regions,) = MeanColor(gain=0.1)([image])
    torch.testing.assert_close(scores, matcher.score(regions.features, SENTENCES)[0])
    with Image.open(tmp_path / "out.png") as picture:
        assert max(picture.size) >= 960


def test_an_extractor_will_do(photo, tmp_path, capsys):
    main(["inspect", str(photo), "--extractor", "mean-color", "--output", str(tmp_path / "out.png")])
    assert "2 regions" in capsys.readouterr().out


def test_bad_choices(photo, model, tmp_path):
    for wrong in ({}, {"model": model, "extractor": "mean-color"}):
        with pytest.raises(ValueError, match="either --model or --extractor"):
            inspect(Inspect(photo, **wrong))
    with pytest.raises(ValueError, match="--sentences need --model"):
        inspect(Inspect(photo, extractor="mean-color", sentences=SENTENCES))
    photo.write_bytes(photo.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cannot read .*photo\.png"):
        inspect(Inspect(photo, model, output=tmp_path / "out.png"))
    with pytest.raises(FileNotFoundError, match="no image at"):
        inspect(Inspect(tmp_path / "none.png", model))
    assert not (tmp_path / "out.png").exists()
