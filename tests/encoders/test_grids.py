"""Grid features with random weights, loaded as real ones are: each cell is the mean of the map inside it."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from torchvision import models

from xmodal.encoders.grids import ResNetGrid, SigLIPGrid, ViTB16Grid, ViTGrid, pool_cells


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (60 + n, 90, 3), np.uint8)) for n in range(2)]


@pytest.fixture(scope="module", params=[(ViTGrid, tiny_models.dinov2, 56), (SigLIPGrid, tiny_models.siglip, 64)])
def vit(request, tmp_path_factory) -> ViTGrid:
    kind, save, input_size = request.param
    return kind(save(tmp_path_factory.mktemp(kind.name)), grid=2, input_size=input_size)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> ResNetGrid:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(models.resnet50(weights=None).state_dict(), path)
    return ResNetGrid(path, grid=2, input_size=64)


@pytest.mark.parametrize(("height", "width", "grid"), [(4, 4, 2), (5, 7, 3), (3, 3, 3), (16, 16, 6)])
def test_cells_are_means_of_what_their_boxes_cover(height, width, grid):
    fmap = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    features, boxes = pool_cells(fmap, grid)
    size = torch.tensor([width, height]).repeat(2)
    for index, (x1, y1, x2, y2) in enumerate((boxes * size).round().int().tolist()):
        torch.testing.assert_close(features[:, index], fmap[:, :, y1:y2, x1:x2].mean(dim=(2, 3)))
    assert boxes.min() == 0
    assert boxes.max() == 1


def test_a_grid_finer_than_the_map_is_refused():
    with pytest.raises(ValueError, match="grid of 3 is finer than the map"):
        pool_cells(torch.zeros(1, 1, 2, 3), 3)
    with pytest.raises(ValueError, match="grid is 0"):
        ResNetGrid(grid=0)


def test_vit_patches_are_in_their_places(vit, images):
    regions = vit(images)
    assert [len(found.features) for found in regions] == [4, 4]
    assert regions[1].boxes[-1].tolist() == [45, 30.5, 90, 61]
    with torch.inference_mode():
        size = {"height": vit.input_size, "width": vit.input_size}
        inputs = vit.processor(images=images, size=size, do_center_crop=False, return_tensors="pt")
        states = vit.network(**inputs).last_hidden_state
    patches = states[:, 1:] if vit.name == "dinov2-grid" else states
    assert patches.shape[1] == 16
    lower_left = patches[1, [8, 9, 12, 13]].mean(dim=0)
    torch.testing.assert_close(regions[1].features[2], lower_left)


def test_resnet(resnet, images):
    regions = resnet(images)
    assert regions[0].features.shape == (4, 2048)
    assert regions[0].boxes[0].tolist() == [0, 0, 45, 30]
    (alone,) = resnet(images[1:])
    torch.testing.assert_close(alone.features, regions[1].features, rtol=1e-3, atol=1e-4)


def test_torchvision_vit_at_another_size_than_it_was_trained_at(images, tmp_path, monkeypatch):
    def small(weights, image_size):
        assert weights is None
        return models.VisionTransformer(image_size, 16, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=32)

    torch.manual_seed(0)
    trained = small(None, image_size=224)
    torch.save(trained.state_dict(), tmp_path / "vit.pth")
    monkeypatch.setattr(models, "vit_b_16", small)
    states = {}
    trained.encoder.ln.register_forward_hook(lambda _, __, output: states.update(last=output))
    vit = ViTB16Grid(tmp_path / "vit.pth", grid=2, input_size=224)
    regions = vit(images)
    trained.eval()(vit.to_pixels(images))
    patches = states["last"][1, 1:].view(14, 14, 32)
    torch.testing.assert_close(regions[1].features[1], patches[:7, 7:].mean(dim=(0, 1)), rtol=1e-4, atol=1e-5)
    assert (vit.dim, regions[0].boxes[1].tolist()) == (32, [45, 0, 90, 30])
    finer = ViTB16Grid(tmp_path / "vit.pth", grid=2, input_size=96)
    assert finer(images)[0].features.shape == (4, 32)
    with pytest.raises(ValueError, match="input_size is 100, wanted a multiple of the patch size, 16"):
        ViTB16Grid(input_size=100)


def test_input_size_must_fit_the_patches(tmp_path):
    with pytest.raises(ValueError, match="input_size is 60, wanted a multiple of the patch size, 16"):
        SigLIPGrid(tiny_models.siglip(tmp_path), input_size=60)


def test_missing_weights_say_what_to_download(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"Download https://.*resnet50.*\.pth and put the file at"):
        ResNetGrid()
    with pytest.raises(FileNotFoundError, match=r"Download https://.*vit_b_16.*\.pth and put the file at"):
        ViTB16Grid()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="`hf download google/siglip-base-patch16-224`"):
        SigLIPGrid()
