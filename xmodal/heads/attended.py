"""Attention weights and attended cosines in one, with the gradient by hand: what training spends beside its products.

By its operations, autograd keeps a dozen tensors of the size of all products and passes over each several times. By
hand three are kept, and each pass writes into what is there already. With the weights a = softmax(u), the gradient of
the cosine by a is b = f x + 2 h G a, where f and h are those by the dot product and by the squared length, and

    du = a (b - sum_s a_s b_s),    u = t l / n,    dl = t du / n - l sum_w (du l) t / (n^2 |l|).

f, h and what is summed over the context are numbers a query, t / n is one a context item and set of queries, so that no
sum but these two runs over a tensor of the size of all products.
"""

from __future__ import annotations

from math import e as euler
from math import log2
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from xmodal.heads.attended_program import Attending, Slopes, Sums, is_served
from xmodal.heads.ragged import Ragged
from xmodal.masks import is_full

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.heads.comparison import Focal

STEEPEST = 20.0
"""The largest temperature: exp of the logits, which are at most that large, stays far from the ends of float32."""


class How(NamedTuple):
    """What is fixed while scores are computed."""

    slope: float
    """Of the leaky ReLU before the normalization; 1 for none."""
    temperature: float
    epsilon: float
    focal: Focal | None
    """Name of the focal function, for the program."""
    focus: Callable[[Tensor, Tensor], Tensor] | None
    """What it does to weights."""
    plain: Callable[..., Tensor]
    """The same by operations with gradients of any order."""


def attended_cosines(
    products: Float[Tensor, "context_item context query query_item"] | Ragged,
    gram: Float[Tensor, "context_item context context"],
    norms: Float[Tensor, "#context_item query query_item"],
    mask: Bool[Tensor, "context_item context"],
    how: How,
) -> Float[Tensor, "context_item query query_item"]:
    """Cosine of every query with its attended context, for products normalized to length one over the queries.

    >>> import torch
    >>> products, gram = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1), torch.eye(2)[None]
    >>> how = How(0.1, 9.0, 1e-8, None, None, lambda *_: _)
    >>> attended_cosines(products, gram, torch.full((1, 1, 1), 2.0), torch.ones(1, 2, dtype=torch.bool), how)
    tensor([[[1.]]])
    """
    if isinstance(products, Ragged) and not _is_served(products, how):
        products = products.padded()
    values, counts = products if isinstance(products, Ragged) else (products, None)
    if torch.is_grad_enabled() and (values.requires_grad or gram.requires_grad or norms.requires_grad):
        return _Attended.apply(values, counts, gram, norms, mask, how)  # type: ignore[return-value]
    if _is_served(products, how):
        return _program(products, gram, mask, how).cosines(norms)[0]
    return _cosines(norms, _attend(values, gram, mask, how)[0], how)


class _Kept(NamedTuple):
    """Of the forward pass by torch, as large as the products."""

    weights: Tensor
    spread: Tensor


def _is_served(products: Tensor | Ragged, how: How) -> bool:
    values, queries = (
        (products.values, products.counts[0]) if isinstance(products, Ragged) else (products, products.shape[3])
    )
    return (how.focal is None) == (how.focus is None) and is_served(values, queries)


def _attend(products: Tensor, gram: Tensor, mask: Tensor, how: How) -> tuple[Sums, _Kept]:
    """What the cosines are made of."""
    tiny = torch.finfo(products.dtype).tiny
    logits = _clip(products, how)
    spare = torch.empty_like(logits)
    lengths = torch.mul(logits, logits, out=spare).sum(dim=2, keepdim=True).clamp_min_(tiny).sqrt_()
    scales = (lengths + how.epsilon).reciprocal_().mul_(how.temperature * log2(euler))
    weights = logits.mul_(scales.masked_fill_(lengths**2 <= tiny, 0.0)).exp2_()
    if not is_full(mask):
        weights.masked_fill_(~mask[:, :, None, None], 0.0)
    if how.focus is not None:
        weights = how.focus(weights, mask)
    totals = weights.sum(dim=1)
    inverse = totals.reciprocal()
    dots = torch.mul(weights, products, out=spare).sum(dim=1).mul_(inverse)
    spread = (gram @ weights.flatten(2)).view_as(weights)
    squares = torch.mul(weights, spread, out=spare).sum(dim=1).mul_(inverse).mul_(inverse)
    return Sums(totals, dots, squares, lengths.squeeze(2)), _Kept(weights, spread)


def _program(products: Tensor | Ragged, gram: Tensor, mask: Tensor, how: How) -> Attending:
    options = {"slope": how.slope, "temperature": how.temperature, "epsilon": how.epsilon, "focal": how.focal}
    return Attending(products, gram, mask, **options)


def _cosines(norms: Tensor, sums: Sums, how: How) -> Float[Tensor, "context_item query query_item"]:
    both = norms * sums.squares.clamp_min(torch.finfo(norms.dtype).tiny).sqrt_()
    return (sums.dots / both.clamp_min(how.epsilon)).masked_fill_(both < how.epsilon**2, 0.0)


def _clip(products: Tensor, how: How) -> Tensor:
    """A fresh tensor of the clipped products."""
    return F.leaky_relu(products, how.slope) if how.slope != 1 else products.clone()


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, counts: list[int] | None, gram: Tensor, norms: Tensor, mask: Tensor, how: How
    ) -> Tensor:
        products = values if counts is None else Ragged(values, counts)
        if _is_served(products, how):
            # By the program nothing is kept that is as large as the products.
            cosines, sums = _program(products, gram, mask, how).cosines(norms, with_sums=True)
            assert sums is not None, "asked for"
            kept: tuple[Tensor, ...] = ()
        else:
            sums, kept = _attend(values, gram, mask, how)
            cosines = _cosines(norms, sums, how)
        ctx.save_for_backward(values, gram, norms, mask, *sums, *kept)
        ctx.counts, ctx.how = counts, how
        return cosines

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, gram, norms, mask, *saved = ctx.saved_tensors
        products = values if ctx.counts is None else Ragged(values, ctx.counts)
        if torch.is_grad_enabled():  # somebody wants the gradient of a gradient
            inputs = (values, gram, norms)
            needed = [tensor for tensor in inputs if tensor.requires_grad]
            dense = products.padded() if isinstance(products, Ragged) else products
            found = iter(
                torch.autograd.grad(ctx.how.plain(dense, gram, norms, mask), needed, gradient, create_graph=True)
            )
            first, *others = (next(found) if tensor.requires_grad else None for tensor in inputs)
            return first, None, *others, None, None
        sums, kept = Sums(*saved[:4]), _Kept(*saved[4:]) if saved[4:] else None
        slopes, for_norms = _slopes(gradient, norms, sums, ctx.how)
        _, _, of_gram, of_norms, *_ = ctx.needs_input_grad
        if kept is None:
            change, for_gram = _program(products, gram, mask, ctx.how).gradient(sums.lengths, slopes, of_gram=of_gram)
        else:
            change, for_gram = _gradient(values, kept, sums.lengths, slopes, ctx.how, of_gram=of_gram)
        return change, None, for_gram, for_norms if of_norms else None, None, None


def _slopes(gradient: Tensor, norms: Tensor, sums: Sums, how: How) -> tuple[Slopes, Tensor]:
    """What the gradient is by the sums, and that of the norms of the queries."""
    tiny = torch.finfo(norms.dtype).tiny
    context_norms = sums.squares.clamp_min(tiny).sqrt_()
    both = norms * context_norms
    gradient = gradient.masked_fill(both < how.epsilon**2, 0.0)
    by_dot = gradient / both.clamp_min(how.epsilon)
    by_both = (by_dot * sums.dots / both.clamp_min(how.epsilon)).neg_().masked_fill_(both < how.epsilon, 0.0)
    for_norms = (by_both * context_norms).sum_to_size(norms.shape)
    by_square = (by_both * norms / context_norms).mul_(0.5).masked_fill_(sums.squares < tiny, 0.0)
    mean = by_dot * sums.dots + 2 * by_square * sums.squares
    inverse = sums.totals.reciprocal()
    return Slopes(by_dot * inverse, by_square * inverse * inverse, mean * inverse), for_norms


def _gradient(
    products: Tensor, kept: _Kept, lengths: Tensor, slopes: Slopes, how: How, *, of_gram: bool
) -> tuple[Tensor, Tensor | None]:
    """Of the products, and if it is asked for of the Gram matrices."""
    weights, lengths = kept.weights, lengths[:, :, None]
    change = products * slopes.by_dot[:, None]
    change.addcmul_(kept.spread, (2 * slopes.by_square)[:, None]).sub_(slopes.mean[:, None]).mul_(weights)
    logits = _clip(products, how)
    spare = torch.empty_like(logits)
    tiny = torch.finfo(products.dtype).tiny
    has_none = lengths**2 <= tiny  # a direction
    scale = (how.temperature / (lengths + how.epsilon)).masked_fill_(has_none, 0.0)
    pull = torch.mul(change, logits, out=spare).sum(dim=2, keepdim=True)
    pull = pull.mul_(scale).div_((lengths + how.epsilon) * lengths).masked_fill_(has_none, 0.0)
    change.mul_(scale).addcmul_(logits, pull, value=-1)
    if how.slope != 1:
        change = torch.ops.aten.leaky_relu_backward(change, products, how.slope, False)
    change.addcmul_(weights, slopes.by_dot[:, None])
    if not of_gram:
        return change, None
    scaled = torch.mul(weights, slopes.by_square[:, None], out=spare)
    return change, scaled.flatten(2) @ weights.flatten(2).transpose(1, 2)
