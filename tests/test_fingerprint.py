"""A fingerprint is of the model as it is, however it came to be so."""

from __future__ import annotations

import pytest
import torch

from xmodal.embedder import Embedder


def make_embedder(factor=1.0):
    torch.manual_seed(0)
    embedder = Embedder({"name": "mlp", "input_dim": 4}, dim=3)
    with torch.no_grad():
        embedder.embed.weight.mul_(factor)
    return embedder


def double_in_place(weight):
    with torch.no_grad():
        weight.mul_(2)


def double_unseen(weight):
    weight.data.mul_(2)  # which torch does not count


def replace(weight):
    weight.data = weight.data * 2


@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize("change", [double_in_place, double_unseen, replace])
def test_a_changed_weight_is_another_model(change, trusting):
    embedder, doubled = make_embedder(), make_embedder(factor=2.0).fingerprint()
    before = embedder.fingerprint()
    assert before == make_embedder().fingerprint() == embedder.fingerprint(trusting=trusting) != doubled
    change(embedder.embed.weight)
    assert embedder.fingerprint(trusting=trusting) == doubled


def test_one_last_bit_is_another_model():
    embedder = make_embedder()
    before = embedder.fingerprint()
    embedder.embed.weight.data.view(torch.int32)[0, 0] ^= 1
    assert embedder.fingerprint() != before


def test_a_model_of_inference_tensors_has_the_same_one(tmp_path):
    make_embedder().save_pretrained(tmp_path)
    with torch.inference_mode():
        embedder = Embedder.from_pretrained(tmp_path)
        inside = embedder.fingerprint()
    assert any(weight.is_inference() for weight in embedder.parameters())
    assert inside == embedder.fingerprint() == embedder.fingerprint(trusting=True) == make_embedder().fingerprint()
    with torch.inference_mode():
        embedder.embed.weight.mul_(2)
    assert embedder.fingerprint(trusting=True) == make_embedder(factor=2.0).fingerprint()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_configuration_in_another_encoding_is_refused_by_name(tmp_path, encoding):
    make_embedder().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text("utf-8"), encoding)
    with pytest.raises(ValueError, match=r"config\.json is damaged: it is no JSON"):
        Embedder.from_pretrained(tmp_path)
