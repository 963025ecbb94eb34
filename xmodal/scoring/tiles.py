"""What a tile of products becomes: the Gram form of `xmodal.heads.attention` with every avoidable pass left out.

Scores are those of the heads; three facts make them cheaper here, where no gradient is needed:

- A cosine does not change when its attended context is scaled, so that the softmax over the context needs no
  denominator: `exp` of the logits is enough. BFAN's focal threshold is scale-free as well.
- Places of padding hold zero items. Their products are zero and so are their rows of the Gram matrix: whatever weight
  they get drops out of both sums of the cosine.
- Every pass writes into one of a few buffers that stay in the cache.

Tensors are laid out `(context_item, context, query, query_item)`, as in `xmodal.heads.attention`.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.heads import BFAN, SCAN
from xmodal.heads.attention import EPSILON, NEGATIVE_SLOPE, aggregate
from xmodal.scoring.packing import BOTH, CONTEXT, QUERY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from xmodal.heads import Head
    from xmodal.heads.attention import Aggregation, Direction, Normalization
    from xmodal.heads.bfan import Focal
    from xmodal.scoring.packing import Pack, Use

TINY = 1e-30
"""What a square is at least before a root or a quotient of it is taken."""

SAFE_EXPONENT = 20.0
"""Logits of at most this size are exponentiated as they are; the squared sums stay far from the ends of float32."""


class Scratch:
    """Buffers that are taken again and again for tiles of different shapes."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor | None:
        """The buffer of that name in the given shape; None for a compiler, which plans memory itself."""
        if torch.compiler.is_compiling():
            return None
        buffer, size = self._buffers.get((name, like.dtype)), prod(shape)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name, like.dtype] = like.new_empty(size)
        return buffer[:size].view(shape)


class FastPath(NamedTuple):
    """How a head scores a tile: how it uses the two sides, and (products, images, captions, scratch) -> scores."""

    images: Use
    captions: Use
    score: Callable[[Tensor, Pack, Pack, Scratch], Tensor]


def scan_path(head: SCAN) -> FastPath:
    """SCAN: words look at regions (t2i), or regions at words (i2t)."""
    options = {**head.attention_options, **head.aggregation_options}
    uses = (CONTEXT, QUERY) if options["direction"] == "t2i" else (QUERY, CONTEXT)
    return FastPath(*uses, partial(scan_tile, **options))


def bfan_path(head: BFAN) -> FastPath:
    """BFAN: both directions from one product."""
    return FastPath(BOTH, BOTH, partial(bfan_tile, **head.options))


FAST_PATHS: dict[type[Head], Callable[[Any], FastPath]] = {SCAN: scan_path, BFAN: bfan_path}
"""Heads with a fast path. Others compare through `Head.compare`, which for pooled heads is one product already."""


def multiply(images: Pack, captions: Pack, path: FastPath, scratch: Scratch) -> Float[Tensor, "row column"]:
    """The products of a tile, in at least float32 whatever they are multiplied in; the rows are a context's."""
    rows, columns = (images.rows, captions.rows) if path.images.context else (captions.rows, images.rows)
    products = torch.mm(rows, columns.T, out=scratch.take("products", (len(rows), len(columns)), rows))
    if products.dtype != images.norms.dtype:
        products = scratch.take("widened", products.shape, images.norms).copy_(products)  # type: ignore[union-attr]
    return products


def scan_tile(
    products: Float[Tensor, "row column"],
    images: Pack,
    captions: Pack,
    scratch: Scratch,
    *,
    direction: Direction,
    normalization: Normalization,
    aggregation: Aggregation,
    temperature: float,
    lse_scale: float,
) -> Float[Tensor, "image caption"]:
    """SCAN's scores of a tile."""
    contexts, queries = (images, captions) if direction == "t2i" else (captions, images)
    products = products.view(*contexts.mask.T.shape, *queries.mask.shape)
    weights = attention_weights(products, contexts, queries, scratch, normalization, temperature)
    cosines = attended_cosines(products, weights, contexts, queries, scratch)
    scores = aggregate(cosines, queries.mask[None], aggregation=aggregation, lse_scale=lse_scale)
    return scores if direction == "t2i" else scores.T


def bfan_tile(
    products: Float[Tensor, "row column"],
    images: Pack,
    captions: Pack,
    scratch: Scratch,
    *,
    focal: Focal,
    temperature: float,
) -> Float[Tensor, "image caption"]:
    """BFAN's scores of a tile: SCAN's mean cosines with focal weights, both directions added."""

    def attend(products: Tensor, contexts: Pack, queries: Pack) -> Tensor:
        products = products.view(*contexts.mask.shape, *queries.mask.shape).transpose(0, 1)
        weights = attention_weights(products, contexts, queries, scratch, "clipped_l2", temperature)
        weights = focus(weights, contexts, scratch, focal)
        cosines = attended_cosines(products, weights, contexts, queries, scratch)
        return aggregate(cosines, queries.mask[None], aggregation="mean", lse_scale=1.0)

    exchanged = scratch.take("exchanged", products.T.shape, products)
    exchanged = products.T.contiguous() if exchanged is None else exchanged.copy_(products.T)
    return attend(products, images, captions) + attend(exchanged, captions, images).T


def attention_weights(
    products: Float[Tensor, "context_item context query query_item"],
    contexts: Pack,
    queries: Pack,
    scratch: Scratch,
    normalization: Normalization,
    temperature: float,
) -> Float[Tensor, "context_item context query query_item"]:
    """Attention over the context, up to a factor a query. What padding gets is not zero and does not matter."""
    weights = scratch.take("weights", products.shape, products)
    spare = scratch.take("spare", products.shape, products)
    logits: Tensor = products
    if normalization.startswith("clipped"):
        # Twice as fast as leaky_relu into a fresh tensor; there is no public one that writes into a buffer.
        logits = torch.mul(products, NEGATIVE_SLOPE, out=weights)
        logits = torch.maximum(logits, products, out=weights)
    scale: Tensor | float = temperature
    if normalization == "softmax":
        logits = logits.masked_fill(~queries.mask[:, :], float("-inf")) if queries.padded else logits
        logits = torch.softmax(logits, dim=2, out=weights)
    elif normalization.endswith("l2"):
        # torch.linalg.vector_norm over an outer axis takes forty times as long as a product and a sum.
        norms = torch.mul(logits, logits, out=spare).sum(dim=2, keepdim=True).clamp_min_(TINY).sqrt_()
        scale = norms.add_(EPSILON).reciprocal_().mul_(temperature)
    elif normalization.endswith("l1"):
        norms = torch.abs(logits, out=spare).sum(dim=2, keepdim=True)
        scale = norms.add_(EPSILON).reciprocal_().mul_(temperature)
    logits = torch.mul(logits, scale, out=weights)
    if normalization in ("clipped", "none") or temperature > SAFE_EXPONENT:
        if contexts.padded:
            logits.masked_fill_(~contexts.mask.T[:, :, None, None], float("-inf"))
        logits -= logits.amax(dim=1, keepdim=True)
    return logits.exp_()


def focus(
    weights: Float[Tensor, "context_item context query query_item"], contexts: Pack, scratch: Scratch, focal: Focal
) -> Float[Tensor, "context_item context query query_item"]:
    """Drop the weights that BFAN's focal function does not keep; see `xmodal.heads.bfan.focal_mask`.

    F_i > 0 says that a weight is above a mean of the weights, plain (`equal`) or weighted by their roots (`prob`). A
    mean that no weight is above, as of equal weights, keeps the greatest.
    """
    if contexts.padded:
        weights = weights.mul_(contexts.mask.T[:, :, None, None])
    if focal == "equal":
        mean = weights.sum(dim=1, keepdim=True) / contexts.mask.sum(dim=0)[:, None, None, None]
    else:
        spare = scratch.take("spare", weights.shape, weights)
        confidence = torch.sqrt(weights, out=spare)
        total = confidence.sum(dim=1, keepdim=True)
        mean = torch.mul(confidence, weights, out=spare).sum(dim=1, keepdim=True).div_(total)
    threshold = torch.minimum(mean, weights.amax(dim=1, keepdim=True) * (1 - torch.finfo(weights.dtype).eps))
    spare = scratch.take("spare", weights.shape, weights)
    kept = weights > threshold if spare is None else torch.gt(weights, threshold, out=spare)
    return weights.mul_(kept)


def attended_cosines(
    products: Float[Tensor, "context_item context query query_item"],
    weights: Float[Tensor, "context_item context query query_item"],
    contexts: Pack,
    queries: Pack,
    scratch: Scratch,
) -> Float[Tensor, "context_item query query_item"]:
    """Cosine of every query with its attended context, which is never formed (see `xmodal.heads.attention`)."""
    spare = scratch.take("spare", products.shape, products)
    dots = torch.mul(weights, products, out=spare).sum(dim=1)
    flat = (len(contexts.sets), weights.shape[1], -1)
    assert contexts.gram is not None, "a context is packed with its Gram matrix"
    spread = torch.bmm(contexts.gram, weights.reshape(flat), out=None if spare is None else spare.view(flat))
    squares = spread.view(weights.shape).mul_(weights).sum(dim=1)
    cosines = dots.div_(queries.norms.clamp_min(EPSILON)).mul_(squares.clamp_min_(TINY).rsqrt_())
    # Rounding can leave a context that cancels itself without a length.
    return cosines.clamp_(-1.0, 1.0)
