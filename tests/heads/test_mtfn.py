"""MTFN against plain loops over one image and one caption, fused rank by rank."""

from __future__ import annotations

import pytest
import torch
from batches import DIM, batches, check_against, learned
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.heads import MTFN
from xmodal.scoring.allocations import measured

SMALL = {"hidden_dim": 5, "fused_dim": 4, "rank": 3}


def slow_mtfn(head):
    def score(regions, words):
        hidden = []
        for items, layer in ((regions, head.image_hidden), (words, head.caption_hidden)):
            hidden.append((layer.weight @ (sum(items) / len(items)) + layer.bias).tanh())
        fused, size = 0.0, head.score.in_features
        for rank in range(head.rank):
            rows = slice(rank * size, (rank + 1) * size)
            image, caption = (
                layer.weight[rows] @ vector + layer.bias[rows]
                for layer, vector in zip((head.image_factors, head.caption_factors), hidden, strict=True)
            )
            fused = fused + image * caption
        return (head.score.weight[0] @ fused + head.score.bias[0]).sigmoid()

    return score


@settings(max_examples=25)
@given(batch=batches(dim=DIM), seed=st.integers(0, 99), rank=st.integers(1, 4))
def test_equals_the_plain_loop(batch, seed, rank):
    head = learned(MTFN(DIM, hidden_dim=5, fused_dim=4, rank=rank), seed)
    check_against(slow_mtfn(head), head, batch)


def test_nothing_is_made_of_a_pair_but_its_score():
    head = learned(MTFN(DIM, **SMALL))
    images, captions = head.embed_images(torch.randn(300, 4, DIM)), head.embed_captions(torch.randn(200, 3, DIM))
    assert images.shape == (300, 6)
    with torch.no_grad():
        _, peak = measured(head.compare, images, captions)
    assert peak <= 2 * 300 * 200 * 8


def test_dropout_acts_in_training_only():
    head, regions = MTFN(DIM, **SMALL, dropout=0.5), torch.randn(3, 4, DIM)
    assert not torch.equal(head.train().embed_images(regions), head.embed_images(regions))
    assert torch.equal(head.eval().embed_images(regions), head.embed_images(regions))


def test_any_pooler_serves_either_side():
    head = MTFN(DIM, **SMALL, pooling={"name": "gpo"}, caption_pooling="esa")
    assert [type(pooler).__name__ for pooler in (head.image_pooler, head.caption_pooler)] == ["GPO", "ESA"]


@pytest.mark.bad_input
def test_bad_input_is_named():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        MTFN(8, rank=0)
    with pytest.raises(ValueError, match="as many images as captions, got 2 and 3"):
        MTFN(8, **SMALL).pairs(torch.ones(2, 3, 8), torch.ones(3, 3, 8))
