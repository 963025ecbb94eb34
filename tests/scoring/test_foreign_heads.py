"""Heads that the package does not know are scored by their own `compare` on every path, within the budget."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "heads"))
from batches import Batch, batches, random_batch
from foreign_heads import (
    FOREIGN,
    Attending,
    Called,
    Filtering,
    Inherited,
    MaxSim,
    Projected,
    Reweighted,
    SilentlyReweighted,
    Widened,
    declarable,
)

from xmodal.evaluation import evaluate_exact, evaluate_retrieval
from xmodal.heads import BFAN, SCAN, VSRN, Cosine, Head
from xmodal.inference import evaluating
from xmodal.scoring import score_all, score_pairs, shortlist
from xmodal.scoring.allocations import Allocations
from xmodal.scoring.backends import choose_backend

DIM = 8


def build(kind: type[Head], dtype: torch.dtype = torch.float64) -> Head:
    torch.manual_seed(0)
    return kind(DIM).to(dtype)  # type: ignore[call-arg]


def expected_scores(head: Head, batch: Batch) -> torch.Tensor:
    with evaluating(head):
        return head(*batch)


@pytest.mark.parametrize("kind", FOREIGN)
@given(batch=batches(dim=DIM), budget_bytes=st.integers(1, 100_000))
def test_every_path_gives_the_scores_of_compare(kind, batch, budget_bytes):
    head = build(kind)
    expected = expected_scores(head, batch)
    near = {"atol": 1e-9, "rtol": 0}
    torch.testing.assert_close(score_all(head, *batch, budget_bytes=budget_bytes), expected, **near)

    images, captions = torch.cartesian_prod(*(torch.arange(size) for size in expected.shape)).T
    pairs = score_pairs(head, *batch, images, captions, budget_bytes=budget_bytes)
    torch.testing.assert_close(pairs, expected.flatten(), **near)

    found = shortlist(head, *batch, k=100)
    torch.testing.assert_close(found.scores, expected.T.sort(dim=1, descending=True).values, **near)
    assert found.recall_of_exact_top10 == 100.0

    if expected.shape[0] == expected.shape[1]:
        with evaluating(head):
            torch.testing.assert_close(head.pairs(*batch), expected.diag(), **near)


@given(how=declarable(), seed=st.integers(0, 2**31), budget_bytes=st.integers(1, 100_000))
def test_whatever_cross_attention_is_declared_is_computed(how, seed, budget_bytes):
    """Two regions and words at least: over a single query, attention is equal up to rounding, which BFAN then sorts."""
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randn(3, 4, DIM, generator=generator), torch.randn(4, 5, DIM, generator=generator))
    lengths = [torch.randint(2, width + 1, (count, 1), generator=generator) for count, width in ((3, 4), (4, 5))]
    batch = Batch(*(side.double() for side in sides), torch.arange(4) < lengths[0], torch.arange(5) < lengths[1])
    head = Attending(how)
    expected = head(*batch)
    torch.testing.assert_close(score_all(head, *batch, budget_bytes=budget_bytes), expected, atol=1e-8, rtol=0)
    images, captions = torch.tensor([2, 0, 2]), torch.tensor([1, 3, 3])
    pairs = score_pairs(head, *batch, images, captions)
    torch.testing.assert_close(pairs, expected[images, captions], atol=1e-8, rtol=0)


@pytest.mark.parametrize("kind", FOREIGN)
def test_exact_metrics_are_those_of_compare(kind):
    head = build(kind, torch.float32)
    batch = random_batch(images=9, captions=9)
    batch = Batch(batch.regions.float(), batch.words.float(), *batch[2:])
    caption_image = torch.arange(9)
    metrics = evaluate_exact(head, *batch, caption_image=caption_image)
    metrics.pop("exact")
    assert metrics == evaluate_retrieval(score_all(head, *batch), caption_image)


@pytest.mark.parametrize("kind", [Inherited, SilentlyReweighted, Filtering, Called])
def test_no_engine_is_chosen_that_computes_something_else(kind):
    head, cuda = build(kind), torch.device("cuda")
    assert choose_backend(None, head, torch.float32, cuda, (36, 12)) == "eager"
    with pytest.raises(ValueError, match=f"backend='compile' scores BFAN, SCAN, got {kind.__name__}"):
        score_all(head, *random_batch(), backend="compile")


@pytest.mark.parametrize("kind", [Filtering, MaxSim, SCAN, Cosine])
def test_masks_may_be_left_out(kind):
    head = kind() if kind in (SCAN, Cosine) else build(kind)
    batch = random_batch(images=3, captions=3)
    bare, full = batch[:2], Batch(*batch[:2], *(torch.ones_like(mask) for mask in batch[2:]))
    with evaluating(head):
        torch.testing.assert_close(head(*bare), head(*full))
        torch.testing.assert_close(score_all(head, *bare), head(*full))
        if kind is not MaxSim:  # its own pairs take masks only
            torch.testing.assert_close(head.pairs(*bare), head(*full).diag())


def test_default_pairs_have_gradients_and_ignore_padding():
    head, batch = build(Projected).eval(), random_batch(images=4, captions=4)
    regions, words = (items.requires_grad_() for items in batch[:2])
    head.pairs(*batch).square().sum().backward()
    gradients = [regions.grad, words.grad]
    regions.grad = words.grad = None
    head(*batch).diag().square().sum().backward()
    for got, wanted, mask in zip(gradients, (regions.grad, words.grad), batch[2:], strict=True):
        torch.testing.assert_close(got, wanted)
        assert not got[~mask].any()


def test_a_head_without_attention_says_what_to_write():
    with pytest.raises(NotImplementedError, match=r"Filtering does not say where .* attention\(regions, words, region"):
        build(Filtering).attention(*random_batch(images=3, captions=3))
    with pytest.raises(NotImplementedError, match="Head has no compare"):
        Head()(*random_batch())


# Work once an item.


@pytest.mark.parametrize("kind", [Projected, Reweighted])
def test_items_are_embedded_once(kind):
    head, batch = build(kind), random_batch(images=7, captions=9)
    score_all(head, *batch, budget_bytes=30_000)
    assert head.embedded == {"images": 7, "captions": 9}


def test_items_that_take_part_in_pairs_are_embedded_once():
    head, batch = build(Projected), random_batch(images=7, captions=9)
    score_pairs(head, *batch, torch.tensor([3, 3, 3, 5]), torch.tensor([0, 1, 8, 8]))
    assert head.embedded == {"images": 2, "captions": 3}


# The model is left as it was.


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("kind", [Filtering, Projected])
def test_scoring_leaves_no_trace_and_does_not_depend_on_the_mode(kind, mode):
    head, batch = build(kind), random_batch(images=4, captions=4)
    expected = expected_scores(head, batch)
    head.train(mode)
    head.norm.eval()  # frozen, as one does
    before = copy.deepcopy(head.state_dict())
    two = torch.arange(2)
    with torch.inference_mode():
        results = [
            score_all(head, *batch),
            score_all(head, *batch, dtype=torch.float32),
            score_pairs(head, *batch, two, two),
            shortlist(head, *batch, k=2).scores,
        ]
    evaluate_exact(head, *batch, caption_image=torch.arange(4))
    torch.testing.assert_close(results[0], expected)
    torch.testing.assert_close(results[2], expected.diag()[:2])
    assert not any(result.is_inference() or result.requires_grad for result in results)
    assert (head.training, head.dropout.training, head.norm.training) == (mode, mode, False)
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("replaced", ["compare", "forward", "embed_images"])
@pytest.mark.parametrize("kind", [SCAN, Cosine, MaxSim])
def test_what_is_replaced_on_an_instance_scores(kind, replaced):
    head, batch = kind(), random_batch(images=4, captions=4)
    method = getattr(head, replaced)
    setattr(head, replaced, lambda *inputs: -method(*inputs))
    expected, every = head(*batch), torch.arange(4)
    torch.testing.assert_close(score_all(head, *batch), expected)
    torch.testing.assert_close(score_pairs(head, *batch, every, every), expected.diag())


def test_an_error_restores_the_mode():
    head = build(Filtering).train()
    head.score = None
    with pytest.raises(TypeError):
        score_all(head, *random_batch())
    assert head.training
    assert head.dropout.training


# Precision.


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_are_cast_in_a_copy(kind, dtype):
    head = build(kind, torch.float32)
    batch = random_batch(images=5, captions=6)
    single = Batch(batch.regions.float(), batch.words.float(), *batch[2:])
    expected = expected_scores(build(kind), batch)
    scores = score_all(head, *single, dtype=dtype)
    assert scores.dtype == torch.promote_types(dtype, torch.float32)
    close = 0.2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(scores.double(), expected, atol=close, rtol=close)
    assert {parameter.dtype for parameter in head.parameters()} <= {torch.float32}


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("head", [SCAN("i2t", aggregation="mean"), BFAN(), Cosine()])
def test_features_of_any_precision_are_compared_in_any(head, dtype, given):
    batch = random_batch(images=5, captions=6)
    scores = score_all(head, batch.regions.to(given), batch.words.to(given), *batch[2:], dtype=dtype)
    close = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(scores.double(), head(*batch), atol=close, rtol=close)


def test_a_head_that_cannot_be_copied_says_why():
    head = build(Filtering, torch.float32)
    head.derived = head.score.weight * 2
    batch = random_batch()
    with pytest.raises(ValueError, match=r"a copy of the parameters of Filtering .*; leave dtype out"):
        score_all(head, batch.regions.float(), batch.words.float(), *batch[2:], dtype=torch.bfloat16)


# Memory.


@pytest.mark.parametrize("kind", [Filtering, Projected, Inherited, MaxSim, Cosine, Reweighted, Widened])
@pytest.mark.parametrize("budget_bytes", [2_000_000, 500_000])
def test_the_budget_holds(kind, budget_bytes):
    torch.manual_seed(0)
    head = kind() if kind is Cosine else kind(64)
    regions, words = torch.randn(60, 6, 64), torch.randn(70, 8, 64)
    word_mask = torch.arange(8) < torch.randint(1, 9, (70, 1))
    images, captions = torch.randint(60, (100,)), torch.randint(70, (100,))
    with Allocations() as all_pairs:
        score_all(head, regions, words, None, word_mask, budget_bytes=budget_bytes)
    with Allocations() as some_pairs:
        score_pairs(head, regions, words, None, word_mask, images, captions, budget_bytes=budget_bytes)
    small = 100_000  # the result, masks, indices
    assert all_pairs.peak <= budget_bytes + small
    assert all_pairs.peak >= 0.2 * budget_bytes or kind is Cosine, "blocks are needlessly small"
    # Embedded, for all their pairs.
    kept = {Projected: 1, Reweighted: 1, Widened: 40}.get(kind, 0) * (regions.nbytes + words.nbytes)
    assert some_pairs.peak <= budget_bytes + kept + small


def test_blocks_are_as_large_as_the_head_says():
    class Stated(Filtering):
        def pair_bytes(self, image, caption):
            return 1000 * image.shape[1] * caption.shape[1]

    head = build(Stated)
    score_all(head, torch.randn(50, 5, DIM).double(), torch.randn(50, 4, DIM).double(), budget_bytes=1_000_000)
    assert max(images * captions for images, captions in head.shapes) in range(15, 26)


def test_vsrn_is_searched_by_its_own_embeddings():
    torch.manual_seed(0)
    regions, words = torch.randn(200, 6, 16), torch.randn(30, 7, 16)
    for head in (Cosine(), Cosine("max"), VSRN(dim=16), VSRN(dim=16, norm="batch")):
        for wanted in ("images", "captions"):
            assert shortlist(head, regions, words, k=10, wanted=wanted).recall_of_exact_top10 == 100.0
