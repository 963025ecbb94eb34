"""A caption is cut at the positions that its transformer has, whatever the tokenizer's files say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import transformers

from xmodal.encoders.bert import BERTEncoder, SubwordTokenizer, most_subwords
from xmodal.model import Matcher

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs"]
LONG = " ".join(["a", "dog", "runs"] * 200)

MODELS = {
    "bert": (transformers.BertConfig, transformers.BertModel, {"pad_token_id": 0}, 20),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel, {"pad_token_id": 0}, 19),
    "roberta, its usual padding": (transformers.RobertaConfig, transformers.RobertaModel, {"pad_token_id": 1}, 18),
    "mpnet": (transformers.MPNetConfig, transformers.MPNetModel, {"pad_token_id": 1}, 18),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel, {"pad_token_id": 1}, 18),
    "electra": (transformers.ElectraConfig, transformers.ElectraModel, {"embedding_size": 12, "pad_token_id": 0}, 20),
    "distilbert": (
        transformers.DistilBertConfig,
        transformers.DistilBertModel,
        {"dim": 12, "hidden_dim": 8, "n_layers": 1, "n_heads": 2, "pad_token_id": 0},
        20,
    ),
}


def save(folder: Path, name: str, *, says: int | None = None) -> str:
    """A small model at random weights, beside a tokenizer whose files say nothing of a limit, or something."""
    config, model, options, _ = MODELS[name]
    own = {} if name == "distilbert" else SIZES
    torch.manual_seed(0)
    model(config(vocab_size=len(WORDS), max_position_embeddings=20, **own, **options)).save_pretrained(folder)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    limit = {} if says is None else {"model_max_length": says}
    transformers.BertTokenizer(str(folder / "vocab.txt"), **limit).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", MODELS)
def test_a_long_caption_is_cut_at_the_last_position_there_is(tmp_path, name):
    encoder = BERTEncoder(save(tmp_path, name), dim=8).eval()
    limit = MODELS[name][3]
    tokens, mask = encoder.tokenizer([LONG, "a dog"])
    assert tokens.shape == (2, limit)
    assert tokens[0, [0, -1]].tolist() == [2, 3], "the special subwords at both ends stay"
    states = encoder(tokens, mask)
    assert states[0].isfinite().all()
    assert (states[0].norm(dim=-1) > 0.99).all()
    longer = torch.cat([tokens, tokens], dim=1)
    with pytest.raises((RuntimeError, IndexError)):  # one position more would be too many
        encoder(longer[:, : limit + 1], torch.ones(2, limit + 1, dtype=torch.bool))


def test_the_smaller_of_both_limits_holds(tmp_path):
    assert BERTEncoder(save(tmp_path, "bert", says=7), dim=8).tokenizer([LONG]).tokens.shape == (1, 7)
    assert BERTEncoder(save(tmp_path, "bert", says=700), dim=8).tokenizer([LONG]).tokens.shape == (1, 20)


def test_a_matcher_scores_long_captions_also_when_it_is_loaded_again(tmp_path):
    text = {"name": "bert", "model": save(tmp_path / "bert", "roberta")}
    matcher = Matcher({"name": "regions", "input_dim": 4, "dim": 8}, text, {"name": "scan"})
    regions = torch.randn(3, 4)
    scores = matcher.score(regions, [LONG, "a dog"])
    assert scores.isfinite().all()
    matcher.save_pretrained(tmp_path / "matcher")
    torch.testing.assert_close(Matcher.from_pretrained(tmp_path / "matcher").score(regions, [LONG, "a dog"]), scores)


def test_models_of_relative_positions_have_no_limit_of_their_own():
    sizes = {"d_model": 12, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    assert most_subwords(transformers.T5EncoderModel(transformers.T5Config(**sizes))) is None


def test_a_tokenizer_alone_keeps_its_own_limit(tmp_path):
    assert SubwordTokenizer(save(tmp_path, "bert", says=7))([LONG]).tokens.shape == (1, 7)
    assert SubwordTokenizer(save(tmp_path, "bert"), limit=9)([LONG]).tokens.shape == (1, 9)
