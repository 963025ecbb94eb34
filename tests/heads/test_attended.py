"""The gradient by hand is that of the operations, which any number of derivatives can be taken of."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from xmodal.heads import attention
from xmodal.heads.attended import STEEPEST, How, attended_cosines
from xmodal.heads.attention import NEGATIVE_SLOPE, attended_cosine, attention_weights
from xmodal.heads.bfan import refocus

SLOPES = {"clipped_l2": NEGATIVE_SLOPE, "l2": 1.0}


def tile(seed=0, contexts=3, places=4, words=5, queries=2, dim=6):
    """Products, Gram matrices, norms and masks of random sets in float64, some of their places padding."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    real = torch.arange(places) < torch.tensor([4, 1, 3])[:, None]
    query_real = torch.arange(words)[:, None] < torch.tensor([5, 2])
    items = draw(contexts, places, dim) * real[..., None]
    asked = draw(words, queries, dim) * query_real[..., None]
    products = torch.einsum("cpd,wqd->cpwq", items, asked)
    return products, items @ items.transpose(1, 2), asked.norm(dim=-1)[None], real, query_real[None]


def plain(products, gram, norms, mask, *, query_mask, normalization, temperature, focus):
    weights = attention_weights(products, mask, query_mask, normalization=normalization, temperature=temperature)
    weights = weights if focus is None else focus(weights, mask)
    return attended_cosine(products, weights, gram, norms)


CASES = [
    (normalization, temperature, focal)
    for normalization in SLOPES
    for temperature in (4.0, STEEPEST)
    for focal in (None, "equal", "prob")
]


def both(normalization, temperature, focal, query_mask):
    focus = None if focal is None else partial(refocus, focal=focal)
    options = {"normalization": normalization, "temperature": temperature, "focus": focus}
    by_operations = partial(plain, query_mask=query_mask, **options)
    how = How(SLOPES[normalization], temperature, attention.EPSILON, focal, focus, by_operations)
    return partial(attended_cosines, how=how), by_operations


@pytest.mark.parametrize(("normalization", "temperature", "focal"), CASES)
@pytest.mark.parametrize("degenerate", [False, True])
def test_values_and_gradients_are_those_of_the_operations(normalization, temperature, focal, degenerate):
    products, gram, norms, mask, query_mask = tile()
    if degenerate:  # a context item and a query of length zero
        products[0], gram[0] = 0.0, 0.0
        products[..., 0, 1], norms[:, 0, 1] = 0.0, 0.0
    inputs = [tensor.requires_grad_() for tensor in (products, gram, norms)]
    by_hand, by_operations = both(normalization, temperature, focal, query_mask)
    found, wanted = by_hand(*inputs, mask), by_operations(*inputs, mask)
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(by_hand(*inputs, mask), wanted)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    gradients = [torch.autograd.grad((cosines * weights).sum(), inputs) for cosines in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("normalization", SLOPES)
def test_second_derivatives_are_those_of_the_operations(normalization):
    products, gram, norms, mask, query_mask = tile()
    inputs = [tensor.requires_grad_() for tensor in (products, gram, norms)]
    seconds = []
    for compute in both(normalization, 9.0, None, query_mask):
        first = torch.autograd.grad(compute(*inputs, mask).square().sum(), inputs, create_graph=True)
        seconds.append(torch.autograd.grad(sum(each.square().sum() for each in first), inputs))
    for one, other in zip(*seconds, strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_asks_for_a_gradient_gets_one():
    products, gram, norms, mask, query_mask = tile()
    by_hand, _ = both("clipped_l2", 9.0, None, query_mask)
    by_hand(products.requires_grad_(), gram, norms, mask).sum().backward()
    assert products.grad.abs().sum() > 0
    assert gram.grad is norms.grad is None
