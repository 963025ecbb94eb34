from __future__ import annotations

import numpy as np
import pytest
import torch

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.model import Matcher
from xmodal.scoring import score_all

CAPTIONS = ["a dog", "a cat a cat", "dog", "a", "cat dog cat"]


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "regions.h5"
    generator = np.random.default_rng(0)
    with RegionStoreWriter(path, extractor="test", dim=6, max_regions=4) as writer:
        for image in range(9):
            writer.write(str(image), generator.standard_normal((1 + image % 4, 6), dtype=np.float32))
    return RegionStore(path)


@pytest.fixture
def matcher():
    torch.manual_seed(0)
    return Matcher(
        image={"name": "regions", "input_dim": 6, "dim": 8},
        text={"name": "gru", "dim": 8, "word_dim": 4},
        head={"name": "scan"},
        vocabulary=["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "cat"],
    ).eval()


def test_images_streamed_from_the_store_score_as_when_all_are_encoded_at_once(matcher, store, tmp_path, monkeypatch):
    expected = matcher.score_all(store, CAPTIONS)
    scored = []
    monkeypatch.setattr("xmodal.model.score_all", lambda *a, **k: scored.append(a[1]) or score_all(*a, **k))
    scores = matcher.score_all(store, CAPTIONS, budget_bytes=300, out=tmp_path / "scores.npy")
    assert len(scored) > 2
    assert sum(map(len, scored)) == len(store)
    assert max(items.nbytes for items in scored if len(items) > 1) <= 300
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=0)
    assert np.array_equal(np.load(tmp_path / "scores.npy"), scores.numpy())
