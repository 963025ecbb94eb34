"""A device that somebody made the default is where new tensors of theirs go, not those of the engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xmodal.heads import CHAN, DPRNN, SCAN, Cosine
from xmodal.scoring import score_all, score_pairs


@pytest.mark.parametrize("head", [SCAN(), CHAN(), Cosine(), DPRNN(8).eval()], ids=repr)
def test_scores_are_those_without_it(head):
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(7, 5, 8, generator=generator), torch.randn(9, 4, 8, generator=generator)
    word_mask = torch.arange(4) < torch.tensor([4, 3, 2, 1, 4, 4, 4, 4, 2])[:, None]
    images, captions = np.array([1, 2, 6]), np.array([8, 0, 2])
    wanted = head(regions, words, None, word_mask).detach()
    with torch.device("meta"):
        scores = score_all(head, regions, words.numpy(), None, word_mask)
        pairs = score_pairs(head, regions, words, None, word_mask, images, captions)
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(pairs, wanted[images, captions], rtol=0, atol=1e-5)
