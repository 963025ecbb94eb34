"""From pixels to the joint space: a network of torchvision, whose map's positions are the items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.data.pixels import PixelBatch
from xmodal.encoders.backbone import MapNetwork, imagenet_pixels
from xmodal.encoders.base import EncodedSet, ImageEncoder, check_dropout
from xmodal.numerics import DropShare, Size, normalize  # ranges are read at run time

if TYPE_CHECKING:
    from jaxtyping import Float, Num
    from torch import Tensor


def cell_means(fmap: Float[Tensor, "image dim height width"], grid: int) -> Float[Tensor, "image cell dim"]:
    """The mean of a map in each of grid x grid cells, row by row.

    Where a cell's edge falls inside a position of the map the whole position belongs to it, so cells may overlap.

    Raises:
        ValueError: the grid is finer than the map.

    >>> cell_means(torch.arange(6.0).view(1, 1, 2, 3), grid=2).flatten()
    tensor([0.5000, 1.5000, 3.5000, 4.5000])
    """
    if grid > min(fmap.shape[-2:]):
        raise ValueError(f"a grid of {grid} is finer than the map, {tuple(fmap.shape[-2:])}. Enlarge the images.")
    return F.adaptive_avg_pool2d(fmap, grid).flatten(2).transpose(1, 2)


class PixelTower(ImageEncoder):
    """A network of torchvision up to a map of the image, and a linear layer on every position or cell of it.

    Args:
        dim: dim of the joint space.
        network: torchvision's name for the network: `resnet50`, `vit_b_16`, `mobilenet_v3_small`, ...
        weights: as for `xmodal.encoders.backbone.TorchvisionBackbone`: torchvision's name for pretrained weights, which
            must be in its cache, a file with the state dict, or None for random ones.
        level: the module whose output is the map: `layer3` of a ResNet, say; None for the last one.
        grid: cells along each side, each the mean of the map inside it; None takes every position of the map.
        normalize: L2-normalize every item.
        frozen: keep the network as it is, statistics included, and train the linear layer alone.
        input_dropout: share of the values of the positions or cells of the map that is dropped in training.
        dropout: share of the values of the items that is dropped in training, before the normalization.

    Raises:
        FileNotFoundError: the weights are not on this machine; the message says what to download.
        ValueError: torchvision has no such network, the network no such level or weights, or a share of values to drop
            is not at least 0 and below 1.

    >>> tower = PixelTower(dim=8, network="mobilenet_v3_small", weights=None)
    >>> items, mask = tower(PixelBatch(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))
    >>> items.shape, mask.shape
    (torch.Size([2, 4, 8]), torch.Size([2, 4]))
    """

    image_axes = ("3", "height", "width")

    def __init__(
        self,
        dim: Size,
        network: str = "resnet50",
        weights: str | None = "DEFAULT",
        level: str | None = None,
        grid: Size | None = None,
        normalize: bool = True,
        frozen: bool = False,
        input_dropout: DropShare = 0.0,
        dropout: DropShare = 0.0,
    ) -> None:
        super().__init__()
        check_dropout(input_dropout=input_dropout, dropout=dropout)
        if grid is not None and grid < 1:
            raise ValueError(f"grid is {grid}, wanted at least 1, or None for every position of the map")
        self.network = MapNetwork(network, weights, level)
        self.projection = nn.Linear(self.network.dim, dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.dim, self.grid, self.normalize, self.frozen = dim, grid, normalize, frozen
        self.input_dropout, self.dropout = input_dropout, dropout
        if frozen:
            self.network.requires_grad_(False)
        self.train(self.training)

    def forward(self, batch: PixelBatch) -> EncodedSet:
        """The positions of the map row by row, or its cells; all are real."""
        fmap = self.network(imagenet_pixels(batch.pixels).to(self.projection.weight.dtype))
        cells = fmap.flatten(2).transpose(1, 2) if self.grid is None else cell_means(fmap, self.grid)
        cells = F.dropout(cells, self.input_dropout, self.training)
        items = F.dropout(self.projection(cells), self.dropout, self.training)
        items = normalize(items, floor=1e-8) if self.normalize else items
        return EncodedSet(items, torch.ones(items.shape[:2], dtype=torch.bool, device=items.device))

    def train(self, mode: bool = True) -> PixelTower:
        """As usual, but a frozen network stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def example_batch(self, images: int, items: int, generator: torch.Generator) -> PixelBatch:
        """Images of noise, of the size that networks are trained on whatever `items` is."""
        return PixelBatch(torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8, generator=generator))

    def as_batch(self, image: Num[Tensor, "3 height width"]) -> PixelBatch:
        """The batch of one image that a user gave as pixels, uint8 or from 0 to 1."""
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"pixels must be ({', '.join(self.image_axes)}), got {tuple(image.shape)}")
        return PixelBatch(image[None])
