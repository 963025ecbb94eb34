"""Levels of torchvision's networks as maps, whichever way they lie there; what is no map, and sizes, are refused."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

from xmodal.data.pixels import PixelBatch
from xmodal.encoders.backbone import AttendedBackbone, MapNetwork, TorchvisionBackbone, imagenet_pixels
from xmodal.encoders.levels import Levels, extract_levels
from xmodal.encoders.pixels import PixelTower

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    """Torchvision's own network, and a file with its weights."""
    torch.manual_seed(0)
    network, path = models.swin_t().eval(), tmp_path_factory.mktemp("weights") / "swin_t.pth"
    torch.save(network.state_dict(), path)
    return network, str(path)


@torch.no_grad()
def test_maps_with_channels_last_are_turned_and_a_level_inside_another_is_its_own(swin):
    network, weights = swin
    levels = ["features.3", "features.3.1", "features.3.1.norm1", "features.3.0", "permute"]
    backbone = TorchvisionBackbone("swin_t", weights, levels=levels).eval()
    pixels = imagenet_pixels(IMAGES)
    first = network.features[3][0](network.features[:3](pixels))
    second = network.features[3][1](first)
    wanted = [second, second, network.features[3][1].norm1(first), first, network.norm(network.features(pixels))]
    for fmap, right in zip(backbone.maps(IMAGES), wanted, strict=True):
        torch.testing.assert_close(fmap, right.permute(0, 3, 1, 2))
    torch.testing.assert_close(network.head(backbone(IMAGES)), network(pixels))


@torch.no_grad()
def test_what_attends_to_them_and_projects_them_has_their_dims(swin):
    network, weights = swin
    options = {"name": "torchvision", "network": "swin_t", "weights": weights, "levels": ["features.5"]}
    attended = AttendedBackbone(options).eval()
    assert attended.feature_dim == 384
    fmap = network.features[:6](imagenet_pixels(IMAGES))
    torch.testing.assert_close(attended.pools[0](fmap.permute(0, 3, 1, 2)), fmap.mean(dim=(1, 2)))
    tower = PixelTower(dim=8, network="swin_t", weights=weights, level="features.5", normalize=False).eval()
    items = tower(PixelBatch(IMAGES)).items
    torch.testing.assert_close(items, fmap.flatten(1, 2) @ tower.projection.weight.T, atol=1e-5, rtol=1e-4)


def test_patches_of_a_transformer_keep_their_places():
    (fmap,) = Levels(["level"], [2], [2], "end").maps({"level": torch.arange(10.0).view(1, 5, 2)})
    assert fmap[0, 0].tolist() == [[2.0, 4.0], [6.0, 8.0]]


@pytest.mark.parametrize(("network", "level"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier")])
def test_what_is_no_map_is_refused(network, level):
    options = {"name": "torchvision", "network": network, "weights": None, "levels": [level]}
    for build in (lambda: MapNetwork(network, None, level), lambda: AttendedBackbone(options)):
        with pytest.raises(ValueError, match=rf"level '{level}' of {network} gives \(1, \d+\) for an image; wanted"):
            build()


class Windows(torch.nn.Module):
    """What some networks give on their way: windows as images, several tensors, as many channels as places."""

    def __init__(self, kind):
        super().__init__()
        self.level, self.kind = torch.nn.Identity(), kind

    def forward(self, images):
        small = images.mean(dim=1, keepdim=True)[:, :, ::32, ::32]  # 7 x 7, then 8 x 8
        kinds = {
            "windows": lambda: small.reshape(-1, 1, 1, 1),
            "places": lambda: small.expand(-1, 7, -1, -1),
            "places last": lambda: small.expand(-1, 7, -1, -1).permute(0, 2, 3, 1),
            "flat": lambda: small.flatten(2).expand(-1, 7, -1),
            "one": lambda: small.mean(dim=(2, 3), keepdim=True).expand(-1, 7, -1, -1),
        }
        return self.level(kinds[self.kind]())


def test_as_many_channels_as_places_are_told_apart():
    for kind, axis, dim in (("places", 1, 7), ("places last", 3, 7), ("one", 1, 7)):
        extractor, levels = extract_levels("windows", Windows(kind), ["level"])
        assert (levels.channel_axes, levels.dims) == ([axis], [dim])
        assert levels.maps(extractor(torch.zeros(2, 3, 160, 96)))[0].shape[:2] == (2, 7)
    for kind in ("windows", "flat"):
        with pytest.raises(ValueError, match="level 'level' of windows gives"):
            extract_levels("windows", Windows(kind), ["level"])


def test_a_size_that_a_network_does_not_take_is_refused(capfd):
    backbone = TorchvisionBackbone("vit_b_16", None, levels=["encoder.layers.encoder_layer_0"]).eval()
    assert not capfd.readouterr().err
    for see in (backbone, backbone.maps):
        with pytest.raises(ValueError, match="fails on images of 230 x 227 pixels: Wrong image height"):
            see(torch.zeros(1, 3, 227, 230, dtype=torch.uint8))
    with pytest.raises(ValueError, match="fails on images of 16 x 16 pixels: Given input size"):
        TorchvisionBackbone("densenet121", None).eval()(torch.zeros(1, 3, 16, 16))
