"""Released checkpoints, imported, saved and loaded again, score as the released code does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

from preprocess import import_checkpoint
from preprocess.import_checkpoint import Config, TrainingOptions, main
from xmodal.model import Matcher

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def vocabulary(tmp_path) -> Path:
    words = ["<pad>", "<start>", "<end>", "<unk>", *(f"word{i}" for i in range(19))]
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"word2idx": {word: index for index, word in enumerate(words)}}))
    return path


def golden(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


def imported(checkpoint: str, architecture: str, vocabulary: Path) -> Matcher:
    output = vocabulary.parent / "models" / "imported"
    main(Config(GOLDEN / f"{checkpoint}.pth.tar", architecture, output, vocabulary))
    assert {"config.json", "model.safetensors"} <= {file.name for file in output.iterdir()}
    assert [folder.name for folder in output.parent.iterdir()] == ["imported"]
    return Matcher.from_pretrained(output)


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "flavor"), [("scan", "basic"), ("scan", "weight_norm"), ("bfan", "basic")]
)  # fmt: skip
def test_scan_and_bfan_towers(architecture, flavor, vocabulary):
    matcher = imported(f"s1_{architecture}_{flavor}", architecture, vocabulary)
    figures = golden(f"s1_{architecture}")
    features, tokens = figures["tower/features"], figures["tower/tokens"]
    word_mask = torch.arange(tokens.shape[1]) < figures["lengths"][:, None]
    region_mask = torch.ones(features.shape[:2], dtype=torch.bool)
    expected = {name: figures[f"tower/{flavor}/{name}"] for name in ("image_embedding", "text_embedding", "sim")}
    close = {"atol": 3e-5, "rtol": 0}
    torch.testing.assert_close(matcher.encode_images(features), expected["image_embedding"], **close)
    torch.testing.assert_close(matcher.encode_captions(tokens, word_mask), expected["text_embedding"], **close)
    torch.testing.assert_close(matcher(features, tokens, region_mask, word_mask), expected["sim"], **close)
    assert len(matcher.tokenizer) == 23


@torch.no_grad()
@pytest.mark.parametrize("data", ["coco_precomp", "f30k_precomp"])
def test_vsrn_towers(data, vocabulary):
    matcher = imported(f"s1_vsrn_{data}", "vsrn", vocabulary)
    figures = golden("s1_vsrn")
    features, tokens = figures["features"], figures["tokens"]
    word_mask = torch.arange(tokens.shape[1]) < figures["lengths"][:, None]
    region_mask = torch.ones(features.shape[:2], dtype=torch.bool)
    regions, words = matcher.encode_images(features), matcher.encode_captions(tokens, word_mask)
    ours = {
        "region_embedding": matcher.head.reason(regions, region_mask),
        "image_embedding": matcher.head.embed_images(regions, region_mask),
        "text_embedding": matcher.head.embed_captions(words, word_mask),
        "sim": matcher(features, tokens, region_mask, word_mask),
    }
    for name, value in ours.items():
        torch.testing.assert_close(value, figures[f"{data}/eval/{name}"], atol=3e-5, rtol=0)


def test_bad_inputs_are_named(vocabulary, tmp_path):
    checkpoint, output = GOLDEN / "s1_scan_basic.pth.tar", tmp_path / "out"
    with pytest.raises(ValueError, match=r"vocabulary\.json is there; remove it"):
        main(Config(checkpoint, "scan", vocabulary, vocabulary))
    with pytest.raises(ValueError, match="no weight image:Rs_GCN_1"):
        main(Config(checkpoint, "vsrn", output, vocabulary))
    vsrn, given = GOLDEN / "s1_vsrn_coco_precomp.pth.tar", TrainingOptions("t2i", "clipped_l2norm", "Mean", None, 9.0)
    given = replace(given, no_imgnorm=False, no_txtnorm=False)
    with pytest.raises(ValueError, match=r"holds .*Rs_GCN_1\.W\.0\.bias.* besides"):
        main(Config(vsrn, "scan", output, vocabulary, options=given))
    with pytest.raises(ValueError, match="cannot replace it"):
        main(Config(checkpoint, "scan", output, vocabulary, options=TrainingOptions(agg_func="Mean")))
    words = {word: index for index, word in enumerate(["<pad>", "<start>", "<end>", "<unk>"])}
    vocabulary.write_text(json.dumps({"word2idx": words}))
    with pytest.raises(ValueError, match=r"knows 23 words and .*vocabulary\.json holds 4"):
        main(Config(checkpoint, "scan", output, vocabulary))
    assert not output.exists()


def test_command_line_takes_published_option_names(vocabulary, tmp_path):
    arguments = "--checkpoint a --vocabulary b --architecture bfan --output c --focal-type equal --lambda-softmax 20"
    config = tyro.cli(Config, args=arguments.split())
    assert config.options == TrainingOptions(focal_type="equal", lambda_softmax=20.0)


def test_help_says_how_to_call_it(capsys):
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(Config, description=import_checkpoint.__doc__, args=["--help"])
    printed = capsys.readouterr().out
    assert "python -m preprocess.import_checkpoint" in printed
    assert "--lambda-softmax" in printed
