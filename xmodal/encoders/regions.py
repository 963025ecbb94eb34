"""Projection of precomputed region features into the joint space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from xmodal.data.region_store import RegionBatch
from xmodal.encoders.base import EncodedSet, ImageEncoder, check_dropout
from xmodal.numerics import DropShare, NotNegative, Size, normalize  # ranges are read at run time
from xmodal.products import Linear

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class RegionProjection(ImageEncoder):
    """One linear layer on every region, L2-normalized (SCAN's image encoder, Lee et al. 2018, sec. 3.2).

    Args:
        input_dim: dim of the stored features (2048 for bottom-up attention).
        dim: dim of the joint space.
        normalize: L2-normalize every projected region (SCAN, BFAN); False leaves that to the head (VSRN).
        weight_norm: reparametrize the weight as direction and one overall length, as the released
            `EncoderImageWeightNormPrecomp` does.
        input_dropout: share of the values of the features that is dropped in training.
        dropout: share of the values of the projected regions that is dropped in training, before the normalization.
        slope: of a leaky ReLU on the projected regions (0.1 in ADAPT); 1 leaves them as they are.

    Raises:
        ValueError: for a share that is not at least 0 and below 1.

    Example:
        >>> import torch
        >>> from xmodal.data.region_store import RegionBatch
        >>> from xmodal.encoders.regions import RegionProjection
        >>> encoder, features = RegionProjection(input_dim=2048, dim=1024), torch.randn(2, 36, 2048)
        >>> items, mask = encoder(RegionBatch(features, torch.ones(2, 36, dtype=torch.bool)))
        >>> bool((items == encoder.project(features)).all()), items.shape
        (True, torch.Size([2, 36, 1024]))
    """

    def __init__(
        self,
        input_dim: Size,
        dim: Size,
        normalize: bool = True,
        weight_norm: bool = False,
        input_dropout: DropShare = 0.0,
        dropout: DropShare = 0.0,
        slope: NotNegative = 1.0,
    ) -> None:
        super().__init__()
        check_dropout(input_dropout=input_dropout, dropout=dropout)
        self.projection = Linear(input_dim, dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        if weight_norm:
            # Its annotation leaves out None, which its documentation gives for one norm over the whole weight.
            parametrizations.weight_norm(self.projection, dim=None)  # pyright: ignore[reportArgumentType]
        self.dim = dim
        self.normalize = normalize
        self.input_dropout, self.dropout, self.slope = input_dropout, dropout, slope

    def forward(self, batch: RegionBatch) -> EncodedSet:
        """Every region projected; padding gives some value that the mask keeps out of every score."""
        return EncodedSet(self.project(batch.regions), batch.region_mask)

    def example_batch(self, images: int, items: int, generator: torch.Generator) -> RegionBatch:
        """Images of one region to `items`."""
        features = torch.randn(images, items, self.projection.in_features, generator=generator)
        counts = torch.randint(1, items + 1, (images, 1), generator=generator)
        return RegionBatch(features, torch.arange(items) < counts)

    def project(self, region_features: Float[Tensor, "image region input_dim"]) -> Float[Tensor, "image region dim"]:
        """The projection alone, of a bare tensor of features.

        Raises:
            ValueError: the features have another dim than the encoder takes.
        """
        if region_features.shape[-1] != self.projection.in_features:
            raise ValueError(
                f"region features have dim {region_features.shape[-1]}, this encoder takes "
                f"{self.projection.in_features}: use the store that the model was trained on, or set input_dim"
            )
        features = F.dropout(region_features.to(self.projection.bias.dtype), self.input_dropout, self.training)
        regions = self.projection(features)
        regions = regions if self.slope == 1 else F.leaky_relu(regions, self.slope)
        regions = F.dropout(regions, self.dropout, self.training)
        # The published l2norm adds 1e-8 to the norm; taking the maximum instead differs below float32 resolution.
        return normalize(regions, floor=1e-8) if self.normalize else regions
