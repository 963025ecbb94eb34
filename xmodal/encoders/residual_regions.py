"""A projection and a small network beside it: the regions of VSE-infinity and ESA (Chen et al., CVPR 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from xmodal.encoders.base import EncodedSet
from xmodal.encoders.regions import RegionProjection
from xmodal.numerics import Size, normalize, normed_real  # ranges are read at run time
from xmodal.products import Linear

if TYPE_CHECKING:
    from xmodal.data.region_store import RegionBatch


class ResidualRegions(RegionProjection):
    """W f + b + MLP(f), where the network has one hidden layer with batch norm and ReLU (vse_infty, lib/encoders.py).

    In training the batch norm counts real regions; in the released code the zeros that fill an image up count too.

    Args:
        input_dim: dim of the stored features.
        dim: dim of the joint space.
        hidden_dim: of the network; half of `dim` where it is left out, as published.
        normalize: L2-normalize every region; VSE-infinity and ESA leave that to their heads.

    Example:
        >>> import torch
        >>> from xmodal.data.region_store import RegionBatch
        >>> from xmodal.encoders.residual_regions import ResidualRegions
        >>> encoder, real = ResidualRegions(input_dim=2048, dim=64), torch.ones(2, 36, dtype=torch.bool)
        >>> encoder(RegionBatch(torch.randn(2, 36, 2048), real)).items.shape
        torch.Size([2, 36, 64])
    """

    def __init__(self, input_dim: Size, dim: Size, hidden_dim: Size | None = None, normalize: bool = False) -> None:
        super().__init__(input_dim, dim, normalize=False)
        hidden_dim = max(1, dim // 2) if hidden_dim is None else hidden_dim
        self.hidden, self.output = Linear(input_dim, hidden_dim), Linear(hidden_dim, dim)
        self.norm = nn.BatchNorm1d(hidden_dim)
        self.normalize_sum = normalize

    def forward(self, batch: RegionBatch) -> EncodedSet:
        """Every real region; padding comes out as zero."""
        projected, mask = self.project(batch.regions), batch.region_mask
        hidden = normed_real(self.norm, self.hidden(batch.regions.to(projected.dtype)), mask)
        regions = projected + self.output(hidden.relu())
        if self.normalize_sum:
            regions = normalize(regions, floor=1e-8)
        return EncodedSet(regions.masked_fill(~mask[..., None], 0.0), mask)
