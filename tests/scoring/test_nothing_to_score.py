"""No image, or no caption, is refused by name, whatever the head."""

from __future__ import annotations

import pytest
import torch

from xmodal.heads import BFAN, CHAN, SCAN, VSRN, Cosine
from xmodal.scoring import score_all, score_pairs, shortlist


@pytest.mark.bad_input
@pytest.mark.parametrize("head", [SCAN(), BFAN(), CHAN(), Cosine(), VSRN(dim=8)], ids=str)
@pytest.mark.parametrize(("images", "captions", "missing"), [(0, 3, "image"), (4, 0, "caption")])
def test_nothing_to_score(head, images, captions, missing):
    sides = torch.ones(images, 5, 8), torch.ones(captions, 7, 8)
    for score in (score_all, lambda *given: score_pairs(*given, None, None, [], []), shortlist):
        with pytest.raises(ValueError, match=f"there must be at least one {missing}"):
            score(head, *sides)
