"""What a pooler is, and the two without parameters: mean and maximum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from xmodal.heads.base import check_items
from xmodal.numerics import at_least_float32, full_mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Pooler(nn.Module):
    """Makes one vector of the real items of every set; not normalized, at least float32.

    A subclass gives `pool`, which takes padding as zeros. It must not depend on padding.

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import Pooler
        >>> class Sum(Pooler):
        ...     def pool(self, items, mask):
        ...         return items.sum(dim=1)
        >>> Sum()(torch.ones(1, 3, 2), torch.tensor([[True, True, False]]))
        tensor([[2., 2.]])
    """

    def forward(
        self, items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"] | None = None
    ) -> Float[Tensor, "set dim"]:
        """One vector a set. Without a mask all items are real.

        Raises:
            ValueError: for items or a mask of the wrong shape, or a set without a real item.
        """
        check_items(items, mask, "items", "mask", "set item dim")
        mask = full_mask(items, mask)
        return self.pool(at_least_float32(items).masked_fill(~mask[..., None], 0.0), mask)

    def pool(self, items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]) -> Float[Tensor, "set dim"]:
        """The vectors of sets whose padding is zero."""
        raise NotImplementedError(f"{type(self).__name__} has no pool: write the method that makes one vector of items")


def mean_pool(items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]) -> Float[Tensor, "set dim"]:
    """The mean of the real items.

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import mean_pool
        >>> mean_pool(torch.tensor([[[3.0], [1.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    return items.masked_fill(~mask[..., None], 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def max_pool(items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]) -> Float[Tensor, "set dim"]:
    """The elementwise maximum of the real items.

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import max_pool
        >>> max_pool(torch.tensor([[[3.0], [1.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[3.]])
    """
    return items.masked_fill(~mask[..., None], float("-inf")).amax(dim=1)


class Mean(Pooler):
    """`mean_pool` as a Module.

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import Mean
        >>> Mean()(torch.tensor([[[3.0], [1.0]]]))
        tensor([[2.]])
    """

    def pool(self, items, mask):  # noqa: D102
        return mean_pool(items, mask)


class Max(Pooler):
    """`max_pool` as a Module.

    Example:
        >>> import torch
        >>> from xmodal.heads.pooling import Max
        >>> Max()(torch.tensor([[[3.0], [1.0]]]))
        tensor([[3.]])
    """

    def pool(self, items, mask):  # noqa: D102
        return max_pool(items, mask)
