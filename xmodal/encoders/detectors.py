"""Detectors as region extractors: torchvision's Faster R-CNN, and DETR and RT-DETR of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torchvision.ops import box_convert, clip_boxes_to_image

from xmodal.encoders.region_extractor import Regions, choose_regions, coco_names, hash_weights
from xmodal.encoders.weights import load_pretrained, torchvision_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor


class FasterRCNN(nn.Module):
    """Faster R-CNN ResNet-50 FPN v2 (Li et al., 2021) with torchvision's COCO weights: objects and their RoI features.

    A proposal's box is the one regressed for its likeliest class; the feature is the box head's output on that box.

    Args:
        weights: file with the state dict; None takes torchvision's cache.
        max_regions: the most regions an image gets.
        threshold: see `choose_regions`: None for always `max_regions`, 0.2 for 10 to `max_regions`.
        input_size: shorter side of the image that the network sees, in pixels.
        proposals: boxes that the region proposal network hands on.
        nms_iou: the most that two boxes of one class may overlap.

    Raises:
        FileNotFoundError: the weights are not on this machine; the message says what to download.
    """

    name = "faster-rcnn"
    dim = 1024

    def __init__(
        self,
        weights: str | Path | None = None,
        max_regions: int = 36,
        threshold: float | None = None,
        input_size: int = 800,
        proposals: int = 1000,
        nms_iou: float = 0.3,
    ) -> None:
        super().__init__()
        from torchvision.models import detection

        state = torchvision_weights(detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1, weights)
        self.network: Any = detection.fasterrcnn_resnet50_fpn_v2(
            weights=None,
            weights_backbone=None,
            min_size=input_size,
            max_size=input_size * 5 // 3,
            rpn_post_nms_top_n_test=proposals,
        )
        self.network.load_state_dict(state)
        self.eval()
        self.weights_hash = hash_weights(self)
        self.class_names = coco_names()
        self.max_regions, self.threshold, self.nms_iou = max_regions, threshold, nms_iou

    @torch.inference_mode()
    def forward(self, images: Sequence[Image.Image]) -> list[Regions]:
        """The regions of each RGB image, surest first, with confidence and COCO category id (1 to 90)."""
        device = next(self.parameters()).device
        pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1).to(device) / 255 for image in images]
        batch, _ = self.network.transform(pixels)
        maps = self.network.backbone(batch.tensors)
        proposals, _ = self.network.rpn(batch, maps)
        heads = self.network.roi_heads
        logits, deltas = heads.box_predictor(self.describe(maps, proposals, batch.image_sizes))
        counts = [len(boxes) for boxes in proposals]
        scores = logits.float().softmax(dim=-1).split(counts)
        decoded = heads.box_coder.decode(deltas.float(), proposals).split(counts)
        choices, chosen_boxes = [], []
        for score, boxes, size in zip(scores, decoded, batch.image_sizes, strict=True):
            likeliest = score[:, 1:].argmax(dim=1) + 1  # class 0 is the background
            boxes = clip_boxes_to_image(boxes[torch.arange(len(boxes), device=device), likeliest], size)
            choice = choose_regions(
                boxes, score[:, 1:], max_regions=self.max_regions, threshold=self.threshold, nms_iou=self.nms_iou
            )
            choices.append(choice)
            chosen_boxes.append(boxes[choice.box])
        features = self.describe(maps, chosen_boxes, batch.image_sizes).float().cpu()
        results = []
        for image, choice, boxes, feature, (height, width) in zip(
            images,
            choices,
            chosen_boxes,
            features.split([len(b) for b in chosen_boxes]),
            batch.image_sizes,
            strict=True,
        ):
            scale = torch.tensor([image.width / width, image.height / height]).repeat(2)
            results.append(Regions(feature, boxes.cpu() * scale, choice.confidence.cpu(), choice.class_id.cpu() + 1))
        return results

    def describe(
        self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> Float[Tensor, "box 1024"]:
        """The box head's output on boxes in the pixels of the resized images."""
        heads = self.network.roi_heads
        return heads.box_head(heads.box_roi_pool(maps, boxes, sizes))


class DETR(nn.Module):
    """DETR (Carion et al., ECCV 2020) or a relative of it in transformers: boxes and the decoder's states.

    Args:
        weights: folder of a saved model, or its name on the hub if it is in the cache; None for the usual one.
        max_regions: the most regions an image gets.
        threshold: see `choose_regions`: None for always `max_regions`, 0.2 for 10 to `max_regions`.
        nms_iou: the most that two boxes of one class may overlap.

    Raises:
        FileNotFoundError: the weights are not on this machine; the message says what to download.

    >>> from PIL import Image
    >>> from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig
    >>> backbone = ResNetConfig(hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=["stage4"])
    >>> whole = {"backbone_config": backbone, "use_timm_backbone": False, "use_pretrained_backbone": False}
    >>> config = DetrConfig(**whole, d_model=32, encoder_layers=1, decoder_layers=1, num_queries=12)
    >>> DetrForObjectDetection(config).save_pretrained("detr")
    >>> _ = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained("detr")
    >>> (regions,) = DETR("detr", max_regions=3)([Image.new("RGB", (80, 60), "red")])
    >>> len(regions.boxes) <= 3, regions.features.shape[1]
    (True, 32)
    """

    name = "detr"
    usual_weights = "facebook/detr-resnet-50"

    def __init__(
        self,
        weights: str | Path | None = None,
        max_regions: int = 36,
        threshold: float | None = None,
        nms_iou: float = 0.3,
    ) -> None:
        super().__init__()
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        source = weights or self.usual_weights
        self.network = load_pretrained(AutoModelForObjectDetection, source)
        self.processor = load_pretrained(AutoImageProcessor, source)
        self.eval()
        self.weights_hash = hash_weights(self)
        self.dim = self.network.config.d_model
        self.class_names = self.network.config.id2label
        self.max_regions, self.threshold, self.nms_iou = max_regions, threshold, nms_iou

    @torch.inference_mode()
    def forward(self, images: Sequence[Image.Image]) -> list[Regions]:
        """The regions of each RGB image, surest first, with confidence and the detector's class id."""
        device = next(self.parameters()).device
        output = self.network(**self.processor(images=list(images), return_tensors="pt").to(device))
        logits, states = output.logits.float().cpu(), output.last_hidden_state.float().cpu()
        # DETR gives the background a class of its own, the last; RT-DETR says yes or no to each class.
        has_background = logits.shape[-1] == self.network.config.num_labels + 1
        scores = logits.softmax(dim=-1)[..., :-1] if has_background else logits.sigmoid()
        relative = box_convert(output.pred_boxes.float().cpu(), "cxcywh", "xyxy").clamp(0, 1)
        results = []
        for image, score, boxes, state in zip(images, scores, relative, states, strict=True):
            pixels = boxes * torch.tensor([image.width, image.height]).repeat(2)
            choice = choose_regions(
                pixels, score, max_regions=self.max_regions, threshold=self.threshold, nms_iou=self.nms_iou
            )
            results.append(Regions(state[choice.box], pixels[choice.box], choice.confidence, choice.class_id))
        return results


class RTDETR(DETR):
    """RT-DETR (Zhao et al., CVPR 2024): as `DETR`, faster."""

    name = "rt-detr"
    usual_weights = "PekingU/rtdetr_r50vd"
