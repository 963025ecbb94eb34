"""What a region extractor is: pictures in, boxes and feature vectors out."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import nn
from torchvision.ops import batched_nms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float, Int
    from PIL import Image
    from torch import Tensor


class Regions(NamedTuple):
    """The regions of one image; boxes are x1 y1 x2 y2 in its pixels."""

    features: Float[Tensor, "region dim"]
    boxes: Float[Tensor, "region 4"]
    confidence: Float[Tensor, "region"] | None = None
    class_id: Int[Tensor, "region"] | None = None


class RegionExtractor(Protocol):
    """Finds and describes the regions of images.

    Attributes:
        name: what the region store records as its extractor.
        dim: length of a feature vector.
        max_regions: the most regions an image can get; every image gets at least one.
        weights_hash: sha256 of the weights, so that stores made with different ones can be told apart.
    """

    name: str
    dim: int
    max_regions: int
    weights_hash: str

    @property
    def class_names(self) -> Mapping[int, str]:
        """What the class ids of its regions stand for; empty if it knows no classes."""
        ...

    def __call__(self, images: Sequence[Image.Image]) -> list[Regions]:
        """The regions of each RGB image, in order. The images may differ in size."""
        ...


def move(extractor: RegionExtractor, device: torch.device) -> None:
    """Let an extractor compute on a device, if it is one that can: not all of them are networks of torch.

    >>> class Colors(torch.nn.Module):
    ...     def __init__(self) -> None:
    ...         super().__init__()
    ...         self.mean = torch.nn.Parameter(torch.zeros(3))
    >>> colors = Colors()
    >>> move(colors, torch.device("meta"))
    >>> colors.mean.device.type
    'meta'
    """
    if isinstance(extractor, nn.Module):
        extractor.to(device)


class Choice(NamedTuple):
    """Which boxes of an image become its regions, surest first."""

    box: Int[Tensor, "region"]
    confidence: Float[Tensor, "region"]
    class_id: Int[Tensor, "region"]


def choose_regions(
    boxes: Float[Tensor, "box 4"],
    scores: Float[Tensor, "box class"],
    *,
    max_regions: int = 36,
    threshold: float | None = None,
    min_regions: int = 10,
    nms_iou: float = 0.3,
) -> Choice:
    """The surest boxes after class-wise suppression, as bottom-up attention chooses them (Anderson et al., CVPR 2018).

    A box counts for the classes in which no surer box overlaps it too much; its confidence is the highest of their
    scores. Boxes that count for no class are dropped.

    Args:
        boxes: x1 y1 x2 y2.
        scores: of every class but the background, in [0, 1].
        max_regions: keep at most this many.
        threshold: keep only boxes at least this sure, but the `min_regions` surest anyhow; None keeps `max_regions`.
        min_regions: see `threshold`.
        nms_iou: the most that two boxes of one class may overlap, as intersection over union.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    >>> choose_regions(boxes, torch.tensor([[0.9, 0.0], [0.8, 0.1], [0.2, 0.3]])).box
    tensor([0, 2, 1])
    """
    num_classes = scores.shape[1]
    class_id = torch.arange(num_classes, device=scores.device).repeat(len(boxes))
    kept = batched_nms(boxes.repeat_interleave(num_classes, dim=0), scores.flatten(), class_id, nms_iou)
    surviving = torch.zeros_like(scores).flatten().index_copy(0, kept, scores.flatten()[kept]).view_as(scores)
    confidence, best_class = surviving.max(dim=1)
    order = confidence.argsort(descending=True, stable=True)[:max_regions]
    order = order[confidence[order] > 0]
    if threshold is not None:
        order = order[: max(min_regions, int((confidence[order] >= threshold).sum()))]
    return Choice(order, confidence[order], best_class[order])


def coco_names() -> dict[int, str]:
    """COCO's categories by their ids, which run from 1 to 90 with gaps.

    >>> coco_names()[18]
    'dog'
    """
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights

    names = FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["categories"]
    return {number: name for number, name in enumerate(names) if name not in ("__background__", "N/A")}


def hash_weights(module: nn.Module) -> str:
    """sha256 of a module's parameters and buffers with their names, wherever they are.

    >>> layer = torch.nn.Linear(2, 1)
    >>> before = hash_weights(layer)
    >>> before == hash_weights(layer.to(torch.float32)), before == hash_weights(torch.nn.Linear(2, 1))
    (True, False)
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
