"""What bits leave out is never more than they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.search.quantize import Quantizer, rounded_up, unpack_scan


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 70), st.sampled_from([1e-3, 1.0, 50.0]))
def test_products_are_wrong_by_no_more_than_the_length_of_what_is_left_out(seed, rows, dim, scale):
    generator = torch.Generator().manual_seed(seed)
    vectors = scale * torch.randn(rows, dim, generator=generator) * torch.linspace(1, 0.01, dim)
    vectors[0] = 0
    quantizer = Quantizer.fit(vectors, lead=16)
    codes = quantizer.encode(vectors)
    query = torch.randn(dim, generator=generator, dtype=torch.float64)
    exact = vectors.double() @ query
    believed = quantizer.decode(codes.lead, codes.rest, codes.steps).double() @ (query @ quantizer.basis.double())
    allowed = torch.from_numpy(codes.errors.astype(np.float64)) * query.norm()
    assert bool(((exact - believed).abs() <= allowed + 1e-12).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([5, 16, 17, 80, 81, 100]), st.sampled_from([1e-3, 1.0, 50.0]))
def test_what_follows_is_no_longer_than_said_and_little_shorter(seed, dim, scale):
    vectors = scale * torch.randn(9, dim, generator=torch.Generator().manual_seed(seed)) * torch.linspace(1, 0.01, dim)
    quantizer = Quantizer.fit(vectors, lead=16)
    rotated, tails = vectors.double() @ quantizer.basis.double(), quantizer.encode(vectors).tails
    for column, start in enumerate((16, 80)):
        share = rotated[:, start:].norm(dim=1) / vectors.double().norm(dim=1)
        said = torch.from_numpy(tails[:, column].astype(np.float64)) / 255
        assert bool((share <= said).all())
        assert bool((said <= share + 1.1 / 255).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 70))
def test_rotation_keeps_products(seed, dim):
    vectors = torch.randn(9, dim, generator=torch.Generator().manual_seed(seed))
    rotated = Quantizer.fit(vectors).rotate(vectors)
    assert torch.allclose(rotated @ rotated.T, vectors @ vectors.T, atol=1e-4 * dim)


def test_four_bits_keep_a_tenth_of_a_normal_vectors_error():
    vectors = torch.nn.functional.normalize(torch.randn(500, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    quantizer = Quantizer.fit(vectors)
    codes = quantizer.encode(vectors, bits=4)
    error = (unpack_scan(codes.scan) - quantizer.rotate(vectors)[:, :64]).norm(dim=1).mean()
    assert 0.09 < float(error) < 0.12  # sqrt(0.01154), Max 1960
    assert codes.lead is None


def test_the_same_quantizer_comes_back():
    vectors = torch.randn(20, 12)
    quantizer = Quantizer.fit(vectors, lead=4)
    again = Quantizer.from_arrays(quantizer.arrays())
    assert all(np.array_equal(a, b) for a, b in zip(quantizer.encode(vectors), again.encode(vectors), strict=True))


def test_vectors_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="too long to be compressed"):
        rounded_up(torch.tensor([1e6]))
