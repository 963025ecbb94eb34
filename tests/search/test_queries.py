"""Queries of several parts, against what each part alone finds."""

from __future__ import annotations

import pytest
import torch

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.encoders.base import EncodedSet
from xmodal.evaluation.calibration import Calibration
from xmodal.heads import BFAN, SCAN, VSRN, Cosine, Head
from xmodal.model import Matcher
from xmodal.search.queries import Query, combine_scores, score_like
from xmodal.search.retrieve import retrieve


@pytest.mark.parametrize(
    ("text", "wanted", "unwanted"),
    [
        ("a dog", ("a dog",), ()),
        ("a dog NOT red car", ("a dog",), ("red car",)),
        ("a dog  NOT a cat NOT\ta car ", ("a dog",), ("a cat", "a car")),
        ("it is not a dog, NOTED", ("it is not a dog, NOTED",), ()),
        ("eine Katze NOT 赤い車", ("eine Katze",), ("赤い車",)),
    ],
)
def test_a_query_is_read_as_it_is_typed(text, wanted, unwanted):
    query = Query.parse(text)
    assert (query.wanted, query.unwanted) == (wanted, unwanted)
    assert query.is_plain == (not unwanted)


@pytest.mark.bad_input
@pytest.mark.parametrize("text", ["", "  ", "a dog NOT", "NOT", "a NOT NOT b"])
def test_a_query_without_words_is_refused(text):
    with pytest.raises(ValueError, match=r"is empty|nothing is asked"):
        Query.parse(text)
    with pytest.raises(ValueError, match="nothing is asked"):
        Query.parse("NOT a dog")
    assert Query.parse("NOT a dog", like=["7"]) == Query((), ("a dog",), ("7",))


def test_scores_are_combined_as_a_loop_does():
    torch.manual_seed(0)
    wanted, unwanted = torch.randn(2, 9) * 5 + 3, torch.randn(2, 9)
    found = combine_scores(wanted, unwanted, weight=0.7)

    def standard(row, image):
        values = row.tolist()
        mean = sum(values) / 9
        return (values[image] - mean) / (sum((v - mean) ** 2 for v in values) / 9) ** 0.5

    for image in range(9):
        value = sum(standard(row, image) for row in wanted) / 2
        value -= 0.7 * max(0.0, *(standard(row, image) for row in unwanted))
        assert found[image].item() == pytest.approx(value, abs=1e-5)
    assert torch.equal(combine_scores(wanted[:1]), wanted[0])
    assert combine_scores(torch.ones(2, 3)).tolist() == [0, 0, 0]


HEADS = [SCAN(), SCAN(direction="i2t"), BFAN(), VSRN(dim=8, layers=1).eval(), Cosine()]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_an_image_is_most_like_itself(head):
    torch.manual_seed(0)
    items = torch.nn.functional.normalize(torch.randn(6, 5, 8), dim=-1)
    images = EncodedSet(items, torch.arange(5) < torch.tensor([[5], [3], [4], [5], [1], [2]]))
    scores = score_like(head, images, images)
    assert scores.shape == (6, 6)
    full = images.mask.sum(dim=1) == 5  # a maximum over more regions may be as good for fewer words
    assert (scores.argmax(dim=0) == torch.arange(6))[full].all()


def test_a_head_that_does_not_say_how_it_compares_is_refused():
    class Own(Head):
        def compare(self, images, captions, region_mask=None, word_mask=None):
            return images.sum(dim=(1, 2))[:, None] + captions.sum(dim=(1, 2))

    images = EncodedSet(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="Own compares images with captions in a way of its own"):
        score_like(Own(), images, images)


@pytest.fixture
def found(tmp_path):
    torch.manual_seed(0)
    image, text = {"name": "regions", "input_dim": 4, "dim": 8}, {"name": "gru", "dim": 8, "word_dim": 4}
    matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
    with RegionStoreWriter(tmp_path / "test.h5", dim=4, extractor="by hand") as writer:
        for name in "abcdef":
            writer.write(name, torch.randn(3, 4))
    return matcher, RegionStore(tmp_path / "test.h5")


def test_search_composes_parts(found):
    matcher, store = found
    plain, without, both = (
        retrieve(matcher, store, [text], top=6, like=like)[0]
        for text, like in (("a dog", ()), ("a dog NOT a cat", ()), ("a dog", ("b",)))
    )
    scores = dict(zip(plain.image_ids, plain.scores, strict=True))
    dog, cat = matcher.score_all(store, ["a dog", "a cat"]).T
    assert scores == pytest.approx(dict(zip(store.image_id, dog.tolist(), strict=True)), abs=1e-6)
    combined = combine_scores(dog[None], cat[None])
    assert without.image_ids == [store.image_id[int(image)] for image in combined.argsort(descending=True)]
    images = matcher.embed_store(store)
    alike = score_like(matcher.head, images, EncodedSet(images.items[1:2], images.mask[1:2]))
    combined = combine_scores(torch.stack([dog, alike[:, 0]]))
    assert both.image_ids == [store.image_id[int(image)] for image in combined.argsort(descending=True)]
    (alone,) = retrieve(matcher, store, [""], top=1, like=["b"])
    assert alone.image_ids == ["b"]
    with pytest.raises(KeyError, match="no image 'z' to be like among the 6 images"):
        retrieve(matcher, store, ["a dog"], like=["z"])


def test_search_gives_probabilities_to_plain_sentences(found):
    matcher, store = found
    calibration = Calibration(2.0, 30.0, -1.0, -3.0)
    plain, without = retrieve(matcher, store, ["a dog", "a dog NOT a cat"], top=4, calibration=calibration)
    assert plain.probability == pytest.approx(calibration.probability(torch.tensor(plain.scores), images=6).tolist())
    assert without.probability is None
