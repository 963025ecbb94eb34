"""What holds for every head with parameters: padding, order, batching and budget change no score; gradients are right.

Each head's own file compares it with its oracle.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from batches import DIM, LEARNED_HEADS, Batch, batches, gradients, half_precision_batch, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.heads import HEADS, attention
from xmodal.heads.comparison import InnerProduct
from xmodal.model import Matcher
from xmodal.scoring import score_all, score_pairs, shortlist

every_head = pytest.mark.parametrize("name", LEARNED_HEADS)
few = settings(max_examples=12)
sized = batches(dim=DIM)

READS_IN_ORDER = {"dprnn word", "dprnn object", "rdan"}
"""Heads to which the order of words matters, to DP-RNN also that of regions, and that say so."""


@every_head
@few
@given(sized)
def test_a_pair_alone_without_padding_scores_as_it_does_in_the_batch(name, batch):
    head = LEARNED_HEADS[name]
    scores = head(*batch)
    for i, (regions, real_regions) in enumerate(zip(batch.regions, batch.region_mask, strict=True)):
        for j, (words, real_words) in enumerate(zip(batch.words, batch.word_mask, strict=True)):
            alone = head(regions[real_regions][None], words[real_words][None])
            torch.testing.assert_close(alone[0, 0], scores[i, j])


@every_head
@few
@given(sized, st.integers(0, 3), st.integers(0, 3), st.sampled_from([float("nan"), float("inf"), -1e30]))
def test_padding_changes_no_score_and_gets_no_gradient(name, batch, more_regions, more_words, content):
    head, pad = LEARNED_HEADS[name], torch.nn.functional.pad
    region_mask, word_mask = pad(batch.region_mask, (0, more_regions)), pad(batch.word_mask, (0, more_words))
    padded = Batch(
        pad(batch.regions, (0, 0, 0, more_regions)).masked_fill(~region_mask[..., None], content),
        pad(batch.words, (0, 0, 0, more_words)).masked_fill(~word_mask[..., None], content),
        region_mask,
        word_mask,
    )
    expected, found = gradients(head, batch), gradients(head, padded)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][:, : batch.regions.shape[1]], expected[1])
    torch.testing.assert_close(found[2][:, : batch.words.shape[1]], expected[2])
    assert (found[1][~region_mask] == 0).all()
    assert (found[2][~word_mask] == 0).all()


@every_head
@few
@given(sized, st.randoms(use_true_random=False))
def test_order_changes_nothing(name, batch, random):
    def order(count):
        return torch.tensor(random.sample(range(count), count))

    head = LEARNED_HEADS[name]
    images, captions = order(len(batch.regions)), order(len(batch.words))
    regions, words = order(batch.regions.shape[1]), order(batch.words.shape[1])
    if name in READS_IN_ORDER:
        regions, words = regions.sort().values, words.sort().values
    shuffled = Batch(
        batch.regions[images][:, regions],
        batch.words[captions][:, words],
        batch.region_mask[images][:, regions],
        batch.word_mask[captions][:, words],
    )
    torch.testing.assert_close(head(*shuffled), head(*batch)[images][:, captions])


@every_head
@few
@given(batches(images=3, captions=3, dim=DIM))
def test_pairs_are_the_diagonal(name, batch):
    head = LEARNED_HEADS[name]
    torch.testing.assert_close(head.pairs(*batch), head(*batch).diag())


@every_head
@pytest.mark.parametrize("budget_bytes", [1, 5000, None])
def test_scoring_in_blocks_gives_the_same(name, budget_bytes):
    head = LEARNED_HEADS[name]
    batch = random_batch(seed=3, images=7, captions=9, dim=DIM)
    expected = head(*batch).detach()
    torch.testing.assert_close(score_all(head, *batch, budget_bytes=budget_bytes), expected, atol=1e-9, rtol=0)


@every_head
def test_chosen_pairs_and_shortlists_have_the_scores_of_the_head(name):
    head = LEARNED_HEADS[name]
    batch = random_batch(seed=4, images=6, captions=8, dim=DIM)
    expected = head(*batch).detach()
    images, captions = torch.tensor([5, 0, 3, 3]), torch.tensor([1, 7, 7, 0])
    torch.testing.assert_close(score_pairs(head, *batch, images, captions), expected[images, captions])
    found = shortlist(head, *batch, k=6, wanted="images")
    torch.testing.assert_close(found.scores, expected.T.gather(1, found.candidates).to(found.scores), atol=1e-5, rtol=0)


@every_head
def test_gradients_equal_finite_differences(name):
    batch = random_batch(seed=1, images=2, captions=2, regions=3, words=3, dim=DIM)
    regions, words = batch.regions.requires_grad_(), batch.words.requires_grad_()
    head = LEARNED_HEADS[name]
    assert torch.autograd.gradcheck(lambda r, w: head(r, w, batch.region_mask, batch.word_mask), (regions, words))


@every_head
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"], ids=str)
def test_half_precision_is_finite_and_close(name, dtype):
    head = deepcopy(LEARNED_HEADS[name]).float()
    autocast = dtype == "autocast"
    results = gradients(head, half_precision_batch(torch.float32 if autocast else dtype, DIM), autocast=autocast)
    assert all(result.isfinite().all() for result in results)
    exact = LEARNED_HEADS[name](*half_precision_batch(torch.float64, DIM))
    torch.testing.assert_close(results[0].double(), exact, rtol=0.03, atol=0.03)


@every_head
def test_zero_and_identical_features_give_finite_scores_and_gradients(name):
    batch = random_batch(dim=DIM)
    batch.regions[0], batch.words[1], batch.words[2, 3:] = 0, 0, 0
    same = batch._replace(regions=torch.ones_like(batch.regions), words=torch.ones_like(batch.words))
    for given_batch in (batch, same):
        assert all(result.isfinite().all() for result in gradients(LEARNED_HEADS[name], given_batch))


@every_head
def test_heads_are_trained_and_come_back_from_their_state(name):
    head = deepcopy(LEARNED_HEADS[name]).train()
    batch = random_batch(seed=5, images=4, captions=4, dim=DIM)
    head(batch.regions.requires_grad_(), *batch[1:]).diag().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
    other = deepcopy(LEARNED_HEADS[name])
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other(*batch), head.eval()(*batch))


@every_head
def test_who_declares_inner_products_gives_vectors(name):
    head = LEARNED_HEADS[name]
    if head.comparison == InnerProduct():
        batch = random_batch(dim=DIM)
        assert head.embed_images(batch.regions, batch.region_mask).ndim == 2
        assert head.embed_captions(batch.words, batch.word_mask).ndim == 2


@pytest.mark.parametrize("name", HEADS)
def test_every_name_is_a_head_of_a_matcher_that_is_saved_and_loaded(name, tmp_path):
    image, text = {"name": "regions", "input_dim": 6, "dim": 8}, {"name": "gru", "word_dim": 4}
    head = {"name": name, **({"pooling": {"name": "gpo"}} if name == "cosine" else {})}
    matcher = Matcher(image, text, head, vocabulary=["<pad>", "<start>", "<end>", "<unk>", "a", "dog"])
    inputs = [torch.randn(5, 6), torch.randn(3, 6)], ["a dog", "a"]
    matcher.save_pretrained(tmp_path / name)
    torch.testing.assert_close(Matcher.from_pretrained(tmp_path / name).score(*inputs), matcher.score(*inputs))


@every_head
def test_blocks_change_neither_scores_nor_gradients(name, monkeypatch):
    batch, results = random_batch(seed=2, images=4, captions=4, dim=DIM), []
    for size in (1, 1 << 30):
        monkeypatch.setitem(attention.TILE_BYTES, "cpu", size)
        head = deepcopy(LEARNED_HEADS[name]).train()  # Anew, for in training some keep statistics.
        torch.manual_seed(0)
        scores = head(batch.regions.requires_grad_(), *batch[1:])
        results.append([scores, *torch.autograd.grad(scores.square().sum(), [batch.regions, *head.parameters()])])
    for parts, whole in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole)
