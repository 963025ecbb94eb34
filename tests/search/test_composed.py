"""Queries of several parts find in an index what they find where every image is scored."""

from __future__ import annotations

import pytest
import torch

from tests.search.test_index import HEADS, make_matcher
from tests.tiny_data import make_data
from xmodal.cli import main
from xmodal.data import RegionStore
from xmodal.encoders.base import EncodedSet
from xmodal.search.composed import example_vectors, find_composed
from xmodal.search.index import Index
from xmodal.search.queries import Query, combine_scores, score_like

QUERIES = [
    Query.parse("a dog NOT a cat"),
    Query.parse("a boat NOT a tree NOT a car"),
    Query.parse("a bird", like=["train-7"]),
    Query.parse("NOT a lamp", like=["train-3", "train-9"]),
    Query(like=("train-5",)),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return RegionStore(make_data(tmp_path_factory.mktemp("data"), train=150) / "train.h5")


def scores_of_everything(matcher, store):
    """The slow way: of each query every image against every part, in float64."""
    images = matcher.embed_store(store)
    # Together, as the index has them: BFAN's mask drops a region or not by the last digit of a word.
    texts = list(dict.fromkeys(text for query in QUERIES for text in (*query.wanted, *query.unwanted)))
    columns = dict(zip(texts, matcher.score_all(store, texts).double().T, strict=True))
    for query in QUERIES:
        wanted = [columns[text] for text in query.wanted]
        for name in query.like:
            one = torch.tensor([store.image_id.index(name)])
            example = EncodedSet(images.items[one], images.mask[one])
            wanted.append(score_like(matcher.head, images, example)[:, 0].double())
        unwanted = [columns[text] for text in query.unwanted]
        yield combine_scores(torch.stack(wanted), torch.stack(unwanted) if unwanted else None)


@pytest.mark.parametrize("head", ["scan t2i", "scan i2t", "bfan", "cosine"])
def test_the_best_are_those_of_scoring_everything(head, store, tmp_path):
    matcher = make_matcher(HEADS[head])
    index = Index.build(matcher, store, tmp_path / "index")
    # With room for all of them, nothing is left to the compressed vectors; without, the means of the parts are.
    for rescored, nearly in ((len(store), 1e-4), (60, 0.1)):
        found = find_composed(index, matcher, QUERIES, k=5, rescored=rescored)
        for right, answer in zip(scores_of_everything(matcher, store), found, strict=True):
            at = [store.image_id.index(hit.image_id) for hit in answer.hits]
            assert torch.tensor([hit.score for hit in answer.hits]).double().allclose(right[at], atol=nearly)
            assert (right[at] >= right.topk(5).values - nearly).all()
            assert answer.searched == len(store)
            assert answer.rescored == rescored


def test_images_that_are_not_in_the_index_are_examples(store, tmp_path):
    matcher = make_matcher(HEADS["scan t2i"])
    index = Index.build(matcher, store, tmp_path / "index")
    examples = dict(zip(["mine"], example_vectors(matcher, [store.batch([5])]), strict=True))
    (mine,) = find_composed(index, matcher, [Query(like=("mine",))], k=5, examples=examples)
    (theirs,) = find_composed(index, matcher, [Query(like=("train-5",))], k=5)
    assert [hit.image_id for hit in mine.hits] == [hit.image_id for hit in theirs.hits]
    assert mine.hits[0].image_id == "train-5"


def test_what_cannot_be_answered_is_told(store, tmp_path):
    matcher = make_matcher(HEADS["own"])
    index = Index.build(matcher, store, tmp_path / "index")
    with pytest.raises(ValueError, match="compares images with captions in a way of its own"):
        find_composed(index, matcher, [Query(like=("train-5",))])
    with pytest.raises(ValueError, match="compares images with captions in a way of its own"):
        example_vectors(matcher, [store.batch([5])])
    (found,) = find_composed(index, matcher, [Query.parse("a dog NOT a cat")], k=3)
    assert len(found.hits) == 3
    with pytest.raises(ValueError, match="k must be at least 1"):
        find_composed(index, matcher, QUERIES, k=0)
    scan = make_matcher(HEADS["scan t2i"])
    with pytest.raises(ValueError, match="built with another model"):
        find_composed(index, scan, QUERIES)
    with pytest.raises(KeyError, match="no image 'elsewhere' to be like"):
        find_composed(Index.build(scan, store, tmp_path / "scan"), scan, [Query(like=("elsewhere",))])


def test_the_command_line_asks_an_index_for_all_of_it(store, tmp_path, capsys):
    matcher = make_matcher(HEADS["scan t2i"])
    matcher.save_pretrained(tmp_path / "model")
    index = Index.build(matcher, store, tmp_path / "index")
    asked = ["a dog NOT a cat", "a boat"]
    main(["search", str(tmp_path / "model"), *asked, "--index", str(index.path), "--top", "2"])
    first, second = find_composed(index, matcher, [Query.parse(asked[0])], k=2)[0].hits
    best, *_ = index.search(matcher, "a boat", k=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a dog NOT a cat  (100 of 150 scored; recall not measured)"
    assert [line.split() for line in lines[1:3]] == [[f"{hit.score:.3f}", hit.image_id] for hit in (first, second)]
    assert lines[3].startswith("a boat  (certified, ")
    assert lines[4].split() == [f"{best.score:.3f}", best.image_id]
