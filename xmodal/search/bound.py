"""The most that an attention score can be, given products that are known up to an error: what certifies a search.

Unit query q (a word, say), context items v_j (regions), S_j = <q, v_j>, attention weights b_j > 0 of any scale, for a
cosine ignores it. The similarity is R = sum_j b_j S_j / |sum_j b_j v_j|, and every aggregation grows with it. Known are
S' with |S_j - S'_j| <= e_j, where e_j is the length of what a compressed vector leaves out, and with it the weights:
b_j lies in [b'_j exp(-d_j), b'_j exp(d_j)], d_j from the error of the normalized product times the temperature.

For any unit vector p, |sum_j b_j v_j| >= sum_j b_j h_j with h_j = <p, v_j>; here p is the direction in which the
attended context is believed to be. So R <= max over the box of sum_j b_j (S'_j + e_j) / sum_j b_j h_j, a
linear-fractional program. Dinkelbach's steps (Management Science 13, 1967) find its maximum t; what they leave,
F(t) = max over the box of sum_j b_j (S'_j + e_j - t h_j), bounds the rest: R <= t + max(F, 0) / min sum_j b_j h_j.

Focal attention may drop an item altogether: then b_j is in [0, b'_j exp(d_j)] and the maximum is that of
(S'_j + e_j) / h_j over the items that may be kept. Either focal function keeps only items above the mean weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from xmodal.heads.attention import EPSILON, NEGATIVE_SLOPE, aggregate
from xmodal.heads.bfan import refocus

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from xmodal.heads.attention import Normalization
    from xmodal.heads.comparison import CrossAttention

STEPS = 6
"""Dinkelbach's; each about squares the error of the one before."""

WIDEST = 30.0
"""A logarithm of weights beyond which nothing is known of them; its exponential is finite in float32."""

MARGIN = 2e-5
"""How far float32 may be from what is meant, in bounds and scores of a query of similarity one."""


class Estimate(NamedTuple):
    """Products of contexts with queries, and how wrong they and what goes with them may be."""

    products: Float[Tensor, "item context query"]
    entry_error: Float[Tensor, "item context query"]
    """Of one product, at most."""
    column_error: Float[Tensor, "item context"]
    """Length of the errors of the products of one context item with all queries, at most."""
    gram: Float[Tensor, "#item context context"]
    gram_error: Float[Tensor, "#item"]
    """Of an entry of `gram`, at most."""
    query_norms: Float[Tensor, "#item query"]


def upper_bounds(how: CrossAttention, estimate: Estimate) -> Float[Tensor, " item"]:
    """The most that the scores of one direction can be, up to `MARGIN`.

    Args:
        how: how the head compares; of `both` directions one is meant, which the estimate says.
        estimate: what is known; all contexts and queries are real.

    Example:
        >>> import torch
        >>> from xmodal.heads import scan_scores
        >>> from xmodal.heads.comparison import CrossAttention
        >>> from xmodal.search.bound import Estimate, upper_bounds
        >>> unit = lambda *shape: torch.nn.functional.normalize(torch.randn(shape), dim=-1)
        >>> regions, words, exact = unit(5, 7, 16), unit(3, 16), torch.zeros(5, 7)
        >>> products, gram = regions @ words.T, regions @ regions.transpose(1, 2)
        >>> known = Estimate(products, exact[..., None], exact, gram, exact[:, 0], torch.ones(1, 3))
        >>> scores = scan_scores(regions, words[None])[:, 0]
        >>> bool((upper_bounds(CrossAttention(), known) >= scores - 1e-4).all())
        True
    """
    weights, spread = _weights(how, estimate)
    towards = weights
    if how.focal is not None:
        real = torch.ones(weights.shape[:2], dtype=torch.bool)
        towards = refocus(weights[..., None], real, focal=how.focal)[..., 0]
    reach = _reach(towards, estimate)
    products = estimate.products + estimate.entry_error
    low, high = weights * (-spread).exp(), weights * spread.exp()
    best = _dropping(products, reach, low, high) if how.focal else _greatest_ratio(products, reach, low, high)
    cosines = (best.clamp_min(0) / estimate.query_norms.clamp_min(EPSILON)).clamp(max=1.0)
    real = torch.ones_like(cosines, dtype=torch.bool)[..., None]
    return aggregate(cosines[..., None], real, aggregation=how.aggregation, lse_scale=how.lse_scale)[:, 0]


def _weights(
    how: CrossAttention, known: Estimate
) -> tuple[Float[Tensor, "item context query"], Float[Tensor, "item context query"]]:
    """The weights as they seem, and how far their logarithms may be off."""
    logits, error = _normalized(how.normalization, known)
    return (how.temperature * logits).softmax(dim=1), (how.temperature * error).clamp(max=WIDEST)


def _normalized(
    normalization: Normalization, known: Estimate
) -> tuple[Float[Tensor, "item context query"], Float[Tensor, "item context query"]]:
    """The normalized products (see `attention_weights`) and their errors."""
    products, error = known.products, known.entry_error
    if normalization == "softmax":
        share = products.softmax(dim=2)  # of numbers off by e, it is off by a factor of at most exp(2 e)
        return share, (share * (2 * error.amax(dim=2, keepdim=True)).expm1()).clamp(max=1.0)
    logits = F.leaky_relu(products, NEGATIVE_SLOPE) if normalization.startswith("clipped") else products
    column = known.column_error[:, :, None]
    if normalization.endswith("l2"):
        length = logits.square().sum(dim=2, keepdim=True).sqrt()
    elif normalization.endswith("l1"):
        length, column = logits.abs().sum(dim=2, keepdim=True), column * products.shape[2] ** 0.5
    else:
        return logits, error
    logits = logits / (length + EPSILON)
    # A/n - A'/n' = (A - A')/n + A'/n' (n' - n)/n, with n >= n' - column; two numbers of size one differ by two at most
    least = (length - column).clamp_min(0)
    return logits, ((error + logits.abs() * column) / least.clamp_min(EPSILON)).clamp(max=2.0)


def _reach(weights: Float[Tensor, "item context query"], known: Estimate) -> Float[Tensor, "item context query"]:
    """h: at least the product of every context item with the unit vector along the weights' sum of them."""
    gathered = known.gram @ weights
    square = (weights * gathered).sum(dim=1, keepdim=True)
    wrong = known.gram_error[:, None, None]
    gathered = gathered - wrong
    longest, shortest = (square + wrong).clamp_min(0).sqrt(), (square - wrong).clamp_min(0).sqrt()
    return gathered / torch.where(gathered > 0, longest, shortest).clamp_min(1e-6)


def _greatest_ratio(
    products: Float[Tensor, "item context query"],
    reach: Float[Tensor, "item context query"],
    low: Float[Tensor, "item context query"],
    high: Float[Tensor, "item context query"],
) -> Float[Tensor, "item query"]:
    """No less than the greatest sum_j b_j products_j / sum_j b_j reach_j with low <= b <= high, or than zero."""
    middle = (low * high).sqrt()
    ratio = (middle * products).sum(dim=1) / (middle * reach).sum(dim=1).clamp_min(1e-6)
    for _ in range(STEPS):
        weights = torch.where(products > ratio[:, None] * reach, high, low)
        ratio = (weights * products).sum(dim=1) / (weights * reach).sum(dim=1).clamp_min(1e-6)
    left = products - ratio[:, None] * reach
    rest = (torch.where(left > 0, high, low) * left).sum(dim=1).clamp_min(0)
    least = (torch.where(reach > 0, low, high) * reach).sum(dim=1)
    return torch.where(least > 0, ratio + rest / least.clamp_min(1e-30), torch.inf)


def _dropping(
    products: Float[Tensor, "item context query"],
    reach: Float[Tensor, "item context query"],
    low: Float[Tensor, "item context query"],
    high: Float[Tensor, "item context query"],
) -> Float[Tensor, "item query"]:
    """The same with 0 <= b <= high, and b = 0 for items that are below the mean weight whatever the errors are."""
    share = high / (high + low.sum(dim=1, keepdim=True) - low)
    kept = share * products.shape[1] >= 1 - 1e-4
    ratio = torch.where(reach > 0, products / reach.clamp_min(1e-6), torch.inf)
    return ratio.masked_fill(~kept, -torch.inf).amax(dim=1)
