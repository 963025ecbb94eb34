"""The RDAN-style head against plain loops over one image and one caption, written from our own equations."""

from __future__ import annotations

import pytest
import torch
from batches import DIM, batches, check_against, learned, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pooling import softmax

from xmodal.heads import RDANStyle


def linear(layer, x):
    return layer.weight @ x if layer.bias is None else layer.weight @ x + layer.bias


def mean(vectors):
    return sum(vectors) / len(vectors)


def slow_relations(head, regions, words):
    """[region][word] relations after the CNN, the means and the norm."""
    first = [
        [
            (
                linear(head.region_sum, v)
                + linear(head.word_sum, e)
                + linear(head.region_factor, v) * linear(head.word_factor, e)
            ).relu()
            for e in words
        ]
        for v in regions
    ]
    local = []
    for row in first:
        local.append([])
        for j, relation in enumerate(row):
            total = linear(head.single, relation)
            for step in (-1, 0, 1):
                if 0 <= j + step < len(row):
                    total = total + head.neighbors.weight[:, :, step + 1] @ row[j + step]
            local[-1].append(total.relu())
    of_all = mean([mean(row) for row in local])
    result = []
    for i, row in enumerate(local):
        result.append([])
        for j, relation in enumerate(row):
            whole = linear(head.whole, torch.cat([mean(row), mean([other[j] for other in local]), of_all])).relu()
            x = first[i][j] + linear(head.update, torch.cat([relation, whole]))
            normed = (x - x.mean()) / (x.var(unbiased=False) + head.norm.eps).sqrt()
            result[-1].append(normed * head.norm.weight + head.norm.bias)
    return result


def slow_rdan(head):
    def agreement(asking, asked, logits):
        cosines = []
        for item, row in zip(asking, logits, strict=True):
            seen = sum(weight * other for weight, other in zip(softmax(row), asked, strict=True))
            cosines.append(item @ seen / (item.norm() * seen.norm()))
        return mean(cosines)

    def score(regions, words):
        relations = slow_relations(head, regions, words)
        products = [[head.temperature * (v @ e) for e in words] for v in regions]

        def logits(layer):
            rows = zip(products, relations, strict=True)
            return [[p + linear(layer, r)[0] for p, r in zip(*row, strict=True)] for row in rows]

        to_regions = [list(column) for column in zip(*logits(head.to_regions), strict=True)]
        return (agreement(words, regions, to_regions) + agreement(regions, words, logits(head.to_words))) / 2

    return score


@settings(max_examples=20)
@given(batch=batches(dim=DIM), seed=st.integers(0, 99), temperature=st.floats(0.5, 4.0))
def test_equals_the_plain_loop(batch, seed, temperature):
    head = learned(RDANStyle(DIM, relation_dim=3, temperature=temperature), seed)
    check_against(slow_rdan(head), head, batch)


def test_the_order_of_regions_does_not_matter():
    head, batch = learned(RDANStyle(DIM, relation_dim=3)), random_batch(dim=DIM)
    order = torch.randperm(batch.regions.shape[1])
    shuffled = batch._replace(regions=batch.regions[:, order], region_mask=batch.region_mask[:, order])
    torch.testing.assert_close(head(*shuffled), head(*batch))


def test_attention_is_that_of_words_over_regions():
    batch = random_batch(captions=3, dim=DIM)
    weights = learned(RDANStyle(DIM, relation_dim=3)).attention(*batch).weights
    torch.testing.assert_close(weights.sum(dim=2), batch.word_mask.double())
    assert not weights.masked_select(~batch.region_mask[:, None]).any()


@pytest.mark.bad_input
def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        RDANStyle(8, temperature=0.0)
    with pytest.raises(ValueError, match="as many images as captions, got 2 and 3"):
        RDANStyle(8).pairs(torch.ones(2, 3, 8), torch.ones(3, 3, 8))
