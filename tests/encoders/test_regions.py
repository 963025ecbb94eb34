"""The projection of region features against its formula."""

from __future__ import annotations

import pytest
import torch

from xmodal.data import RegionBatch
from xmodal.encoders.regions import RegionProjection


@pytest.mark.parametrize("weight_norm", [False, True])
def test_projection_is_linear_then_l2(weight_norm):
    torch.manual_seed(0)
    encoder = RegionProjection(5, 7, weight_norm=weight_norm)
    features = torch.randn(2, 3, 5)
    plain = features @ encoder.projection.weight.T + encoder.projection.bias
    torch.testing.assert_close(encoder.project(features), plain / plain.norm(dim=-1, keepdim=True))
    bare = RegionProjection(5, 7, normalize=False)
    torch.testing.assert_close(bare.project(features), features @ bare.projection.weight.T)


def test_a_batch_is_projected_and_keeps_its_mask():
    encoder, features = RegionProjection(5, 7), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    items, item_mask = encoder(RegionBatch(features, mask))
    assert torch.equal(items, encoder.project(features))
    assert item_mask is mask


def test_initialization_is_xavier_with_zero_bias():
    encoder = RegionProjection(2048, 1024)
    bound = (6 / (2048 + 1024)) ** 0.5
    assert encoder.projection.weight.abs().max() <= bound
    assert encoder.projection.weight.abs().max() > 0.99 * bound
    assert not encoder.projection.bias.any()


def test_weight_norm_has_one_length_for_the_whole_weight():
    encoder = RegionProjection(5, 7, weight_norm=True)
    length, direction = encoder.projection.parametrizations.weight.parameters()
    assert length.numel() == 1
    torch.testing.assert_close(encoder.projection.weight, length * direction / direction.norm())
    before = encoder.projection.weight.detach().clone()
    with torch.no_grad():
        length.mul_(2)
    torch.testing.assert_close(encoder.projection.weight, 2 * before)


def test_an_empty_region_adds_no_more_to_the_gradient_than_others():
    """In float64, region by region: d(g . u)/d bias = (g - u (u . g)) / |x|, and g where there is no direction."""
    torch.manual_seed(0)
    encoder, features, towards = RegionProjection(5, 7), torch.randn(2, 3, 5), torch.randn(2, 3, 7)
    features[1, 2] = 0
    (encoder.project(features) * towards).sum().backward()
    wanted = torch.zeros(7, dtype=torch.float64)
    for feature, toward in zip(features.double().flatten(0, 1), towards.double().flatten(0, 1), strict=True):
        projected = encoder.projection.weight.double() @ feature
        length = projected.norm()
        direction = projected / length if length else projected
        wanted += (toward - direction * (direction @ toward)) / (length if length else 1)
    torch.testing.assert_close(encoder.projection.bias.grad.double(), wanted, rtol=0, atol=1e-5)


def test_features_of_another_dim_are_refused():
    with pytest.raises(ValueError, match="have dim 4, this encoder takes 5"):
        RegionProjection(5, 7).project(torch.zeros(1, 2, 4))
