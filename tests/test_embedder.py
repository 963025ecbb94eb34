"""The tower of image retrieval: what it gives, how it is saved, how it embeds a whole set."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from xmodal.data.labelled import LabelledFeatures, image_transform, load_labelled
from xmodal.embedder import metric_head
from xmodal.model import Embedder

MLP = {"name": "mlp", "input_dim": 6, "hidden": [5]}
RESNET = {"name": "torchvision", "network": "resnet18", "weights": None}


def test_embeddings_are_the_head_on_the_backbone():
    features = torch.randn(3, 6)
    embedder = Embedder(backbone=MLP, dim=4)
    raw = embedder.embed(embedder.backbone(features))
    torch.testing.assert_close(embedder(features), torch.nn.functional.normalize(raw))
    embedder.normalize = False
    torch.testing.assert_close(embedder(features), raw)


def test_the_metric_head_starts_as_identity():
    features = torch.randn(3, 6)
    torch.testing.assert_close(metric_head(6, 6)(features), features.relu())
    embedder = Embedder(
        backbone={"name": "projected", "backbone": MLP, "dim": 4}, dim=4, head="metric", normalize=False
    )
    torch.testing.assert_close(embedder(features.abs()), embedder.backbone(features.abs()).relu(), msg=None)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": MLP, "dim": 4},
        {"backbone": {"name": "projected", "backbone": MLP, "dim": 4}, "dim": 4, "head": "metric", "normalize": False},
        {"backbone": {"name": "attended", "backbone": {**RESNET, "levels": ["layer4"]}}, "dim": 3},
    ],
)
def test_saved_and_loaded_it_embeds_alike(options, tmp_path):
    embedder = Embedder(**options).eval()
    inputs = torch.rand(2, 3, 32, 32) if "attended" in str(options) else torch.randn(2, 6)
    embedder.save_pretrained(tmp_path)
    loaded = Embedder.from_pretrained(tmp_path)
    assert not loaded.training
    torch.testing.assert_close(loaded(inputs), embedder(inputs))


def test_loading_reads_no_pretrained_weights(tmp_path):
    """A saved embedder is whole: the file of the backbone's pretrained weights may be gone."""
    backbone = Embedder(backbone=RESNET, dim=3)
    backbone.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone"]["weights"] = "/gone/resnet18.pth"
    (tmp_path / "config.json").write_text(json.dumps(config))
    Embedder.from_pretrained(tmp_path)
    del config["weights_sha256"]
    with pytest.raises(FileNotFoundError, match=r"no weights at /gone/resnet18\.pth"):
        Embedder(**config)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model: config\.json is missing"):
        Embedder.from_pretrained(tmp_path)


def test_wrong_names_are_answered():
    with pytest.raises(ValueError, match=r"unknown backbone 'mpl' \(did you mean 'mlp'\?\)"):
        Embedder(backbone={"name": "mpl"})
    with pytest.raises(ValueError, match=r"unknown embedding head 'metrix' \(did you mean 'metric'\?\)"):
        Embedder(backbone=MLP, head="metrix")  # type: ignore[arg-type]


def test_a_set_is_embedded_in_its_order_and_in_evaluation_mode():
    features = torch.randn(7, 6)
    images = LabelledFeatures(features, list("abcdefg"), ["x"] * 7, ["all"] * 7)
    embedder = Embedder(backbone={"name": "projected", "backbone": {**MLP, "dropout": 0.5}, "dim": 4}, dim=4)
    before = {name: tensor.clone() for name, tensor in embedder.state_dict().items()}
    state = torch.random.get_rng_state()
    embeddings = embedder.embed_all(images, batch_size=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert embedder.training, "the mode is as it was"
    assert all(torch.equal(tensor, before[name]) for name, tensor in embedder.state_dict().items())
    torch.testing.assert_close(embeddings, embedder.eval()(features))


def test_image_files_are_embedded(tmp_path):
    for number, color in enumerate(("red", "blue", "green")):
        (tmp_path / color).mkdir()
        Image.new("RGB", (40, 40 + number), color).save(tmp_path / color / "1.png")
    images = load_labelled(tmp_path, transform=image_transform(train=False, resize=40, crop=32))
    embedder = Embedder(backbone=RESNET, dim=3)
    embeddings = embedder.embed_all(images, batch_size=2)
    torch.testing.assert_close(embeddings, embedder.eval()(images.__getitems__([0, 1, 2]).images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("hidden", [[], [6]])
def test_an_embedder_of_any_type_takes_features_of_any_type(dtype, hidden):
    embedder = Embedder(backbone={"name": "mlp", "input_dim": 8, "hidden": hidden}, dim=4).eval()
    features = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    wanted = embedder(features)
    embeddings = embedder.to(dtype)(features)
    assert embeddings.dtype == dtype
    torch.testing.assert_close(embeddings.float(), wanted, atol=0.02, rtol=0)
