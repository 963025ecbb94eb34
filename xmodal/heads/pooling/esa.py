"""ESA: external space attention aggregation (Zhu et al., TCSVT 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from xmodal.heads.base import xavier
from xmodal.heads.pooling.base import Pooler
from xmodal.numerics import DropShare, Size, check_count, check_share

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def esa_pool(
    items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"], logits: Float[Tensor, "set item dim"]
) -> Float[Tensor, "set dim"]:
    """Every channel of the real items averaged with weights of its own: the softmax of its logits over the items.

    Args:
        items: to be pooled; padding is zero.
        mask: True = real item.
        logits: of every channel of every item.

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import esa_pool
        >>> items, real = torch.tensor([[[1.0, 1.0], [3.0, 3.0]]]), torch.ones(1, 2, dtype=torch.bool)
        >>> esa_pool(items, real, torch.tensor([[[0.0, 9.0], [0.0, -9.0]]]))
        tensor([[2., 1.]])
    """
    weights = logits.masked_fill(~mask[..., None], float("-inf")).softmax(dim=1)
    return (weights * items).sum(dim=1)


class ESA(Pooler):
    """`esa_pool` with logits from a linear layer on the items.

    The layer starts as the released code's (ESA, ESA_BIGRU/lib/encoders.py, image side): Xavier, bias zero. The
    published training pools the regions of an image twice, each time without a random fifth of them: that is `drop`, in
    a batch with two views of every pair (`data.views`) under the objective `esa`.

    Args:
        dim: dim of the items.
        drop: share of the items of a set that is left out at random in training (0.2 for regions as published); a set
            that would lose all keeps all.

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import ESA
        >>> ESA(dim=256)(torch.randn(4, 36, 256)).shape
        torch.Size([4, 256])
    """

    def __init__(self, dim: Size, drop: DropShare = 0.0) -> None:
        super().__init__()
        check_count("dim", dim)
        check_share("drop", drop)
        self.drop = drop
        self.linear = xavier(nn.Linear(dim, dim))

    def pool(self, items, mask):  # noqa: D102
        if self.training and self.drop:
            kept = mask & (torch.rand(mask.shape, device=mask.device) >= self.drop)
            mask = torch.where(kept.any(dim=1, keepdim=True), kept, mask)
        logits = self.linear(items.to(self.linear.weight.dtype))
        return esa_pool(items, mask, logits.to(items.dtype))
