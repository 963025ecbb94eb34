"""What holds for every head: padding, order, batching and tiling change no score; gradients are right and finite."""

from __future__ import annotations

import pytest
import torch
from batches import ALL_HEADS, Batch, batches, gradients, half_precision_batch, random_batch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.heads import SCAN, SCAN_PUBLISHED, attention

heads = st.sampled_from(ALL_HEADS)
every_head = pytest.mark.parametrize("head", ALL_HEADS, ids=repr)


@given(heads, batches())
def test_a_pair_alone_without_padding_scores_as_it_does_in_the_batch(head, batch):
    scores = head(*batch)
    for i, (regions, real_regions) in enumerate(zip(batch.regions, batch.region_mask, strict=True)):
        for j, (words, real_words) in enumerate(zip(batch.words, batch.word_mask, strict=True)):
            alone = head(regions[real_regions][None], words[real_words][None])
            torch.testing.assert_close(alone[0, 0], scores[i, j])


@given(heads, batches(), st.integers(0, 3), st.integers(0, 3))
def test_more_padding_changes_nothing(head, batch, more_regions, more_words):
    pad = torch.nn.functional.pad
    padded = Batch(
        pad(batch.regions, (0, 0, 0, more_regions), value=3.0),
        pad(batch.words, (0, 0, 0, more_words), value=3.0),
        pad(batch.region_mask, (0, more_regions)),
        pad(batch.word_mask, (0, more_words)),
    )
    torch.testing.assert_close(head(*padded), head(*batch))


@given(heads, batches(), st.sampled_from([float("nan"), float("inf"), -1e30]))
def test_the_content_of_padding_changes_no_score_and_gets_no_gradient(head, batch, content):
    dirty = batch._replace(
        regions=batch.regions.masked_fill(~batch.region_mask[..., None], content),
        words=batch.words.masked_fill(~batch.word_mask[..., None], content),
    )
    expected, region_gradient, word_gradient = gradients(head, batch)
    scores, dirty_region_gradient, dirty_word_gradient = gradients(head, dirty)
    assert torch.equal(scores, expected)
    assert torch.equal(dirty_region_gradient, region_gradient)
    assert torch.equal(dirty_word_gradient, word_gradient)
    assert (region_gradient[~batch.region_mask] == 0).all()
    assert (word_gradient[~batch.word_mask] == 0).all()


@given(heads, batches(), st.randoms(use_true_random=False))
def test_order_of_images_captions_regions_and_words_changes_nothing(head, batch, random):
    def order(count):
        return torch.tensor(random.sample(range(count), count))

    images, captions = order(len(batch.regions)), order(len(batch.words))
    regions, words = order(batch.regions.shape[1]), order(batch.words.shape[1])
    shuffled = Batch(
        batch.regions[images][:, regions],
        batch.words[captions][:, words],
        batch.region_mask[images][:, regions],
        batch.word_mask[captions][:, words],
    )
    torch.testing.assert_close(head(*shuffled), head(*batch)[images][:, captions])


@given(heads, batches(images=3, captions=3))
def test_pairs_are_the_diagonal(head, batch):
    torch.testing.assert_close(head.pairs(*batch), head(*batch).diag())


@given(heads, batches(), st.sampled_from([1, 500, 1 << 30]))
def test_the_size_of_a_tile_changes_nothing(head, batch, tile_bytes):
    expected = gradients(head, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attention.PRODUCTS_BYTES, "cpu", tile_bytes)
        patch.setattr(attention, "LANES", 1)
        for tiled, whole in zip(gradients(head, batch), expected, strict=True):
            torch.testing.assert_close(tiled, whole)


@every_head
def test_gradients_equal_finite_differences(head):
    batch = random_batch(seed=1, images=2, captions=2, regions=3, words=3, dim=4)
    regions, words = batch.regions.requires_grad_(), batch.words.requires_grad_()
    assert torch.autograd.gradcheck(lambda r, w: head(r, w, batch.region_mask, batch.word_mask), (regions, words))


SHARPEST = SCAN(**SCAN_PUBLISHED["i-t LSE COCO"])
"""exp(20) is infinite in half precision."""


@pytest.mark.parametrize("head", [*ALL_HEADS, SHARPEST], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"], ids=str)
def test_half_precision_is_finite_and_close(head, dtype):
    autocast = dtype == "autocast"
    batch = half_precision_batch(torch.float32 if autocast else dtype)
    results = gradients(head, batch, autocast=autocast)
    assert all(result.isfinite().all() for result in results)
    exact = head(*half_precision_batch(torch.float64))
    torch.testing.assert_close(results[0].double(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head", [*ALL_HEADS, SHARPEST], ids=repr)
def test_zero_features_give_finite_scores_and_gradients(head, dtype):
    batch = half_precision_batch(dtype)
    batch.regions[0] = 0
    batch.words[1] = 0
    batch.words[2, 3:] = 0
    assert all(result.isfinite().all() for result in gradients(head, batch))


@every_head
def test_identical_features_give_finite_scores_and_gradients(head):
    batch = random_batch()
    same = batch._replace(regions=torch.ones_like(batch.regions), words=torch.ones_like(batch.words))
    assert all(result.isfinite().all() for result in gradients(head, same))
