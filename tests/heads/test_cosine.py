"""The pooled baseline against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batches import batches, random_batch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.heads import Cosine, cosine_scores


def slow_score(regions, words, pooling):
    """Cosine of one image and one caption without padding."""
    reduce = np.mean if pooling == "mean" else np.max
    image, caption = reduce(regions, axis=0), reduce(words, axis=0)
    return image @ caption / (np.linalg.norm(image) * np.linalg.norm(caption))


@given(batches(), st.sampled_from(["mean", "max"]))
def test_equals_the_slow_oracle(batch, pooling):
    scores = cosine_scores(*batch, pooling=pooling)
    for i, (regions, real_regions) in enumerate(zip(batch.regions, batch.region_mask, strict=True)):
        for j, (words, real_words) in enumerate(zip(batch.words, batch.word_mask, strict=True)):
            expected = slow_score(regions[real_regions].numpy(), words[real_words].numpy(), pooling)
            assert scores[i, j].item() == pytest.approx(expected, abs=1e-9)


def test_embedded_items_give_the_same_scores():
    batch = random_batch()
    head = Cosine("max")
    images = head.embed_images(batch.regions, batch.region_mask)
    captions = head.embed_captions(batch.words, batch.word_mask)
    torch.testing.assert_close(head.compare(images, captions), cosine_scores(*batch, pooling="max"))


def test_attention_is_uniform_over_the_real_regions():
    batch = random_batch(captions=3)
    weights = Cosine().attention(*batch).weights
    torch.testing.assert_close(weights.sum(-1), batch.word_mask.double())
    torch.testing.assert_close(weights.amax(-1), batch.word_mask / batch.region_mask.sum(1, keepdim=True).double())
