"""Transformers of every build as text encoders, against transformers itself on one caption without any padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import transformers

from xmodal.data.captions import Caption
from xmodal.data.pairs import PairDataset
from xmodal.data.region_store import RegionStore, RegionStoreWriter
from xmodal.encoders.bert import BERTEncoder, SubwordTokenizer
from xmodal.model import Matcher

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "runs"]
CAPTIONS = ["dog", "a dog runs a dog", "a cat"]
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
TOWERS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
TOWERS |= {"d_model": 12, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, **SPECIAL}
T5 = {"d_model": 12, "num_layers": 1, "num_heads": 2, "d_ff": 8, "d_kv": 6, "decoder_start_token_id": 0}
BERT = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
GPT2 = {"n_embd": 12, "n_layer": 1, "n_head": 2}
MODELS = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2Model, GPT2),
    "bert": (transformers.BertConfig, transformers.BertModel, BERT),
    "xlnet": (transformers.XLNetConfig, transformers.XLNetModel, {"d_model": 12, "n_layer": 1, "n_head": 2}),
    "t5": (transformers.T5Config, transformers.T5Model, T5),
    "bart": (transformers.BartConfig, transformers.BartModel, TOWERS),
}


def save(folder: Path, name: str, dtype: torch.dtype = torch.float32, **tokenizer: str) -> str:
    config, model, options = MODELS[name]
    torch.manual_seed(0)
    model(config(vocab_size=len(WORDS), **options)).to(dtype).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt"), **tokenizer).save_pretrained(folder)
    return str(folder)


def oracle(transformer: torch.nn.Module, encoder: BERTEncoder, caption: str) -> torch.Tensor:
    """The states of one caption between [CLS] and [SEP], projected and of length one."""
    numbers = [2, *map(WORDS.index, caption.split()), 3]
    states = transformer.eval()(input_ids=torch.tensor([numbers])).last_hidden_state[0]
    return torch.nn.functional.normalize(encoder.projection(states), dim=-1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_states_do_not_depend_on_the_batch(tmp_path, name, side):
    folder = save(tmp_path, name, padding_side=side)
    encoder = BERTEncoder(folder, dim=4).eval()
    transformer = transformers.AutoModel.from_pretrained(folder)
    if name in ("t5", "bart"):
        transformer = transformer.encoder
    tokens, mask = encoder.tokenizer(CAPTIONS)
    for caption, states, real in zip(CAPTIONS, encoder(tokens, mask), mask, strict=True):
        torch.testing.assert_close(states[real], oracle(transformer, encoder, caption), atol=1e-6, rtol=1e-5)
        assert not states[~real].any()


@torch.no_grad()
def test_training_sees_the_states_that_inference_sees(tmp_path):
    encoder = BERTEncoder(save(tmp_path, "gpt2", padding_side="left"), dim=4).eval()
    with RegionStoreWriter(tmp_path / "train.h5", dim=2, extractor="none") as writer:
        writer.write("7", [[1, 0]])
    captions = [Caption("7", str(number), caption, "train") for number, caption in enumerate(CAPTIONS)]
    batch = PairDataset(RegionStore(tmp_path / "train.h5"), captions, encoder.tokenizer).__getitems__([0, 1, 2])
    tokens, mask = encoder.tokenizer(CAPTIONS)
    assert torch.equal(batch.word_mask, mask)
    torch.testing.assert_close(encoder(batch.tokens, batch.word_mask), encoder(tokens, mask))


def test_the_last_words_of_a_long_caption_go(tmp_path):
    folder = save(tmp_path, "bert", truncation_side="left")
    assert SubwordTokenizer(folder, limit=4)(["a dog runs"]).tokens.tolist() == [[2, 5, 6, 3]]


@torch.no_grad()
def test_a_tokenizer_without_padding_pads(tmp_path):
    folder = save(tmp_path, "gpt2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(folder)
    encoder = BERTEncoder(folder, dim=4).eval()
    tokens, mask = encoder.tokenizer(CAPTIONS)
    assert mask.sum(dim=1).tolist() == [3, 7, 4]
    wanted = oracle(transformers.AutoModel.from_pretrained(folder), encoder, "dog")
    torch.testing.assert_close(encoder(tokens, mask)[0, :3], wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_without_its_decoder_is_trained_saved_and_loaded(tmp_path, name):
    text = {"name": "bert", "model": save(tmp_path / "transformer", name)}
    matcher = Matcher({"name": "regions", "input_dim": 5, "dim": 8}, text, {"name": "scan"})
    encoder = matcher.text_encoder
    encoder(*encoder.tokenizer(CAPTIONS)).sum().backward()
    assert not [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not [name for name, _ in encoder.named_parameters() if "decoder" in name]
    regions = torch.randn(3, 5)
    scores = matcher.score(regions, CAPTIONS)
    matcher.save_pretrained(tmp_path / "matcher")
    again = Matcher.from_pretrained(tmp_path / "matcher")
    assert torch.equal(again.score(regions, CAPTIONS), scores)
    again.save_pretrained(tmp_path / "second")
    assert torch.equal(Matcher.from_pretrained(tmp_path / "second").score(regions, CAPTIONS), scores)


@torch.no_grad()
def test_weights_in_half_precision_are_used_in_float32(tmp_path):
    folder = save(tmp_path, "bert", torch.bfloat16)
    encoder = BERTEncoder(folder, dim=4).eval()
    wanted = oracle(transformers.AutoModel.from_pretrained(folder).float(), encoder, "a cat")
    torch.testing.assert_close(encoder(*encoder.tokenizer(["a cat"]))[0], wanted)
    assert {parameter.dtype for parameter in BERTEncoder(folder, 4, load_weights=False).parameters()} == {torch.float32}


def test_what_gives_no_states_of_text_is_refused(tmp_path):
    tower = {**BERT, "hidden_size": 12}
    clip = transformers.CLIPConfig(text_config={**tower, "vocab_size": len(WORDS)}, vision_config=tower)
    transformers.CLIPModel(clip).save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"clip is a CLIPModel, which does not turn .*; wanted a text model"):
        BERTEncoder(str(tmp_path / "clip"), dim=4)
    transformers.WhisperModel(transformers.WhisperConfig(vocab_size=9, **TOWERS)).save_pretrained(tmp_path / "whisper")
    with pytest.raises(ValueError, match="whisper is a WhisperModel"):
        BERTEncoder(str(tmp_path / "whisper"), dim=4)
