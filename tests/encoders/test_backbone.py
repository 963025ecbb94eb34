"""Backbones, with random weights loaded as real ones are: features, intermediate maps, attention, what trains."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

from xmodal.encoders.backbone import (
    BACKBONES,
    MLP,
    AttendedBackbone,
    AttentionPool,
    EfficientNetBackbone,
    ProjectedBackbone,
    TorchvisionBackbone,
    imagenet_pixels,
    unit_pixels,
    without_weights,
)
from xmodal.names import build

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RESNET = {"name": "torchvision", "network": "resnet18", "weights": None, "levels": ["layer3", "layer4"]}


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return models.resnet18()


@pytest.fixture(scope="module")
def weights(resnet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet.state_dict(), path)
    return str(path)


def test_features_are_what_the_classifier_gets(resnet, weights):
    backbone = TorchvisionBackbone("resnet18", weights).eval()
    assert backbone.feature_dim == 512
    features = backbone(IMAGES)
    logits = resnet.eval()(imagenet_pixels(IMAGES))
    torch.testing.assert_close(resnet.fc(features), logits)


@pytest.mark.parametrize(
    ("network", "size", "dim", "level", "shape"),
    [
        ("googlenet", 64, 1024, "inception5b", (1024, 2, 2)),
        ("efficientnet_b0", 64, 1280, "features.5", (112, 4, 4)),
        ("vit_b_16", 224, 768, "encoder.layers.encoder_layer_3", (768, 14, 14)),
    ],
)
def test_any_network_of_torchvision_will_do(network, size, dim, level, shape):
    backbone = TorchvisionBackbone(network, None, levels=[level]).eval()
    images = torch.rand(1, 3, size, size)
    assert backbone(images).shape == (1, backbone.feature_dim) == (1, dim)
    (fmap,) = backbone.maps(images)
    assert fmap.shape[1:] == shape


def test_auxiliary_classifiers_in_a_file_are_left_out(tmp_path):
    network = models.googlenet(weights=None, init_weights=False)
    assert any(name.startswith("aux") for name in network.state_dict())
    torch.save(network.state_dict(), tmp_path / "googlenet.pth")
    backbone = TorchvisionBackbone("googlenet", str(tmp_path / "googlenet.pth"))
    assert not any("aux" in name for name in backbone.state_dict())


def test_intermediate_maps_are_those_of_the_network(resnet, weights):
    backbone = TorchvisionBackbone("resnet18", weights, levels=["layer3", "layer4"]).eval()
    seen = []
    handles = [
        layer.register_forward_hook(lambda *all: seen.append(all[2])) for layer in (resnet.layer3, resnet.layer4)
    ]
    resnet.eval()(imagenet_pixels(IMAGES))
    for handle in handles:
        handle.remove()
    for fmap, wanted in zip(backbone.maps(IMAGES), seen, strict=True):
        torch.testing.assert_close(fmap, wanted)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_normalization_does_not_move(frozen):
    backbone = TorchvisionBackbone("resnet18", None, freeze_batch_norm=frozen).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone(IMAGES).square().sum().backward()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-3)
    optimizer.step()
    moved = {name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("conv1.weight" in name for name in moved)
    assert any("bn1" in name for name in moved) != frozen


def test_pixels_are_scaled_once():
    torch.testing.assert_close(unit_pixels(IMAGES), unit_pixels(IMAGES.float() / 255))
    gray = torch.full((1, 3, 2, 2), 0.5)
    torch.testing.assert_close(
        imagenet_pixels(gray)[0, :, 0, 0], torch.tensor([0.0655, 0.1964, 0.4178]), rtol=1e-3, atol=0
    )
    with pytest.raises(ValueError, match=r"images have shape \(2, 8\).*the backbone 'mlp'"):
        unit_pixels(torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint16, torch.bool])
def test_whole_numbers_of_another_size_are_refused(dtype):
    backbones = [TorchvisionBackbone("mobilenet_v3_small", None), EfficientNetBackbone()]
    for see in (unit_pixels, imagenet_pixels, *backbones):
        with pytest.raises(ValueError, match=rf"images are {dtype}; wanted torch\.uint8 from 0 to 255"):
            see(torch.zeros(1, 3, 64, 64).to(dtype))


@pytest.mark.parametrize(("height", "width"), [(227, 227), (64, 70), (70, 64)])
def test_efficientnet_refuses_sizes_that_it_would_pad_on_other_sides(height, width):
    backbone = EfficientNetBackbone()
    for see in (backbone, backbone.maps, backbone.network):
        with pytest.raises(ValueError, match=rf"{width} x {height} pixels; EfficientNet-lite0 wants multiples of 32"):
            see(torch.zeros(1, 3, height, width))


def test_attention_starts_as_average_pooling_and_can_point():
    fmap = torch.randn(2, 4, 3, 5)
    pool = AttentionPool(4)
    torch.testing.assert_close(pool(fmap), fmap.mean(dim=(2, 3)))
    fmap[:, 2, 1, 3] = 50.0
    with torch.no_grad():
        pool.score.weight[0, 2] = 1.0
    assert pool.attention(fmap).shape == (2, 3, 5)
    torch.testing.assert_close(pool.attention(fmap).sum(dim=(1, 2)), torch.ones(2))
    torch.testing.assert_close(pool(fmap), fmap[:, :, 1, 3])


def test_attended_levels_are_joined_at_one_scale():
    backbone = AttendedBackbone(RESNET).train()
    features = backbone(IMAGES)
    assert features.shape == (2, backbone.feature_dim) == (2, 256 + 512)
    for level in features.split([256, 512], dim=1):
        torch.testing.assert_close(level.square().mean(dim=1), torch.ones(2))
    features[:, ::3].sum().backward()
    assert all(pool.score.weight.grad.abs().sum() > 0 for pool in backbone.pools)


def test_looking_for_dims_moves_nothing():
    backbone = AttendedBackbone(RESNET)
    assert backbone.training
    assert all(int(count) == 0 for name, count in backbone.state_dict().items() if name.endswith("batches_tracked"))


def test_mlp_is_identity_without_hidden_layers():
    features = torch.randn(3, 6)
    assert MLP(6)(features) is features
    assert list(MLP(6).parameters()) == []
    deeper = MLP(6, hidden=[5, 4])
    assert deeper(features).shape == (3, deeper.feature_dim) == (3, 4)
    with pytest.raises(ValueError, match=r"features have shape \(3, 6\); wanted \(image, 7\)"):
        MLP(7)(features)


def test_projected_features_have_length_one():
    backbone = ProjectedBackbone({"name": "mlp", "input_dim": 6}, dim=3)
    features = backbone(torch.randn(4, 6))
    assert features.shape == (4, backbone.feature_dim)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))


def test_efficientnet_is_the_extractor_of_regions():
    backbone = build("backbone", BACKBONES, {"name": "efficientnet-lite0"})
    with torch.inference_mode():
        features, maps = backbone(IMAGES), backbone.maps(IMAGES)
        wanted = backbone.network.final(backbone.network((IMAGES.float() - 127) / 128).wholes).mean(dim=(2, 3))
    torch.testing.assert_close(features, wanted)
    assert [fmap.shape[1:] for fmap in maps] == [(112, 4, 4), (320, 2, 2), (1280, 2, 2)]
    attended = build("backbone", BACKBONES, {"name": "attended", "backbone": {"name": "efficientnet-lite0"}})
    assert attended.feature_dim == 112 + 320 + 1280


def test_no_weights_are_read_that_will_be_replaced():
    options = {"name": "attended", "backbone": {**RESNET, "weights": "DEFAULT"}}
    assert without_weights(options) == {"name": "attended", "backbone": RESNET}
    assert without_weights({"name": "mlp", "input_dim": 3}) == {"name": "mlp", "input_dim": 3}


def test_what_cannot_be_built_is_refused(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ValueError, match=r"no network 'resnet19' \(did you mean 'resnet18'\?\)"):
        TorchvisionBackbone("resnet19")
    with pytest.raises(FileNotFoundError, match=r"resnet18-f37072fd\.pth\. Download https"):
        TorchvisionBackbone("resnet18")
    with pytest.raises(ValueError, match=r"resnet18 has no weights 'IMAGENET1K_V9'.*known: DEFAULT, IMAGENET1K_V1"):
        TorchvisionBackbone("resnet18", "IMAGENET1K_V9")
    with pytest.raises(ValueError, match=r"resnet18\.pth does not hold the weights of resnet34"):
        TorchvisionBackbone("resnet34", weights)
    with pytest.raises(ValueError, match=r"resnet18 has no level 'layer5' \(did you mean 'layer"):
        TorchvisionBackbone("resnet18", None, levels=["layer5"])
    with pytest.raises(ValueError, match="does not end in a linear layer"):
        TorchvisionBackbone("squeezenet1_1", None)
    with pytest.raises(ValueError, match="'mlp' has no intermediate maps"):
        AttendedBackbone({"name": "mlp", "input_dim": 3})
    with pytest.raises(ValueError, match="give backbone 'torchvision' levels"):
        AttendedBackbone({**RESNET, "levels": []})
