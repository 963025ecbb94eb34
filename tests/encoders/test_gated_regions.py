"""The gate on places against its equation, region by region."""

from __future__ import annotations

import pytest
import torch

from xmodal.data import RegionBatch
from xmodal.encoders.gated_regions import GatedRegions

REGIONS, REAL = torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)
BOXES = torch.tensor([0.1, 0.2, 0.4, 0.9]).expand(2, 3, 4) + 0.1 * torch.rand(2, 3, 4)


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_equation(normalize):
    encoder = GatedRegions(input_dim=6, dim=4, normalize=normalize)
    items, mask = encoder(RegionBatch(REGIONS, REAL, BOXES))
    assert mask is REAL
    for image in range(2):
        for region in range(3):
            x1, y1, x2, y2 = BOXES[image, region]
            place = torch.stack([x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2])
            expected = encoder.projection(REGIONS[image, region]) * encoder.gate(place).sigmoid()
            expected = expected / expected.norm() if normalize else expected
            torch.testing.assert_close(items[image, region], expected)


def test_without_boxes_there_is_no_gate_and_a_warning():
    encoder = GatedRegions(input_dim=6, dim=4, normalize=False)
    with pytest.warns(UserWarning, match="no boxes: they pass without the gate"):
        items, _ = encoder(RegionBatch(REGIONS, REAL))
    torch.testing.assert_close(items, encoder.projection(REGIONS))


@pytest.mark.bad_input
def test_features_of_another_dim_are_named():
    with pytest.raises(ValueError, match="region features have dim 6, this encoder takes 5"):
        GatedRegions(input_dim=5, dim=4)(RegionBatch(REGIONS, REAL, BOXES))
