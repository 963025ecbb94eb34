"""Detectors with random weights, loaded as real ones are: their regions are what the network itself says."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import box_iou

from preprocess.regions import RegionsConfig, main
from xmodal.data import RegionStore
from xmodal.encoders.detectors import DETR, RTDETR, FasterRCNN
from xmodal.encoders.region_extractor import choose_regions


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(90, 60), (50, 80)]
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)) for width, height in sizes]


@pytest.fixture(scope="module")
def faster_rcnn(tmp_path_factory) -> FasterRCNN:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "faster_rcnn.pth"
    network = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    torch.save(network.state_dict(), path)
    return FasterRCNN(path, max_regions=8, input_size=64, proposals=20)


@pytest.fixture(
    scope="module", params=[(DETR, tiny_models.detr), (RTDETR, tiny_models.rt_detr)], ids=["DETR", "RT-DETR"]
)
def detr(request, tmp_path_factory) -> DETR:
    kind, save = request.param
    return kind(save(tmp_path_factory.mktemp(kind.name)), max_regions=8)


def check(regions, image, extractor):
    assert 1 <= len(regions.features) <= extractor.max_regions
    assert regions.features.shape == (len(regions.boxes), extractor.dim)
    assert regions.features.dtype == torch.float32
    assert regions.confidence.diff().le(0).all(), "surest first"
    assert (regions.boxes >= 0).all()
    assert (regions.boxes[:, :2] <= regions.boxes[:, 2:]).all()
    assert (regions.boxes[:, 2:] <= torch.tensor(image.size) + 1e-3).all()
    for one in range(len(regions.boxes)):
        for other in range(one):
            if regions.class_id[one] == regions.class_id[other]:
                assert box_iou(regions.boxes[one, None], regions.boxes[other, None]) <= 0.3 + 1e-5


def test_faster_rcnn(faster_rcnn, images):
    regions = faster_rcnn(images)
    for found, image in zip(regions, images, strict=True):
        check(found, image, faster_rcnn)
        assert found.class_id.min() >= 1
    assert len(faster_rcnn.weights_hash) == 64


def test_faster_rcnn_describes_its_boxes_with_its_box_head(faster_rcnn, images):
    (regions,) = faster_rcnn(images[:1])
    with torch.inference_mode():
        pixels = torch.from_numpy(np.array(images[0])).permute(2, 0, 1) / 255
        batch, _ = faster_rcnn.network.transform([pixels])
        height, width = batch.image_sizes[0]
        boxes = regions.boxes * torch.tensor([width / images[0].width, height / images[0].height]).repeat(2)
        heads = faster_rcnn.network.roi_heads
        pooled = heads.box_roi_pool(faster_rcnn.network.backbone(batch.tensors), [boxes], batch.image_sizes)
        torch.testing.assert_close(heads.box_head(pooled), regions.features, rtol=1e-3, atol=1e-4)


def test_detr(detr, images):
    for found, image in zip(detr(images), images, strict=True):
        check(found, image, detr)


def test_detr_gives_the_decoders_states_of_its_boxes(detr, images):
    (regions,) = detr(images[:1])
    with torch.inference_mode():
        inputs = detr.processor(images=images[:1], return_tensors="pt")
        output = detr.network(**inputs)
    # RT-DETR says yes or no to each class; DETR has one more class, the background.
    scores = output.logits[0].sigmoid() if detr.name == "rt-detr" else output.logits[0].softmax(dim=-1)[:, :5]
    for feature, box, confidence, class_id in zip(*regions, strict=True):
        state = (output.last_hidden_state[0] == feature).all(dim=1).nonzero().item()
        center_x, center_y, width, height = output.pred_boxes[0, state].tolist()
        expected_box = [center_x - width / 2, center_y - height / 2, center_x + width / 2, center_y + height / 2]
        clamped = torch.tensor(expected_box).clamp(0, 1) * torch.tensor(images[0].size).repeat(2)
        torch.testing.assert_close(box, clamped, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(confidence, scores[state, class_id])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_from_the_command_line(precision, images, tmp_path):
    tiny_models.detr(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "images" / f"COCO_val2014_{number:012}.png")
    options = {"weights": str(tmp_path / "model"), "max_regions": 11, "threshold": 0.9, "precision": precision}
    main(RegionsConfig(tmp_path / "images", tmp_path / "out.h5", extractor="detr", coco_ids=True, **options))
    store = RegionStore(tmp_path / "out.h5")
    assert store.image_id == ["0", "1"]
    assert store.max_regions == 11
    expected = DETR(tmp_path / "model", max_regions=11, threshold=0.9)(images)
    tolerance = 1e-5 if precision == "float32" else 0.1
    for index, regions in enumerate(expected):
        assert len(store[index]) <= 10
        if precision == "float32":
            torch.testing.assert_close(store.boxes(index), regions.boxes)
        torch.testing.assert_close(store[index].mean(dim=0), regions.features.mean(dim=0), rtol=0, atol=tolerance)
    assert store.attributes["extractor"] == "detr"
    assert store.attributes["weights_hash"] == DETR(tmp_path / "model").weights_hash
    assert store.extractor["weights"] == str(tmp_path / "model")
    assert store.extractor["nms_iou"] == 0.3


@pytest.mark.parametrize("kind", [DETR, RTDETR])
def test_missing_model_says_what_to_download(kind, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=rf"no model at {kind.usual_weights}.* `hf download {kind.usual_weights}`"
    ):
        kind()
    with pytest.raises(
        FileNotFoundError, match=r"no model at .*nowhere.*--local-dir FOLDER` and give --weights FOLDER"
    ):
        kind(tmp_path / "nowhere")


def test_missing_file_says_what_to_download(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"Download https://.*fasterrcnn.*\.pth and put the file at .*checkpoints"
    ):
        FasterRCNN()
    with pytest.raises(FileNotFoundError, match=r"no weights at nowhere\.pth"):
        FasterRCNN("nowhere.pth")


def chosen_slowly(boxes, scores, max_regions, threshold, min_regions, nms_iou):
    """Class by class and box by box, after the loop in bottom-up attention's own script, in our words."""
    confidence = torch.zeros(len(boxes))
    for column in scores.T:
        kept = []
        for box in column.argsort(descending=True, stable=True).tolist():
            if all(box_iou(boxes[box, None], boxes[other, None]) <= nms_iou for other in kept):
                kept.append(box)
                confidence[box] = max(confidence[box], column[box])
    order = [box for box in confidence.argsort(descending=True, stable=True).tolist() if confidence[box] > 0]
    order = order[:max_regions]
    if threshold is None:
        return order
    return order[: max(min_regions, sum(confidence[box] >= threshold for box in order))]


@given(st.integers(1, 12), st.integers(1, 4), st.sampled_from([None, 0.5, 0.99]), st.integers(0, 1000))
def test_regions_are_chosen_as_bottom_up_attention_does(num_boxes, num_classes, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_boxes, 2, generator=generator)
    boxes = torch.cat([corner, corner + torch.rand(num_boxes, 2, generator=generator)], dim=1)
    scores = torch.rand(num_boxes, num_classes, generator=generator)
    options = {"max_regions": 6, "threshold": threshold, "min_regions": 3, "nms_iou": 0.3}
    choice = choose_regions(boxes, scores, **options)
    assert choice.box.tolist() == chosen_slowly(boxes, scores, **options)
    assert torch.equal(choice.confidence, scores[choice.box, choice.class_id])
