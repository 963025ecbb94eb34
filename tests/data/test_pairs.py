"""A batch of pairs is what a loop over captions, one at a time, would gather."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from xmodal.data import Caption, PairBatch, PairDataset, RegionStore, RegionStoreWriter, Vocabulary
from xmodal.data.pairs import whole_batch
from xmodal.data.vocabulary import TokenBatch
from xmodal.data.workers import read_ahead

CAPTIONS = [
    Caption(image, str(number), text, "train")
    for number, (image, text) in enumerate(
        [
            ("cat", "A cat."),
            ("dog", "A dog runs far away."),
            ("cat", "The cat sleeps"),
            ("ape", "Ape"),
            ("dog", "Dogs!"),
        ]
    )
]
VOCABULARY = Vocabulary(["a", "cat", "dog", "the", "runs", ".", "ape"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "train.h5"
    generator = np.random.default_rng(0)
    with RegionStoreWriter(path, dim=3, max_regions=4, extractor="a test") as writer:
        for image_id, count in (("ape", 2), ("bat", 3), ("cat", 4), ("dog", 1)):
            writer.write(image_id, generator.normal(size=(count, 3)))
    return RegionStore(path)


@given(indices=st.lists(st.integers(0, len(CAPTIONS) - 1), min_size=1))
def test_a_batch_is_its_pairs(store, indices):
    dataset = PairDataset(store, CAPTIONS, VOCABULARY)
    batch = dataset.__getitems__(indices)
    assert batch.caption.tolist() == indices
    for place, index in enumerate(indices):
        caption = CAPTIONS[index]
        image = store.index(caption.image_id)
        assert batch.image[place] == image
        assert torch.equal(batch.images.regions[place][batch.images.region_mask[place]], store[image])
        assert batch.tokens[place][batch.word_mask[place]].tolist() == VOCABULARY.encode(caption.caption)
    assert batch.images.region_mask.any(0).all()
    assert batch.word_mask.any(0).all()


def test_one_item_is_a_batch_of_one(store):
    dataset = PairDataset(store, CAPTIONS, VOCABULARY)
    (images, *one), (same_images, *same) = dataset[1], dataset.__getitems__([1])
    assert all(torch.equal(a, b) for a, b in zip([*images[:2], *one], [*same_images[:2], *same], strict=True))
    assert dataset[1].images.regions.shape == (1, 1, 3)


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (1, "spawn")])
def test_a_loader_gives_every_caption_once(store, workers, start, request):
    request.addfinalizer(lambda: multiprocessing.set_start_method(None, force=True))
    multiprocessing.set_start_method(start, force=True)
    with read_ahead(PairDataset(store, CAPTIONS, VOCABULARY), workers, batch_size=2, shuffle=True) as reading:
        batches = list(reading)
    assert all(isinstance(batch, PairBatch) for batch in batches)
    assert sorted(torch.cat([batch.caption for batch in batches]).tolist()) == list(range(len(CAPTIONS)))


def test_a_subset_still_reads_whole_batches(store):
    loader = DataLoader(Subset(PairDataset(store, CAPTIONS, VOCABULARY), [4, 1]), 2, collate_fn=whole_batch)
    assert [batch.caption.tolist() for batch in loader] == [[4, 1]]


def test_any_tokenizer_will_do(store, monkeypatch):
    """One that pads on the left with nines, a few captions at a time."""
    monkeypatch.setattr("xmodal.data.tokenized.CAPTIONS_AT_ONCE", 2)

    def left(texts):
        words = [[len(word) for word in text.split()] for text in texts]
        longest = max(map(len, words))
        tokens = torch.tensor([[9] * (longest - len(row)) + row for row in words])
        return TokenBatch(tokens, torch.arange(longest) >= torch.tensor([longest - len(row) for row in words])[:, None])

    batch = PairDataset(store, CAPTIONS, left).__getitems__([1, 3])
    assert batch.tokens.tolist() == [[1, 3, 4, 3, 5], [3, 0, 0, 0, 0]]
    assert batch.word_mask.tolist() == [[True] * 5, [True] + [False] * 4]


def test_strangers_and_wordless_captions_are_refused(store):
    with pytest.raises(ValueError, match="about image 'eel'"):
        PairDataset(store, [*CAPTIONS, Caption("eel", "9", "An eel.", "train")], VOCABULARY)
    with pytest.raises(ValueError, match="no words"):
        PairDataset(store, [Caption("cat", "9", " ", "train")], VOCABULARY)
