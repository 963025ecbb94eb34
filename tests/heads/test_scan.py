"""SCAN against the paper's equations, written out slowly, and against numbers printed by the released code."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import SCAN_VARIANTS, batches, random_batch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.heads import SCAN, SCAN_PUBLISHED, scan_attention, scan_pair_scores, scan_scores
from xmodal.objectives import hinge_ranking_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "s1_scan.npz")
OUR_NAMES = {
    **{"softmax": "softmax", "l2norm": "l2", "clipped_l2norm": "clipped_l2", "l1norm": "l1"},
    **{"clipped_l1norm": "clipped_l1", "clipped": "clipped", "no_norm": "none"},
    **{"LogSumExp": "logsumexp", "Mean": "mean", "Max": "max", "Sum": "sum"},
}
PUBLISHED_SCALES = {"t2i": {"temperature": 9.0, "lse_scale": 6.0}, "i2t": {"temperature": 4.0, "lse_scale": 5.0}}


def slow_weights(queries, contexts, normalization, temperature):
    """weights[q][s] for one image and one caption without padding, both float64 arrays (item, dim)."""
    products = [[float(q @ s) for s in contexts] for q in queries]
    if normalization.startswith("clipped"):
        products = [[x if x > 0 else 0.1 * x for x in row] for row in products]
    columns = [list(column) for column in zip(*products, strict=True)]  # a context item and all its queries
    if normalization == "softmax":
        columns = [[math.exp(x) / sum(math.exp(y) for y in column) for x in column] for column in columns]
    elif normalization.endswith("l2"):
        columns = [[x / (math.sqrt(sum(y * y for y in column)) + 1e-8) for x in column] for column in columns]
    elif normalization.endswith("l1"):
        columns = [[x / (sum(abs(y) for y in column) + 1e-8) for x in column] for column in columns]
    weights = []
    for logits in zip(*columns, strict=True):
        exponentials = [math.exp(temperature * x) for x in logits]
        weights.append([x / sum(exponentials) for x in exponentials])
    return weights


def slow_score(regions, words, direction, normalization, aggregation, temperature, lse_scale):
    """SCAN of one image and one caption, term by term."""
    queries, contexts = (words, regions) if direction == "t2i" else (regions, words)
    similarities = []
    for query, weights in zip(queries, slow_weights(queries, contexts, normalization, temperature), strict=True):
        attended = sum(weight * item for weight, item in zip(weights, contexts, strict=True))
        lengths = math.sqrt(query @ query) * math.sqrt(attended @ attended)
        similarities.append(float(query @ attended) / max(lengths, 1e-8))
    if aggregation == "logsumexp":
        return math.log(sum(math.exp(lse_scale * x) for x in similarities)) / lse_scale
    if aggregation == "mean":
        return sum(similarities) / len(similarities)
    return max(similarities) if aggregation == "max" else sum(similarities)


@pytest.mark.parametrize(("direction", "normalization", "aggregation"), SCAN_VARIANTS)
def test_equals_the_slow_oracle(direction, normalization, aggregation):
    batch = random_batch()
    options = (direction, normalization, aggregation, 7.0, 5.0)
    expected = [
        [
            slow_score(regions[real_regions].numpy(), words[real_words].numpy(), *options)
            for words, real_words in zip(batch.words, batch.word_mask, strict=True)
        ]
        for regions, real_regions in zip(batch.regions, batch.region_mask, strict=True)
    ]
    scores = SCAN(*options)(*batch)
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


def golden_batch():
    """Inputs of the released code, which takes all regions as real and crops captions to their lengths."""
    captions = torch.tensor(GOLDEN["captions"])
    word_mask = torch.arange(captions.shape[1]) < torch.tensor(GOLDEN["lengths"])[:, None]
    return torch.tensor(GOLDEN["images"]), captions, None, word_mask


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if key.startswith("sim/")])
def test_scores_of_the_released_code(key):
    _, direction, normalization, aggregation = key.split("/")
    head = SCAN(direction, OUR_NAMES[normalization], OUR_NAMES[aggregation], **PUBLISHED_SCALES[direction])
    np.testing.assert_allclose(head(*golden_batch()).numpy(), GOLDEN[key], rtol=0, atol=2e-5)


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if key.startswith("loss/") and "grad" not in key])
def test_losses_and_gradients_of_the_released_code(key):
    _, direction, aggregation, negatives = key.split("/")
    images, captions, _, word_mask = golden_batch()
    images.requires_grad_()
    captions.requires_grad_()
    head = SCAN(direction, aggregation=OUR_NAMES[aggregation], **PUBLISHED_SCALES[direction])
    loss = hinge_ranking_loss(head(images, captions, word_mask=word_mask), hardest=negatives == "hard")
    loss.backward()
    np.testing.assert_allclose(loss.item(), GOLDEN[key], rtol=0, atol=1e-4)
    np.testing.assert_allclose(images.grad.numpy(), GOLDEN[f"{key}/grad_images"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(captions.grad.numpy(), GOLDEN[f"{key}/grad_captions"], rtol=0, atol=2e-4)


@given(batches(images=3, captions=3), st.sampled_from([variant[:2] for variant in SCAN_VARIANTS]))
def test_attention_weights_are_those_of_the_slow_oracle(batch, variant):
    direction, normalization = variant
    weights, focal = scan_attention(*batch, direction=direction, normalization=normalization, temperature=7.0)
    assert focal is None
    for pair in range(3):
        regions, words, real_regions, real_words = (field[pair] for field in batch)
        queries, contexts = (words[real_words], regions[real_regions])
        if direction == "i2t":
            queries, contexts = contexts, queries
        expected = torch.tensor(slow_weights(queries.numpy(), contexts.numpy(), normalization, 7.0))
        real = weights[pair][real_words][:, real_regions]
        torch.testing.assert_close(
            real if direction == "t2i" else real.T, expected.double(), rtol=0, atol=1e-6, check_dtype=False
        )


@given(batches(images=3, captions=3), st.sampled_from(["t2i", "i2t"]))
def test_attention_weights_sum_to_one_over_the_context_and_reproduce_the_score(batch, direction):
    weights = scan_attention(*batch, direction=direction).weights
    real = batch.word_mask[:, :, None] & batch.region_mask[:, None, :]
    assert (weights[~real] == 0).all()
    axis, queries, contexts, query_mask = (
        (2, batch.words, batch.regions, batch.word_mask)
        if direction == "t2i"
        else (1, batch.regions, batch.words, batch.region_mask)
    )
    torch.testing.assert_close(weights.sum(axis), query_mask.double())
    attended = (weights if direction == "t2i" else weights.mT) @ contexts
    cosines = torch.cosine_similarity(queries, attended, dim=-1)  # zero on padding
    expected = scan_pair_scores(*batch, direction=direction, aggregation="sum")
    torch.testing.assert_close(cosines.sum(1), expected)


@pytest.mark.parametrize("name", SCAN_PUBLISHED)
def test_published_settings_build_a_head(name):
    assert SCAN(**SCAN_PUBLISHED[name])(*random_batch()).shape == (3, 4)


def test_module_and_function_agree():
    batch = random_batch()
    torch.testing.assert_close(SCAN()(*batch), scan_scores(*batch), rtol=0, atol=0)
    torch.testing.assert_close(
        SCAN(temperature=4.0).attention(*random_batch(captions=3)).weights,
        scan_attention(*random_batch(captions=3), temperature=4.0).weights,
        rtol=0,
        atol=0,
    )


@pytest.mark.compiles
def test_traces_into_a_single_graph():
    batch = random_batch()
    traced = torch.compile(scan_scores, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(*batch), scan_scores(*batch))


@pytest.mark.compiles
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_gives_the_same():
    batch = random_batch()
    torch.testing.assert_close(torch.compile(scan_scores)(*batch), scan_scores(*batch))
