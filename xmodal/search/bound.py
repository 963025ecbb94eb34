"""The most that an attention score can be, given products that are known up to an error: what certifies a search.

Unit query q (a word, say), context items v_j (regions), S_j = <q, v_j>, attention weights b_j > 0 of any scale, for a
cosine ignores it. The similarity is R = sum_j b_j S_j / |sum_j b_j v_j|, and every aggregation grows with it. Known are
S' with |S_j - S'_j| <= e_j, where e_j is the length of what a compressed vector leaves out, and with it the weights:
b_j lies in [b'_j exp(-d_j), b'_j exp(d_j)], d_j from the error of the normalized product times the temperature.

For any unit vector p, |sum_j b_j v_j| >= sum_j b_j h_j with h_j = <p, v_j>; here p is the direction in which the
attended context is believed to be. So R <= max over the box of sum_j b_j (S'_j + e_j) / sum_j b_j h_j, a
linear-fractional program. Dinkelbach's steps (Management Science 13, 1967) find its maximum t; what they leave,
F(t) = max over the box of sum_j b_j (S'_j + e_j - t h_j), bounds the rest: R <= t + max(F, 0) / min sum_j b_j h_j.
Where that is negative, so are all sums above, and it is to be multiplied by the least cosine of p and sum_j b_j v_j.

Where nothing is known of the weights, any p will do that all of h are positive for: R <= max_j (S'_j + e_j) / h_j. A p
that is kept with the vectors makes this one product and one maximum, which is enough to exclude most items.

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
    """Products of contexts with queries, and how wrong they and what goes with them may be.

    Items come last: every sum then runs over an outer axis.
    """

    products: Float[Tensor, "context query item"]
    entry_error: Float[Tensor, "context query item"]
    """Of one product, at most."""
    column_error: Float[Tensor, "context item"]
    """Length of the errors of the products of one context item with all queries, at most."""
    gram: Float[Tensor, "#item context context"]
    gram_error: Float[Tensor, "#item"]
    """Of an entry of `gram`, at most."""
    query_norms: Float[Tensor, "query #item"]
    context_norms: Float[Tensor, "context #item"]
    cone: Float[Tensor, "context #item"]
    """Products of the context items with a direction that all are near to, at least; zero where there is none."""


def upper_bounds(how: CrossAttention, known: Estimate, *, steps: int = STEPS) -> Float[Tensor, " item"]:
    """The most that the scores of one direction can be, up to `MARGIN`.

    Args:
        how: how the head compares; of `both` directions one is meant, which the estimate says.
        known: what is known; all contexts and queries are real.
        steps: Dinkelbach's; fewer give a wider bound.

    Example:
        >>> import torch
        >>> from xmodal.heads import scan_scores
        >>> from xmodal.heads.comparison import CrossAttention
        >>> from xmodal.search.bound import Estimate, upper_bounds
        >>> unit = lambda *shape: torch.nn.functional.normalize(torch.randn(shape), dim=-1)
        >>> regions, words, exact = unit(5, 7, 16), unit(3, 16), torch.zeros(7, 5)
        >>> products, gram = (regions @ words.T).permute(1, 2, 0), regions @ regions.transpose(1, 2)
        >>> norms = torch.ones(7, 1), torch.zeros(7, 1)  # and no direction that all are near to
        >>> known = Estimate(products, exact[:, None], exact, gram, exact[0], torch.ones(3, 1), *norms)
        >>> scores = scan_scores(regions, words[None])[:, 0]
        >>> bool((upper_bounds(CrossAttention(), known) >= scores - 1e-4).all())
        True
    """
    weights, spread = _weights(how, known)
    towards = weights
    if how.focal is not None:
        real = torch.ones(1, len(weights), dtype=torch.bool)
        towards = refocus(weights[None], real, focal=how.focal)[0]
    reach, length = _reach(towards, known)
    products = known.products + known.entry_error
    factor = spread.exp()
    low, high = weights / factor, weights * factor
    norms = known.context_norms[:, None]
    if how.focal is not None:
        best = _dropping(products, reach, low, high, norms)
    else:
        best, together = _greatest_ratio(products, reach, low, high, weights, steps)
        # Of a negative ratio, that to a greater length is greater: cosine of the sum of all b_j v_j with p, at least.
        wide = (high * norms).sum(dim=0)
        change = wide - (weights * norms).sum(dim=0)
        inside = ((weights * reach).sum(dim=0) - change) / (length + change)
        best = torch.where(best < 0, best * torch.maximum(inside, together / wide).clamp(0, 1), best)
    best = torch.minimum(best, _greatest_in_cone(products, known.cone, known.context_norms))
    return aggregated(how, best / known.query_norms.clamp_min(EPSILON))


def aggregated(how: CrossAttention, cosines: Float[Tensor, "query item"]) -> Float[Tensor, " item"]:
    """The score of similarities that are at most these, and at most one.

    >>> from xmodal.heads.comparison import CrossAttention
    >>> aggregated(CrossAttention(aggregation="mean"), torch.tensor([[2.0], [-1.0]]))
    tensor([0.])
    """
    cosines = cosines.clamp(-1.0, 1.0)
    real = torch.ones(1, len(cosines), 1, dtype=torch.bool)
    return aggregate(cosines[None], real, aggregation=how.aggregation, lse_scale=how.lse_scale)[0]


def nearest_direction(gram: Float[Tensor, "item place place"], steps: int = 40) -> Float[Tensor, "item place"]:
    """Products of vectors with a unit vector of which the least is large: towards the point of their hull next to zero.

    Frank and Wolfe's method (Naval Research Logistics 3, 1956) on the weights of the point, by products alone.

    >>> nearest_direction(torch.eye(2)[None])
    tensor([[0.7071, 0.7071]])
    """
    weights = torch.full(gram.shape[:2], 1 / gram.shape[1])
    towards, each = gram.mean(dim=2), torch.arange(len(gram))
    for _ in range(steps):
        vertex = towards.argmin(dim=1)
        square = (weights * towards).sum(dim=1)
        gain = square - towards[each, vertex]
        length = square - 2 * towards[each, vertex] + gram[each, vertex, vertex]
        share = (gain / length.clamp_min(1e-12)).clamp(0, 1)[:, None]
        weights.mul_(1 - share)[each, vertex] += share[:, 0]
        towards = (1 - share) * towards + share * gram[each, vertex]
    # The products of the weights that came out, not those carried along, which gather rounding.
    towards = (gram @ weights[..., None])[..., 0]
    return towards / (weights * towards).sum(dim=1, keepdim=True).clamp_min(1e-12).sqrt()


def _weights(
    how: CrossAttention, known: Estimate
) -> tuple[Float[Tensor, "context query item"], Float[Tensor, "context query item"]]:
    """The weights as they seem, and how far their logarithms may be off."""
    logits, error = _normalized(how.normalization, known)
    return logits.mul(how.temperature).softmax(dim=0), error.mul(how.temperature).clamp_(max=WIDEST)


def _normalized(
    normalization: Normalization, known: Estimate
) -> tuple[Float[Tensor, "context query item"], Float[Tensor, "context query item"]]:
    """The normalized products (see `attention_weights`) and their errors."""
    products, error = known.products, known.entry_error
    if normalization == "softmax":
        share = products.softmax(dim=1)  # of numbers off by e, it is off by a factor of at most exp(2 e)
        return share, (share * (2 * error.amax(dim=1, keepdim=True)).expm1()).clamp(max=1.0)
    logits = F.leaky_relu(products, NEGATIVE_SLOPE) if normalization.startswith("clipped") else products
    column = known.column_error[:, None]
    if normalization.endswith("l2"):
        length = logits.square().sum(dim=1, keepdim=True).sqrt()
    elif normalization.endswith("l1"):
        length, column = logits.abs().sum(dim=1, keepdim=True), column * products.shape[1] ** 0.5
    else:
        return logits, error.expand_as(logits)
    logits = logits / (length + EPSILON)
    # A/n - A'/n' = (A - A')/n + A'/n' (n' - n)/n, with n >= n' - column; two numbers of size one differ by two at most
    least = 1 / (length - column).clamp_min(EPSILON)
    return logits, torch.addcmul(error * least, logits.abs(), column * least).clamp_(max=2.0)


def _reach(
    weights: Float[Tensor, "context query item"], known: Estimate
) -> tuple[Float[Tensor, "context query item"], Float[Tensor, "query item"]]:
    """h, no more than the product of every context item with the unit vector along their weighted sum; its length."""
    if len(known.gram) == 1:
        gathered = (known.gram[0] @ weights.flatten(1)).view_as(weights)
    else:
        gathered = (known.gram @ weights.permute(2, 0, 1).contiguous()).permute(1, 2, 0).contiguous()
    square = (weights * gathered).sum(dim=0)
    gathered -= known.gram_error
    # Divided by no less than the length where that makes h smaller, by no more where it is negative.
    longest = (square + known.gram_error).clamp_min(1e-12).rsqrt()
    shortest = (square - known.gram_error).clamp_min(1e-12).rsqrt()
    # Of a sum that may be zero nothing is known; no product with a unit vector is below minus the length.
    reach = torch.minimum(gathered * longest, gathered * shortest)
    reach.masked_fill_(square <= known.gram_error + 1e-9, -torch.inf)
    return torch.maximum(reach, -known.context_norms[:, None]), (square + known.gram_error).clamp_min(0).sqrt()


def _greatest_ratio(
    products: Float[Tensor, "context query item"],
    reach: Float[Tensor, "context query item"],
    low: Float[Tensor, "context query item"],
    high: Float[Tensor, "context query item"],
    middle: Float[Tensor, "context query item"],
    steps: int,
) -> tuple[Float[Tensor, "query item"], Float[Tensor, "query item"]]:
    """No less than the greatest sum_j b_j products_j / sum_j b_j reach_j with low <= b <= high; the least divisor."""
    ratio = (middle * products).sum(dim=0) / (middle * reach).sum(dim=0).clamp_min(1e-6)
    for _ in range(steps):
        weights = torch.where(products > ratio * reach, high, low)
        ratio = (weights * products).sum(dim=0) / (weights * reach).sum(dim=0).clamp_min(1e-6)
    left = torch.addcmul(products, ratio, reach, value=-1)
    rest = (torch.where(left > 0, high, low) * left).sum(dim=0).clamp_min(0)
    least = (torch.where(reach > 0, low, high) * reach).sum(dim=0)
    return torch.where(least > 0, ratio + rest / least.clamp_min(1e-30), torch.inf), least


def _greatest_in_cone(
    products: Float[Tensor, "context query item"],
    cone: Float[Tensor, "context #item"],
    norms: Float[Tensor, "context #item"],
) -> Float[Tensor, "query item"]:
    """The same whatever the weights are."""
    best = torch.where(cone[:, None] > 0, products / cone[:, None], torch.inf).amax(dim=0)
    return torch.where(best < 0, best * (cone / norms.clamp_min(1e-30)).amin(dim=0), best)


def _dropping(
    products: Float[Tensor, "context query item"],
    reach: Float[Tensor, "context query item"],
    low: Float[Tensor, "context query item"],
    high: Float[Tensor, "context query item"],
    norms: Float[Tensor, "context 1 #item"],
) -> Float[Tensor, "query item"]:
    """The same with 0 <= b <= high, and b = 0 for items that are below the mean weight whatever the errors are."""
    share = high / (high + low.sum(dim=0) - low)
    kept = share * len(products) >= 1 - 1e-4
    ratio = torch.where(reach > 0, products / reach.clamp_min(1e-6), torch.inf)
    best = ratio.masked_fill(~kept, -torch.inf).amax(dim=0)
    cosine = (reach / norms.clamp_min(1e-30)).masked_fill(~kept, 1.0).amin(dim=0).clamp(0, 1)
    return torch.where(best < 0, best * cosine, best)  # all products are negative: to the greater length |v_j|
