"""Regions that look at one another: the image side of CHAN beside a bi-GRU (Pan et al., CVPR 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from xmodal.encoders.base import EncodedSet
from xmodal.encoders.regions import RegionProjection
from xmodal.numerics import Size, normalize  # ranges are read at run time

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.data.region_store import RegionBatch


class AttendingRegions(RegionProjection):
    """Projected regions plus multi-head attention among them after a layer norm (CHAN, lib/modules.py: SelfAttention).

    Only real regions are attended to; in the released code the zeros that fill an image up in training are too.

    Args:
        input_dim: dim of the stored features.
        dim: dim of the joint space.
        heads: of the attention; they share `dim` (8 as published).
        normalize: L2-normalize every region.

    Raises:
        ValueError: `dim` is no multiple of the number of heads.

    Example:
        >>> import torch
        >>> from xmodal.data.region_store import RegionBatch
        >>> from xmodal.encoders.attending_regions import AttendingRegions
        >>> encoder, real = AttendingRegions(input_dim=2048, dim=64), torch.ones(2, 36, dtype=torch.bool)
        >>> encoder(RegionBatch(torch.randn(2, 36, 2048), real)).items.shape
        torch.Size([2, 36, 64])
    """

    def __init__(self, input_dim: Size, dim: Size, heads: Size = 8, normalize: bool = True) -> None:
        super().__init__(input_dim, dim, normalize=False)
        if dim % heads:
            raise ValueError(f"dim is {dim} and heads {heads}; wanted a dim that so many heads can share")
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.normalize_attended = normalize

    def forward(self, batch: RegionBatch) -> EncodedSet:
        """Every region; padding gives some value that the mask keeps out of every score."""
        regions, mask = self.project(batch.regions).masked_fill(~batch.region_mask[..., None], 0.0), batch.region_mask
        regions = regions + self._attend(self.norm(regions), mask)
        return EncodedSet(normalize(regions, floor=1e-8) if self.normalize_attended else regions, mask)

    def _attend(
        self, regions: Float[Tensor, "image region dim"], mask: Bool[Tensor, "image region"]
    ) -> Float[Tensor, "image region dim"]:
        """What `self.attention` does, as fast for so few regions; a fused kernel would have no second derivative."""
        attention = self.attention
        joined = nn.functional.linear(regions, attention.in_proj_weight, attention.in_proj_bias)
        queries, keys, values = joined.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (queries * attention.head_dim**-0.5) @ keys.transpose(2, 3)
        weights = logits.masked_fill(~mask[:, None, None], float("-inf")).softmax(dim=-1)
        return attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
