"""Dropout in the encoders: in training only, of real values only, and not even a random draw where it is zero."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from xmodal.data.pixels import PixelBatch
from xmodal.data.region_store import RegionBatch
from xmodal.encoders.bert import BERTEncoder
from xmodal.encoders.gru import GRUEncoder
from xmodal.encoders.pixels import PixelTower
from xmodal.encoders.regions import RegionProjection
from xmodal.training.config import TrainConfig, load_recipe
from xmodal.training.parts import completed
from xmodal.training.recipes import known_recipes

NAMES = {"input_dropout", "word_dropout", "dropout"}

TOKENS = torch.tensor([[2, 5, 6, 5, 3], [2, 6, 3, 0, 0]])
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def regions(**options):
    encoder = RegionProjection(7, 6, **options)
    features = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    return encoder, lambda: encoder(RegionBatch(features, MASK))


def gru(**options):
    encoder = GRUEncoder(9, 6, word_dim=4, **options)
    return encoder, lambda: (encoder(TOKENS, MASK), MASK)


def pixels(**options):
    encoder = PixelTower(6, "mobilenet_v3_small", weights=None, frozen=True, **options)
    return encoder, lambda: encoder(PixelBatch(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))


def bert(**options):
    encoder = BERTEncoder("bert", 6, load_weights=False, **options)
    return encoder, lambda: (encoder(TOKENS, MASK), MASK)


OPTIONS = [(regions, "input_dropout"), (regions, "dropout"), (gru, "word_dropout"), (gru, "dropout")]
OPTIONS += [(pixels, "input_dropout"), (pixels, "dropout"), (bert, "dropout")]


@pytest.fixture
def _small_bert(tmp_path, monkeypatch):
    """A transformer without dropout of its own."""
    from transformers import BertConfig, BertModel, BertTokenizer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]))
    BertTokenizer("vocab.txt").save_pretrained("bert")
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(hidden_size=12, num_hidden_layers=1, vocab_size=7, **silent)).save_pretrained("bert")


def made(make, **options):
    torch.manual_seed(0)
    return make(**options)


@pytest.mark.usefixtures("_small_bert")
@pytest.mark.parametrize(("make", "option"), OPTIONS)
def test_zero_is_bit_for_bit_without_and_draws_nothing(make, option):
    (plain, _), (encoder, encode) = made(make), made(make, **{option: 0.0})
    before = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), encoder.parameters(), strict=True))
    in_training, _ = encode()
    assert torch.equal(torch.get_rng_state(), before)
    encoder.eval()
    in_evaluation, _ = encode()
    assert torch.equal(in_training, in_evaluation)


@pytest.mark.usefixtures("_small_bert")
@pytest.mark.parametrize(("make", "option"), OPTIONS)
def test_only_training_drops_and_masks_and_padding_stay(make, option):
    (plain, encode_plain), (encoder, encode) = made(make), made(make, **{option: 0.3})
    wanted, wanted_mask = encode_plain()
    found, mask = encode()
    again, _ = encode()
    assert not torch.equal(found, wanted)
    assert not torch.equal(found, again)
    assert torch.equal(mask, wanted_mask)
    lengths = found[mask].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    if make in (gru, bert):
        assert not found[~MASK].any()
    plain.eval(), encoder.eval()
    before = torch.get_rng_state()
    assert torch.equal(encode()[0], encode_plain()[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_regions_are_the_projection_of_dropped_features_and_are_dropped_themselves():
    encoder, encode = made(regions, input_dropout=0.3, dropout=0.4, normalize=False)
    features = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    items, _ = encode()
    torch.manual_seed(5)
    wanted = F.dropout(encoder.projection(F.dropout(features, 0.3)), 0.4)
    assert torch.equal(items, wanted)
    torch.manual_seed(5)
    assert torch.equal(encoder.project(features), wanted)


def test_words_are_the_states_of_dropped_embeddings_and_are_dropped_themselves():
    """Caption by caption: what is dropped of the padding changes nothing."""
    encoder, _ = made(gru, word_dropout=0.3, dropout=0.4, normalize=False)
    torch.manual_seed(5)
    found = encoder(TOKENS, MASK)
    torch.manual_seed(5)
    embedded = F.dropout(encoder.embedding(TOKENS), 0.3)
    states = torch.zeros(2, 5, 6)
    for row, length in enumerate((5, 3)):
        both, _ = encoder.rnn(embedded[row : row + 1, :length])
        states[row, :length] = both[0].unflatten(-1, (2, 6)).mean(dim=1)
    torch.testing.assert_close(found, F.dropout(states, 0.4))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize(("make", "option"), OPTIONS)
def test_a_share_that_cannot_be_is_refused(make, option, share):
    with pytest.raises(ValueError, match=f"{option} must be at least 0 and below 1, got {share}"):
        make(**{option: share})


def test_every_recipe_records_what_it_drops():
    """Nothing, but for the words of SGRAF and ESA, as published."""
    dropping = {}
    for name in known_recipes():
        recipe = load_recipe(name)
        if isinstance(recipe, TrainConfig):
            model = completed(recipe).model
            shares = {option: part[option] for part in (model.image, model.text) for option in NAMES & part.keys()}
            assert shares, name
            dropping |= {name: given} if (given := {option: share for option, share in shares.items() if share}) else {}
    words = {"esa": 0.1, "sgraf_saf": 0.4, "sgraf_sgr": 0.4}
    wanted = {f"{name}_{data}": share for name, share in words.items() for data in ("coco", "f30k")}
    assert dropping == {name: {"word_dropout": share} for name, share in wanted.items()}
