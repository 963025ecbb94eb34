import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.evaluation.pointing import Mention, pointing, pointing_accuracy
from xmodal.model import Matcher


def overlaps(box, target):
    """Two boxes share some area: plain comparisons of their corners."""
    return min(box[2], target[2]) > max(box[0], target[0]) and min(box[3], target[3]) > max(box[1], target[1])


@given(st.integers(0, 2**31 - 1))
def test_pointing_equals_plain_loops(seed):
    generator = torch.Generator().manual_seed(seed)

    def some_boxes(count):
        corners = torch.rand(count, 2, generator=generator) * 100
        return torch.cat([corners, corners + 1 + torch.rand(count, 2, generator=generator) * 40], dim=1)

    boxes, weights = some_boxes(6), torch.rand(3, 6, generator=generator)
    targets = [some_boxes(count) for count in (1, 2, 3)]
    hits, chance = pointing(weights, boxes, targets)
    for word, target in enumerate(targets):
        touched = [any(overlaps(box, t) for t in target.tolist()) for box in boxes.tolist()]
        assert hits[word].item() == touched[int(weights[word].argmax())]
        assert chance[word].item() == pytest.approx(np.mean(touched))


def test_a_word_that_looks_at_regions_alike_hits_only_if_all_do():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [20.0, 0.0, 30.0, 9.0], [0.0, 20.0, 9.0, 30.0]])
    weights = torch.tensor([[0.4, 0.4, 0.2], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    targets = [boxes[:1], boxes[:2], boxes[:1]]
    assert pointing(weights, boxes, targets).hits.tolist() == [False, True, False]


def test_accuracy_looks_at_the_words_that_are_mentioned(tmp_path):
    """Regions and words are set by hand so that "dog" looks left and "cat" right, whatever stands before them."""
    with RegionStoreWriter(tmp_path / "test.h5", dim=2, extractor="test") as writer:
        writer.write("a", [[1, 0], [0, 1]], boxes=[[0, 0, 10, 10], [20, 0, 30, 10]], image_size=(30, 10))
    matcher = Matcher(
        image={"name": "regions", "input_dim": 2, "dim": 2},
        text={"name": "gru", "dim": 2, "word_dim": 2},
        head={"name": "scan"},
        vocabulary=["<pad>", "<start>", "<end>", "<unk>", "dog", "cat", "the"],
    ).eval()
    directions = torch.tensor([[0.5, 0.5]] * 4 + [[1.0, 0.1], [0.1, 1.0], [0.5, 0.5]])
    matcher.text_encoder.forward = lambda tokens, mask: directions[tokens]
    matcher.image_encoder.forward = lambda batch: batch[:2]
    left, right = torch.tensor([[0.0, 0.0, 5.0, 5.0]]), torch.tensor([[25.0, 0.0, 30.0, 5.0]])
    caption = "the dog, the cat"
    mentions = [Mention("a", caption, 4, 7, left), Mention("a", caption, 13, 16, right)]
    store = RegionStore(tmp_path / "test.h5")
    assert pointing_accuracy(matcher, store, mentions) == {"hits": 100.0, "chance": 50.0}
    exchanged = [mentions[0]._replace(boxes=right), mentions[1]]
    assert pointing_accuracy(matcher, store, exchanged)["hits"] == 50.0
    with pytest.raises(ValueError, match="no mention"):
        pointing_accuracy(matcher, store, [])
