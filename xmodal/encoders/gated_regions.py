"""Region features with a gate on their places: the objects of DP-RNN (Chen and Luo, AAAI 2020, arXiv 2002.08510)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from xmodal.encoders.base import EncodedSet
from xmodal.encoders.regions import RegionProjection
from xmodal.numerics import normalize

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from xmodal.data.region_store import RegionBatch


class GatedRegions(RegionProjection):
    """Regions times what a gate makes of their boxes: (W f + b) o sigmoid(W_p q + b_p) (DP-RNN eq. 1).

    q are the width, the height and the center of a box as shares of the image's.

    Args:
        input_dim: dim of the stored features.
        dim: dim of the joint space.
        normalize: L2-normalize every region (ours; the paper does not say).

    Warns:
        UserWarning: the source knows no boxes; the regions then pass without a gate.

    Example:
        >>> import torch
        >>> from xmodal.data.region_store import RegionBatch
        >>> from xmodal.encoders.gated_regions import GatedRegions
        >>> encoder, real = GatedRegions(input_dim=2048, dim=64), torch.ones(2, 36, dtype=torch.bool)
        >>> encoder(RegionBatch(torch.randn(2, 36, 2048), real, torch.rand(2, 36, 4))).items.shape
        torch.Size([2, 36, 64])
    """

    def __init__(self, input_dim: int, dim: int, normalize: bool = True) -> None:
        super().__init__(input_dim, dim, normalize=False)
        self.gate = torch.nn.Linear(4, dim)
        self.normalize_gated = normalize

    def forward(self, batch: RegionBatch) -> EncodedSet:
        """Every region projected and gated; padding gives some value that the mask keeps out of every score."""
        regions = self.project(batch.regions)
        if batch.boxes is None:
            warnings.warn("these regions have no boxes: they pass without the gate on their places", stacklevel=2)
        else:
            regions = regions * self.gate(places(batch.boxes).to(self.gate.weight.dtype)).sigmoid()
        return EncodedSet(normalize(regions, floor=1e-8) if self.normalize_gated else regions, batch.region_mask)

    def example_batch(self, images: int, items: int, generator: torch.Generator) -> RegionBatch:
        """Images of one region to `items`, and where these are."""
        corners = torch.rand(images, items, 2, 2, generator=generator).sort(dim=2).values
        return super().example_batch(images, items, generator)._replace(boxes=corners.flatten(2))


def places(boxes: Float[Tensor, "image region 4"]) -> Float[Tensor, "image region 4"]:
    """Width, height and center of boxes that are given by their corners, x1 y1 x2 y2.

    Example:
        >>> import torch
        >>> from xmodal.encoders.gated_regions import places
        >>> places(torch.tensor([[[0.0, 0.25, 0.5, 1.0]]]))
        tensor([[[0.5000, 0.7500, 0.2500, 0.6250]]])
    """
    first, last = boxes.chunk(2, dim=-1)
    return torch.cat([last - first, (first + last) / 2], dim=-1)
