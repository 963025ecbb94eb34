"""Unit vectors: what they are and what their gradients are, one vector after the other in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from xmodal.numerics import normalize, unit_length


def slopes(vector, towards):
    """The gradient of `towards . v / |v|` by v; that of a zero vector is what it is of one with length one."""
    length = sum(x * x for x in vector) ** 0.5
    if length == 0:
        return list(towards)
    along = sum(x * y for x, y in zip(vector, towards, strict=True)) / length
    return [(y - x / length * along) / length for x, y in zip(vector, towards, strict=True)]


@pytest.mark.parametrize("function", [unit_length, normalize])
def test_a_zero_vector_stays_zero_and_has_no_larger_gradient_than_others(function):
    generator = torch.Generator().manual_seed(0)
    vectors, towards = (torch.randn(4, 3, generator=generator) for _ in range(2))
    vectors[1] = 0
    given = vectors.clone().requires_grad_()
    found = function(given)
    (found * towards).sum().backward()
    assert not found[1].any()
    wanted = [slopes(v, t) for v, t in zip(vectors.double().tolist(), towards.double().tolist(), strict=True)]
    torch.testing.assert_close(given.grad.double(), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_all_others_are_normalized_as_torch_does_to_the_last_bit(dtype):
    vectors = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    vectors[0] *= 1e-10  # shorter than the floor
    assert torch.equal(normalize(vectors, floor=1e-8), F.normalize(vectors, dim=-1, eps=1e-8))
    assert torch.equal(normalize(vectors, dim=0), F.normalize(vectors, dim=0))
