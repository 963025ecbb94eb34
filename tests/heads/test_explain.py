"""What heads say about a score: shares against plain loops in float64, and their sum against the score itself."""

from __future__ import annotations

import math

import pytest
import torch
from batches import random_batch

from xmodal.heads import BFAN, CHAN, SCAN, VSRN, Cosine
from xmodal.heads.attention import query_shares

AGGREGATIONS = ["logsumexp", "mean", "max", "sum"]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_shares_of_scan_are_those_of_a_loop(direction, aggregation):
    head = SCAN(direction=direction, aggregation=aggregation, temperature=5.0, lse_scale=4.0)
    regions, words, region_mask, word_mask = random_batch(images=3, captions=3)
    (found,) = head.explain(regions, words, region_mask, word_mask)
    assert found.looking == ("words" if direction == "t2i" else "regions")
    scores = head.pairs(regions, words, region_mask, word_mask)
    torch.testing.assert_close(found.shares.sum(dim=1), scores)
    weights = found.attention.weights.double()
    for pair in range(3):
        image, caption = regions[pair][region_mask[pair]].double(), words[pair][word_mask[pair]].double()
        weight = weights[pair][word_mask[pair]][:, region_mask[pair]]
        queries, contexts = (caption, weight @ image) if direction == "t2i" else (image, weight.T @ caption)
        cosines = [float(q @ c / (q.norm() * c.norm())) for q, c in zip(queries, contexts, strict=True)]
        if aggregation == "mean":
            wanted = [cosine / len(cosines) for cosine in cosines]
        elif aggregation == "sum":
            wanted = cosines
        elif aggregation == "max":
            wanted = [cosine if place == cosines.index(max(cosines)) else 0.0 for place, cosine in enumerate(cosines)]
        else:
            parts = [math.exp(4.0 * cosine) for cosine in cosines]
            wanted = [part / sum(parts) * math.log(sum(parts)) / 4.0 for part in parts]
        mask = word_mask[pair] if direction == "t2i" else region_mask[pair]
        torch.testing.assert_close(
            found.shares[pair][mask], torch.tensor(wanted, dtype=torch.float64), atol=1e-10, rtol=0
        )
        assert not found.shares[pair][~mask].any(), "padding adds nothing"


@pytest.mark.parametrize("focal", ["prob", "equal"])
def test_both_directions_of_bfan_add_up(focal):
    head, batch = BFAN(focal=focal), random_batch(images=3, captions=3)
    by_words, by_regions = head.explain(*batch)
    assert (by_words.looking, by_regions.looking) == ("words", "regions")
    torch.testing.assert_close(by_words.shares.sum(dim=1) + by_regions.shares.sum(dim=1), head.pairs(*batch))
    for found, direction in ((by_words, "t2i"), (by_regions, "i2t")):
        wanted = head.attention(*batch, direction=direction)
        assert torch.equal(found.attention.weights, wanted.weights)
        assert torch.equal(found.attention.focal, wanted.focal)


@pytest.mark.parametrize(
    ("head", "looking"), [(VSRN(dim=8, layers=1).eval(), "caption"), (Cosine(), "caption"), (CHAN(), "words")]
)
def test_other_heads_say_what_they_can(head, looking):
    regions, words = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
    with torch.no_grad():
        (found,) = head.explain(regions, words)
        assert torch.equal(found.attention.weights, head.attention(regions, words).weights)
    assert found.looking == looking
    assert found.shares is None


def test_a_subclass_that_compares_in_another_way_claims_no_shares():
    class Doubled(SCAN):
        def compare(self, images, captions, region_mask=None, word_mask=None):
            return 2 * super().compare(images, captions, region_mask, word_mask)

    (found,) = Doubled(direction="i2t").explain(torch.randn(2, 4, 8), torch.randn(2, 3, 8))
    assert (found.looking, found.shares) == ("regions", None)


@pytest.mark.parametrize("lse_scale", [0.1, 6.0])
def test_the_share_of_a_logsumexp_is_the_derivative_times_the_score(lse_scale):
    similarities = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    score = (similarities * lse_scale).logsumexp(dim=1) / lse_scale
    (slope,) = torch.autograd.grad(score.sum(), similarities)
    everything = torch.ones(1, 5, 1, dtype=torch.bool)
    found = query_shares(similarities, everything, aggregation="logsumexp", lse_scale=lse_scale)
    torch.testing.assert_close(found, slope * score[:, None])
