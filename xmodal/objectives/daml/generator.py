"""The network that makes synthetic negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from xmodal.numerics import NotNegative, Size, check_count, check_number

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class HardNegativeGenerator(nn.Module):
    """An MLP from the features of anchor, positive and negative to those of a synthetic negative.

    Args:
        dim: length of a feature.
        layers: linear layers, the first from 3 * dim to dim, each followed by ReLU; 2 as released.
        batch_norm: before every ReLU. With three layers this is the generator of the GeDML library's DAML.
        final_relu: after the last layer too, as released; without it a synthetic negative may be negative somewhere,
            as features that do not come from a ReLU are.
        std: of the initial weights, normal around 0; 0.02 as released. Biases start at 0.

    Raises:
        ValueError: for fewer than one layer.

    Example:
        >>> import torch
        >>> from xmodal.objectives import HardNegativeGenerator
        >>> HardNegativeGenerator(dim=4)(*torch.ones(3, 5, 4)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self, dim: Size, layers: Size = 2, batch_norm: bool = False, final_relu: bool = True, std: NotNegative = 0.02
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("layers", layers)
        check_number("std", std, least=0)
        self.layers = nn.Sequential()
        for number in range(layers):
            linear = nn.Linear(dim if number else 3 * dim, dim)
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)
            self.layers.append(linear)
            if batch_norm:
                self.layers.append(nn.BatchNorm1d(dim))
            if number < layers - 1 or final_relu:
                self.layers.append(nn.ReLU())

    def forward(
        self,
        anchor: Float[Tensor, "triplet feature"],
        positive: Float[Tensor, "triplet feature"],
        negative: Float[Tensor, "triplet feature"],
    ) -> Float[Tensor, "triplet feature"]:
        """Features of a synthetic negative for every triplet."""
        return self.layers(torch.cat([anchor, positive, negative], dim=1))
