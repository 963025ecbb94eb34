"""Grid features as regions: the image is cut into cells, each described by a backbone's map inside it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from xmodal.encoders.pixels import cell_means
from xmodal.encoders.region_extractor import Regions, hash_weights
from xmodal.encoders.weights import load_pretrained, torchvision_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pool_cells(
    fmap: Float[Tensor, "image dim height width"], grid: int
) -> tuple[Float[Tensor, "image region dim"], Float[Tensor, "region 4"]]:
    """The mean of a map in each of grid x grid cells, row by row, and the cells as fractions of the image.

    Where a cell's edge falls inside a position of the map the whole position belongs to it, so cells may overlap.

    >>> features, boxes = pool_cells(torch.arange(6.0).view(1, 1, 2, 3), grid=2)
    >>> features.flatten(), boxes[0]
    (tensor([0.5000, 1.5000, 3.5000, 4.5000]), tensor([0.0000, 0.0000, 0.6667, 0.5000]))
    """
    features = cell_means(fmap.float(), grid)
    number = torch.arange(grid)
    (y1, y2), (x1, x2) = (
        ((number * side // grid) / side, -(-(number + 1) * side // grid) / side) for side in fmap.shape[-2:]
    )
    corners = [torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2) for x, y in ((x1, y1), (x2, y2))]
    return features.cpu(), torch.cat(corners, dim=1)


class GridExtractor(nn.Module):
    """What grid extractors share: subclasses turn a batch of images into one map. Boxes cover the image evenly.

    >>> class Colors(GridExtractor):
    ...     name, dim = "colors", 3
    ...
    ...     def feature_map(self, images):
    ...         size = [self.input_size, self.input_size]
    ...         return torch.stack([transforms.resize(transforms.pil_to_tensor(image), size) for image in images])
    >>> from PIL import Image
    >>> (regions,) = Colors(grid=2, input_size=8)([Image.new("RGB", (80, 60), "red")])
    >>> regions.features[0], regions.boxes[0]
    (tensor([255.,   0.,   0.]), tensor([ 0.,  0., 40., 30.]))
    """

    name: str
    dim: int

    def __init__(self, grid: int, input_size: int) -> None:
        super().__init__()
        if grid < 1:
            raise ValueError(f"grid is {grid}, wanted at least 1")
        self.grid, self.input_size, self.max_regions = grid, input_size, grid * grid
        self.class_names: dict[int, str] = {}

    def feature_map(self, images: Sequence[Image.Image]) -> Float[Tensor, "image dim height width"]:
        """The backbone's map of images that are stretched to squares."""
        raise NotImplementedError

    @torch.inference_mode()
    def forward(self, images: Sequence[Image.Image]) -> list[Regions]:
        """The regions of each RGB image: row by row over the grid."""
        features, boxes = pool_cells(self.feature_map(images), self.grid)
        scales = [torch.tensor([image.width, image.height]).repeat(2) for image in images]
        return [Regions(feature, boxes * scale) for feature, scale in zip(features, scales, strict=True)]


class TorchvisionGrid(GridExtractor):
    """What the grids of torchvision's ImageNet networks share."""

    def to_pixels(self, images: Sequence[Image.Image]) -> Float[Tensor, "image 3 size size"]:
        """Images stretched to squares, as the network was trained to see them."""
        size = [self.input_size, self.input_size]
        pixels = torch.stack([transforms.resize(transforms.pil_to_tensor(image), size) for image in images])
        pixels = pixels.to(next(self.parameters()).device) / 255
        return transforms.normalize(pixels, list(IMAGENET_MEAN), list(IMAGENET_STD))


class ResNetGrid(TorchvisionGrid):
    """ResNet-50 (He et al., CVPR 2016) with torchvision's ImageNet weights, its last map.

    Args:
        weights: file with the state dict; None takes torchvision's cache.
        grid: cells along each side.
        input_size: side of the square that the network sees, in pixels.

    Raises:
        FileNotFoundError: the weights are not on this machine; the message says what to download.
    """

    name = "resnet50-grid"
    dim = 2048

    def __init__(self, weights: str | Path | None = None, grid: int = 6, input_size: int = 384) -> None:
        super().__init__(grid, input_size)
        from torchvision.models import ResNet50_Weights, resnet50

        network = resnet50(weights=None)
        network.load_state_dict(torchvision_weights(ResNet50_Weights.IMAGENET1K_V2, weights))
        self.network = nn.Sequential(*list(network.children())[:-2])  # without pooling and classifier
        self.eval()
        self.weights_hash = hash_weights(self)

    def feature_map(self, images: Sequence[Image.Image]) -> Float[Tensor, "image 2048 height width"]:
        """The map before pooling, a 32nd of the input's size."""
        return self.network(self.to_pixels(images))


class ViTB16Grid(TorchvisionGrid):
    """ViT-B/16 (Dosovitskiy et al., ICLR 2021) with torchvision's ImageNet weights, the last states of its patches.

    Args:
        weights: file with the state dict; None takes torchvision's cache.
        grid: cells along each side.
        input_size: side of the square that the network sees, in pixels, a multiple of 16. The position embeddings are
            interpolated to it.

    Raises:
        FileNotFoundError: the weights are not on this machine; the message says what to download.
        ValueError: input_size is no multiple of 16.
    """

    name = "vit-b16-grid"

    def __init__(self, weights: str | Path | None = None, grid: int = 6, input_size: int = 384) -> None:
        super().__init__(grid, input_size)
        from torchvision import models
        from torchvision.models.vision_transformer import interpolate_embeddings

        if input_size % 16:
            raise ValueError(f"input_size is {input_size}, wanted a multiple of the patch size, 16")
        state = torchvision_weights(models.ViT_B_16_Weights.IMAGENET1K_V1, weights)
        self.network: Any = models.vit_b_16(weights=None, image_size=input_size)
        self.network.load_state_dict(interpolate_embeddings(input_size, self.network.patch_size, OrderedDict(state)))
        self.network.heads = nn.Identity()  # it is not used, and is no part of the hash
        self.eval()
        self.weights_hash = hash_weights(self)
        self.dim = self.network.hidden_dim

    def feature_map(self, images: Sequence[Image.Image]) -> Float[Tensor, "image dim height width"]:
        """The last states of the patches, each in its place."""
        patches: Tensor = self.network._process_input(self.to_pixels(images))
        class_token = self.network.class_token.expand(len(patches), -1, -1)
        states = self.network.encoder(torch.cat([class_token, patches], dim=1))[:, 1:]
        side = self.input_size // self.network.patch_size
        return states.transpose(1, 2).unflatten(2, (side, side))


class ViTGrid(GridExtractor):
    """A vision transformer of transformers, the last states of its patches (DINOv2: Oquab et al., TMLR 2024).

    Args:
        weights: folder of a saved model, or its name on the hub if it is in the cache; None for the usual one. A
            model with an image and a text tower gives its image tower.
        grid: cells along each side.
        input_size: side of the square that the network sees, in pixels; a multiple of its patch size.

    Raises:
        FileNotFoundError: the weights are not on this machine; the message says what to download.
        ValueError: input_size is no multiple of the patch size.

    >>> from PIL import Image
    >>> from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
    >>> config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    >>> Dinov2Model(config).save_pretrained("dinov2")
    >>> _ = BitImageProcessor().save_pretrained("dinov2")
    >>> (regions,) = ViTGrid("dinov2", grid=2, input_size=56)([Image.new("RGB", (80, 60), "red")])
    >>> regions.features.shape, regions.boxes[3]
    (torch.Size([4, 32]), tensor([40., 30., 80., 60.]))
    """

    name = "dinov2-grid"
    usual_weights = "facebook/dinov2-base"

    def __init__(self, weights: str | Path | None = None, grid: int = 6, input_size: int = 224) -> None:
        super().__init__(grid, input_size)
        from transformers import AutoImageProcessor, AutoModel

        source = weights or self.usual_weights
        network = load_pretrained(AutoModel, source)
        self.network: Any = getattr(network, "vision_model", network)
        self.processor = load_pretrained(AutoImageProcessor, source)
        self.eval()
        self.weights_hash = hash_weights(self)
        self.dim, self.patch_size = self.network.config.hidden_size, self.network.config.patch_size
        if input_size % self.patch_size:
            raise ValueError(f"input_size is {input_size}, wanted a multiple of the patch size, {self.patch_size}")

    def feature_map(self, images: Sequence[Image.Image]) -> Float[Tensor, "image dim height width"]:
        """The last states of the patches, each in its place."""
        inputs = self.processor(
            images=list(images),
            size={"height": self.input_size, "width": self.input_size},
            do_resize=True,
            do_center_crop=False,
            return_tensors="pt",
        ).to(next(self.parameters()).device)
        side = self.input_size // self.patch_size
        # Class and register tokens, if there are any, come before the patches.
        patches = self.network(**inputs).last_hidden_state[:, -side * side :]
        return patches.transpose(1, 2).unflatten(2, (side, side))


class SigLIPGrid(ViTGrid):
    """SigLIP's image tower (Zhai et al., ICCV 2023): as `ViTGrid`.

    >>> from PIL import Image
    >>> from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel
    >>> config = SiglipVisionConfig(hidden_size=12, intermediate_size=8, num_hidden_layers=1, image_size=32)
    >>> SiglipVisionModel(config).save_pretrained("siglip")
    >>> _ = SiglipImageProcessor().save_pretrained("siglip")
    >>> (regions,) = SigLIPGrid("siglip", grid=2, input_size=32)([Image.new("RGB", (80, 60), "red")])
    >>> regions.features.shape
    torch.Size([4, 12])
    """

    name = "siglip-grid"
    usual_weights = "google/siglip-base-patch16-224"
