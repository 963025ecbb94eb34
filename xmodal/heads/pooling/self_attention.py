"""Self-attention pooling: the global vectors of SGRAF (Diao et al., AAAI 2021, arXiv 2101.01368, sec. 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from torch import nn

from xmodal.heads.base import xavier
from xmodal.heads.pooling.base import Pooler, mean_pool
from xmodal.numerics import DropShare, Size, check_count, check_share, normed_real

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

Norm = Literal["none", "channel", "slot"]


def self_attention_pool(
    items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"], logits: Float[Tensor, "set item"]
) -> Float[Tensor, "set dim"]:
    """The real items averaged with the softmax of their logits as weights.

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import self_attention_pool
        >>> items, real = torch.tensor([[[1.0], [3.0], [0.0]]]), torch.tensor([[True, True, False]])
        >>> self_attention_pool(items, real, torch.tensor([[2.0, 2.0, 9.0]]))
        tensor([[2.]])
    """
    weights = logits.masked_fill(~mask, float("-inf")).softmax(dim=1)
    return (weights[..., None] * items).sum(dim=1)


class SelfAttention(Pooler):
    """`self_attention_pool` where the mean of a set asks its items.

    The logit of an item v_i is w . (f(v_i) o g(mean)) + b with f and g a linear layer, batch norm where asked for,
    tanh and dropout each. The released code (SGRAF, model.py) has the batch norms in VisualSA and not in TextSA; for f
    it counts statistics over the slots of 36 regions in their order, not over channels.

    Args:
        dim: dim of the items.
        dropout: share of f and g that is dropped in training (0.4 as released).
        norm: `none`; `slot` for the released norm of images, which takes exactly `slots` real items in an order that
            matters; `channel` for a norm of every channel over real items (ours).
        slots: items of a set under the norm `slot`.

    Raises:
        ValueError: for an unknown norm and, when called, for sets that the norm `slot` does not take.

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import SelfAttention
        >>> SelfAttention(dim=256, norm="channel")(torch.randn(4, 36, 256)).shape
        torch.Size([4, 256])
    """

    def __init__(self, dim: Size, dropout: DropShare = 0.4, norm: Norm = "none", slots: Size = 36) -> None:
        super().__init__()
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}; got {norm!r}")
        check_count("dim", dim)
        check_count("slots", slots)
        check_share("dropout", dropout)
        self.norm: Norm = norm
        self.slots = slots
        self.local, self.whole = xavier(nn.Linear(dim, dim)), xavier(nn.Linear(dim, dim))
        self.logit = xavier(nn.Linear(dim, 1))
        self.local_norm = nn.Identity() if norm == "none" else nn.BatchNorm1d(slots if norm == "slot" else dim)
        self.whole_norm = nn.Identity() if norm == "none" else nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(dropout)

    def pool(self, items, mask):
        """Raises ValueError for sets that the norm `slot` does not take."""
        if self.norm == "slot" and not (mask.shape[1] == self.slots and bool(mask.all())):
            counts = mask.sum(dim=1)
            raise ValueError(
                f"norm='slot' takes exactly {self.slots} real items a set, got {int(counts.min())} to "
                f"{int(counts.max())}; use norm='channel', or set slots"
            )
        given = items.to(self.logit.weight.dtype)
        local = self.dropout(self._normed(self.local(given), mask).tanh())
        whole = self.dropout(self.whole_norm(self.whole(mean_pool(given, mask))).tanh())
        return self_attention_pool(items, mask, self.logit(local * whole[:, None])[..., 0].to(items.dtype))

    def _normed(
        self, local: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]
    ) -> Float[Tensor, "set item dim"]:
        if self.norm != "channel":
            return self.local_norm(local)
        return normed_real(self.local_norm, local, mask)
