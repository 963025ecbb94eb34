import pytest
import torch
from PIL import Image

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.model import Matcher
from xmodal.search.explanation import pixel_boxes
from xmodal.search.retrieve import explain_pair, retrieve

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "cat"]


@pytest.fixture
def matcher():
    torch.manual_seed(0)
    return Matcher(
        image={"name": "regions", "input_dim": 4, "dim": 8},
        text={"name": "gru", "dim": 8, "word_dim": 4},
        head={"name": "scan"},
        vocabulary=WORDS,
    ).eval()


@pytest.fixture
def store(tmp_path):
    with RegionStoreWriter(tmp_path / "test.h5", dim=4, extractor="test", box_convention="xyxy relative") as writer:
        for name in "abc":
            features = torch.randn(2, 4, generator=torch.Generator().manual_seed(ord(name)))
            writer.write(name, features, boxes=[[0, 0, 0.5, 1], [0.5, 0, 1, 1]], image_size=(40, 20))
    return RegionStore(tmp_path / "test.h5")


def test_best_images_come_first_and_scores_are_the_matchers(matcher, store):
    sentences = ["a dog", "a cat", "dog"]
    scores = matcher.score_all(store, sentences)
    for column, row in enumerate(retrieve(matcher, store, sentences, top=2)):
        assert row.sentence == sentences[column]
        assert row.scores == sorted(row.scores, reverse=True)
        for image_id, score in zip(row.image_ids, row.scores, strict=True):
            assert scores[store.index(image_id), column].item() == score
        assert row.scores[0] == scores[:, column].max().item()


def test_more_images_than_there_are_gives_all(matcher, store):
    assert len(retrieve(matcher, store, ["a dog"], top=50)[0].image_ids) == 3
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        retrieve(matcher, store, ["a dog"], top=0)


def test_relative_boxes_become_pixels(store):
    assert pixel_boxes(store, 0).tolist() == [[0, 0, 20, 20], [20, 0, 40, 20]]


def test_explanation_is_drawn(matcher, store, tmp_path):
    Image.new("RGB", (40, 20), "white").save(tmp_path / "a.png")
    explain_pair(matcher, store, "a", tmp_path / "a.png", "a dog", tmp_path / "attention.png")
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.width > 100
    with pytest.raises(KeyError, match="zebra"):
        explain_pair(matcher, store, "zebra", tmp_path / "a.png", "a dog", tmp_path / "attention.png")
