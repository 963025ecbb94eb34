"""A network's map as items: in their order, in cells, of the network alone, frozen where that is asked for."""

from __future__ import annotations

import pytest
import torch

from xmodal.data.pixels import PixelBatch
from xmodal.encoders.pixels import PixelTower

NETWORK = {"network": "mobilenet_v3_small", "weights": None}


def batch(size: int = 64, images: int = 2) -> PixelBatch:
    generator = torch.Generator().manual_seed(0)
    return PixelBatch(torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=generator))


@torch.no_grad()
def test_items_are_the_projected_positions_of_the_networks_map():
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(0)
    tower = PixelTower(dim=8, **NETWORK, normalize=False).eval()
    plain = mobilenet_v3_small(weights=None).eval()
    state = {name.removeprefix("network.network."): value for name, value in tower.state_dict().items()}
    plain.load_state_dict({name: value for name, value in state.items() if name.startswith("features")}, strict=False)
    pixels = batch().pixels / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    fmap = plain.features((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    items, mask = tower(batch())
    assert items.shape == (2, 4, 8)
    assert mask.all()
    for row in range(2):
        for column in range(2):
            wanted = fmap[:, :, row, column] @ tower.projection.weight.T
            torch.testing.assert_close(items[:, 2 * row + column], wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_cells_are_means_of_positions():
    torch.manual_seed(0)
    fine = PixelTower(dim=8, **NETWORK, normalize=False).eval()
    torch.manual_seed(0)
    coarse = PixelTower(dim=8, **NETWORK, normalize=False, grid=1).eval()
    items = coarse(batch()).items
    torch.testing.assert_close(items, fine(batch()).items.mean(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"grid of 3 is finer than the map, \(2, 2\)"):
        PixelTower(dim=8, **NETWORK, grid=3)(batch())


def test_every_parameter_learns_so_that_processes_can_share_gradients():
    tower = PixelTower(dim=8, **NETWORK)
    (tower(batch(size=96)).items * torch.randn(8)).sum().backward()
    assert not [name for name, parameter in tower.named_parameters() if parameter.grad is None]


def test_a_frozen_network_stays_as_it_is():
    tower = PixelTower(dim=8, **NETWORK, frozen=True).train()
    before = {name: value.clone() for name, value in tower.network.state_dict().items()}
    tower(batch()).items.sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is not None] == [
        "projection.weight",
        "projection.bias",
    ]
    assert all(torch.equal(before[name], value) for name, value in tower.network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet51"}, r"no network 'resnet51' \(did you mean 'resnet5"),
        ({"network": "resnet18", "level": "layer5"}, r"no level 'layer5' \(did you mean 'layer"),
        ({"network": "mobilenet_v3_small", "grid": 0}, "grid is 0"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PixelTower(dim=8, weights=None, **options)


def test_arrays_that_are_no_pixels_are_refused():
    with pytest.raises(ValueError, match=r"pixels must be \(3, height, width\), got \(36, 8\)"):
        PixelTower(dim=8, **NETWORK).as_batch(torch.ones(36, 8))
