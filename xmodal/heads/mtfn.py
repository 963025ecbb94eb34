"""MTFN: multi-modal tensor fusion (Wang et al., ACM MM 2019, arXiv 1908.04011)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from xmodal.heads.base import Head, check_inputs
from xmodal.heads.pooling import POOLERS, make_pooler
from xmodal.numerics import DropShare, Size, at_least_float32, check_count, check_share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from torch import Tensor


def fused_queries(
    images: Float[Tensor, "image hidden"],
    image_factors: Float[Tensor, "rank fused hidden"],
    image_offsets: Float[Tensor, "rank fused"],
    caption_factors: Float[Tensor, "rank fused hidden"],
    caption_offsets: Float[Tensor, "rank fused"],
    weight: Float[Tensor, " fused"],
    bias: Float[Tensor, ""],
) -> Float[Tensor, "image hidden_and_one"]:
    """What an image asks of a caption: the logit of a pair is its product with the caption's hidden vector and a 1.

    MTFN fuses hidden vectors x and y into m = sum_r (A_r x + a_r) o (B_r y + b_r) and its logit is w . m + b (eq. 3-6).
    That is affine in y: with x_r = w o (A_r x + a_r) it is (sum_r B_r^T x_r) . y + sum_r b_r . x_r + b, so that nothing
    is made of a pair but its score.

    Args:
        images: hidden vectors of the images, x.
        image_factors: A_r.
        image_offsets: a_r.
        caption_factors: B_r.
        caption_offsets: b_r.
        weight: w.
        bias: b.

    Example:
        >>> import torch
        >>> from xmodal.heads.mtfn import fused_queries
        >>> x, a, b, y = torch.randn(4, 8), torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.randn(8)
        >>> zero, weight = torch.zeros(3, 5), torch.randn(5)
        >>> queries = fused_queries(x, a, zero, b, zero, weight, torch.tensor(0.0))
        >>> fused = torch.stack([(a[r] @ x[0]) * (b[r] @ y) for r in range(3)]).sum(dim=0)
        >>> torch.allclose(queries[0] @ torch.cat([y, torch.ones(1)]), weight @ fused, atol=1e-4)
        True
    """
    weighted = (images @ image_factors.flatten(0, 1).T + image_offsets.flatten()) * weight.repeat(len(image_factors))
    constants = weighted @ caption_offsets.flatten()[:, None] + bias
    return torch.cat([weighted @ caption_factors.flatten(0, 1), constants], dim=1)


class MTFN(Head):
    """Fusion of one vector a side by a tensor of low rank (Wang et al., ACM MM 2019, sec. 3.2).

    Pooled regions and words pass dropout, a linear layer and tanh; two sets of `rank` linear layers fuse them into one
    vector, on which a linear layer and a sigmoid give the score (`fused_queries`). The layers start as torch's do, as
    in the released code (MTFN-RR, model.py: Core_Fusion), whose sides are the mean of the 2048 numbers of the regions
    and a skip-thought vector of 2400; here they are pooled from what the encoders give. The published re-ranking is a
    matter of score matrices, not of this head.

    Args:
        dim: dim of the joint space.
        hidden_dim: dim of the hidden vectors of both sides (1024 as published).
        fused_dim: dim of the fused vector (1024 as published).
        rank: of the tensor (20 as published).
        dropout: share of the pooled vectors that is dropped in training (0.25 as published).
        pooling: how regions become one vector, a name of `POOLERS` or its options (the mean as published).
        caption_pooling: how words become one vector (ours; published are skip-thoughts).

    Example:
        >>> import torch
        >>> from xmodal.heads import MTFN
        >>> head = MTFN(dim=64, hidden_dim=16, fused_dim=16, rank=3)
        >>> head(torch.randn(4, 36, 64), torch.randn(6, 12, 64)).shape
        torch.Size([4, 6])
    """

    parts: ClassVar[dict[str, Any]] = {"pooling": POOLERS, "caption_pooling": POOLERS}
    """The options that are parts themselves."""

    def __init__(
        self,
        dim: Size,
        hidden_dim: Size = 1024,
        fused_dim: Size = 1024,
        rank: Size = 20,
        dropout: DropShare = 0.25,
        pooling: str | Mapping[str, Any] = "mean",
        caption_pooling: str | Mapping[str, Any] = "mean",
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("hidden_dim", hidden_dim), ("fused_dim", fused_dim), ("rank", rank)):
            check_count(name, value)
        check_share("dropout", dropout)
        self.rank = rank
        self.image_pooler, self.caption_pooler = make_pooler(pooling, dim), make_pooler(caption_pooling, dim)
        self.dropout = nn.Dropout(dropout)
        self.image_hidden, self.caption_hidden = nn.Linear(dim, hidden_dim), nn.Linear(dim, hidden_dim)
        # One layer does the work of `rank` layers and starts as they would.
        self.image_factors = nn.Linear(hidden_dim, rank * fused_dim)
        self.caption_factors = nn.Linear(hidden_dim, rank * fused_dim)
        self.score = nn.Linear(fused_dim, 1)

    def embed_images(self, regions, region_mask=None):
        """What every image asks of captions: `(image, hidden_dim + 1)`, see `fused_queries`."""
        hidden = self._hidden(self.image_pooler(regions, region_mask), self.image_hidden)
        image, caption, shape = self.image_factors, self.caption_factors, (self.rank, self.score.in_features)
        return fused_queries(
            hidden,
            image.weight.unflatten(0, shape),
            image.bias.unflatten(0, shape),
            caption.weight.unflatten(0, shape),
            caption.bias.unflatten(0, shape),
            self.score.weight[0],
            self.score.bias[0],
        )

    def embed_captions(self, words, word_mask=None):
        """The hidden vector of every caption and a 1: `(caption, hidden_dim + 1)`."""
        hidden = self._hidden(self.caption_pooler(words, word_mask), self.caption_hidden)
        return nn.functional.pad(hidden, (0, 1), value=1.0)

    def compare(self, images, captions, region_mask=None, word_mask=None):
        """The sigmoid of all products."""
        return at_least_float32(images @ captions.T).sigmoid()

    def pairs(self, regions, words, region_mask=None, word_mask=None):  # noqa: D102
        check_inputs(regions, words, region_mask, word_mask, aligned=True)
        images, captions = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return at_least_float32(images * captions).sum(dim=1).sigmoid()

    def pair_bytes(self, image, caption):
        """A logit and its sigmoid."""
        return 8 * image.element_size()

    def extra_repr(self) -> str:  # noqa: D102
        return f"rank={self.rank}"

    def _hidden(self, pooled: Float[Tensor, "set dim"], layer: nn.Linear) -> Float[Tensor, "set hidden"]:
        return layer(self.dropout(pooled.to(layer.weight.dtype))).tanh()
