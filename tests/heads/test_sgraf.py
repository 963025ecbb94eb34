"""SGRAF against plain loops over one image and one caption, written from the equations."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from batches import DIM, batches, check_against, learned, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pooling import slow_self_attention, softmax

from xmodal.heads import SGRAF, attention
from xmodal.heads.sgraf import AttentionFiltration
from xmodal.scoring import score_all


def linear(layer, x):
    return layer.weight @ x + layer.bias


def slow_nodes(head, regions, words):
    """The similarity vectors of the global vectors and of every word with what it attends to."""
    image = slow_self_attention(list(regions), head.image_pooler)
    caption = slow_self_attention(list(words), head.caption_pooler)
    image, caption = image / image.norm(), caption / caption.norm()
    vectors = [linear(head.whole, (image - caption) ** 2)]
    clipped = [[torch.nn.functional.leaky_relu(v @ e, 0.1) for e in words] for v in regions]
    lengths = [sum(value**2 for value in row) ** 0.5 + 1e-8 for row in clipped]
    for j, word in enumerate(words):
        weights = softmax([head.temperature * row[j] / length for row, length in zip(clipped, lengths, strict=True)])
        context = sum(weight * region for weight, region in zip(weights, regions, strict=True))
        vectors.append(linear(head.local, (context / context.norm() - word) ** 2))
    return [vector / vector.norm() for vector in vectors]


def slow_sgr(head):
    def score(regions, words):
        nodes = slow_nodes(head, regions, words)
        for step in head.reasoning:
            queries, keys = ([linear(layer, node) for node in nodes] for layer in (step.query, step.key))
            updated = []
            for query in queries:
                edges = softmax([query @ key for key in keys])
                updated.append(linear(step.output, sum(e * n for e, n in zip(edges, nodes, strict=True))).relu())
            nodes = updated
        return linear(head.score, nodes[0])[0].sigmoid()

    return score


def slow_saf(head):
    def score(regions, words):
        nodes, norm = slow_nodes(head, regions, words), head.filtration.norm
        gates = []
        for node in nodes:
            normed = (linear(head.filtration.gate, node)[0] - norm.running_mean[0]) / (
                norm.running_var[0] + norm.eps
            ) ** 0.5
            gates.append((normed * norm.weight[0] + norm.bias[0]).sigmoid())
        vector = sum(gate / sum(gates) * node for gate, node in zip(gates, nodes, strict=True))
        return linear(head.score, vector / vector.norm())[0].sigmoid()

    return score


@pytest.mark.parametrize(("module", "slow"), [("sgr", slow_sgr), ("saf", slow_saf)])
@settings(max_examples=15)
@given(batch=batches(dim=DIM), seed=st.integers(0, 99))
def test_equals_the_plain_loop(module, slow, batch, seed):
    head = learned(SGRAF(DIM, module, sim_dim=5, steps=1 + seed % 3, temperature=4.0), seed)
    check_against(slow(head), head, batch)


def test_the_released_norm_of_image_vectors_takes_slots():
    head = learned(SGRAF(DIM, sim_dim=5, pooling={"name": "self_attention", "norm": "slot", "slots": 5}))
    batch = random_batch(dim=DIM)
    full = batch._replace(regions=torch.randn_like(batch.regions), region_mask=torch.ones_like(batch.region_mask))
    check_against(slow_sgr(head), head, full)
    with pytest.raises(ValueError, match="takes exactly 5 real items a set, got "):
        head(*batch)


def test_the_gate_counts_every_caption_by_itself_in_training():
    """As the released code, which calls a batch norm of one channel once a caption, cropped to its words."""
    ours = learned(AttentionFiltration(6), 1).train()
    released = deepcopy(ours.norm)
    nodes = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 3, 3, 2])[:, None]
    found = ours(nodes, mask)
    for caption, length in enumerate([5, 3, 3, 2]):
        kept = nodes[:, caption, :length]
        gates = released(ours.gate(kept).transpose(1, 2)).sigmoid()
        vector = ((gates / gates.sum(dim=-1, keepdim=True)) @ kept)[:, 0]
        torch.testing.assert_close(found[:, caption], vector / vector.norm(dim=1, keepdim=True))
    for name, buffer in released.named_buffers():
        torch.testing.assert_close(getattr(ours.norm, name), buffer)


@pytest.mark.parametrize("module", ["sgr", "saf"])
@pytest.mark.parametrize("tile_bytes", [1, 1 << 30])
def test_blocks_of_captions_change_neither_scores_nor_gradients_nor_statistics(module, tile_bytes, monkeypatch):
    batch = random_batch(seed=2, images=4, captions=5, dim=DIM)
    heads = [learned(SGRAF(DIM, module, sim_dim=6, pooling="mean"), 1).train() for _ in range(2)]
    results = []
    for head, size in zip(heads, (3 << 20, tile_bytes), strict=True):
        torch.manual_seed(0)
        monkeypatch.setitem(attention.TILE_BYTES, "cpu", size)
        scores = head(batch.regions.requires_grad_(), *batch[1:])
        results.append([scores, *torch.autograd.grad(scores.square().sum(), [batch.regions, *head.parameters()])])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole)
    for name, buffer in heads[0].named_buffers():
        torch.testing.assert_close(dict(heads[1].named_buffers())[name], buffer)


def test_scores_need_no_masks():
    head, batch = learned(SGRAF(DIM, sim_dim=6)), random_batch(dim=DIM)
    torch.testing.assert_close(score_all(head, *batch[:2]), head(*batch[:2]).detach())


def test_attention_is_that_of_words_over_regions():
    batch = random_batch(captions=3, dim=DIM)
    weights = SGRAF(DIM).double().attention(*batch).weights
    torch.testing.assert_close(weights.sum(dim=2), batch.word_mask.double())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"module": "avg"}, "module must be one of sgr, saf; got 'avg'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be positive, got -1.0"),
        ({"pooling": "sum"}, "pooling must be one of mean, max"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SGRAF(8, **options)
