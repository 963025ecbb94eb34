"""What cannot be meant is refused in a line that says what is wanted; nothing is lost, guessed or made up for it."""

from __future__ import annotations

import datetime
from collections import UserList

import numpy as np
import pytest
import torch

from tests.search.test_index import MaxSim, make_matcher
from tests.tiny_data import THINGS
from xmodal.data import Caption, RegionStore, RegionStoreWriter
from xmodal.heads import SCAN, Cosine
from xmodal.scoring import shortlist
from xmodal.search.composed import find_composed
from xmodal.search.engines.cluster import Cluster
from xmodal.search.index import Index
from xmodal.search.queries import Query
from xmodal.search.retrieve import retrieve

IDS = ["1", "2", "12", *THINGS]
CAPTIONS = [Caption("7", "0", "a dog", "test"), Caption("8", "1", "a cat", "test")]


class Undefined(MaxSim):
    """A head whose score of the last image is no number."""

    def compare(self, images, captions, region_mask=None, word_mask=None):
        scores = super().compare(images, captions, region_mask, word_mask).clone()
        scores[-1] = float("nan")
        return scores


class Letters:
    """A search engine that names one id where a list is wanted."""

    def candidates(self, query_words, k):
        return "12"


class Overflowing:
    """A source of finite features of which one image's are too large for float32 to sum."""

    def __init__(self, store, image):
        self.store, self.image = store, image
        self.image_id, self.sizes, self.extractor = store.image_id, store.sizes, store.extractor

    def __len__(self):
        return len(self.store)

    def batch(self, indices):
        batch, at = self.store.batch(indices), [self.image_id[int(index)] for index in indices]
        if self.image in at:
            batch.regions[at.index(self.image)] = 3e38
        return batch


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("store") / "s.h5"
    with RegionStoreWriter(path, dim=8, extractor="by hand") as writer:
        for name in IDS:
            writer.write(name, torch.randn(4, 8))
    return RegionStore(path)


@pytest.fixture(scope="module")
def scan(store, tmp_path_factory):
    matcher = make_matcher({"name": "scan"})
    return matcher, Index.build(matcher, store, tmp_path_factory.mktemp("index") / "i")


def test_one_string_is_no_list_of_ids(scan, store):
    matcher, index = scan
    with pytest.raises(ValueError, match=r"ids is the string '12'; wanted a list of ids, \['12'\]"):
        index.remove("12")
    assert index.ids == Index.open(index.path).ids
    assert len(index) == len(IDS)
    for ask in (
        lambda: retrieve(matcher, store, ["a dog"], like="cat"),
        lambda: Query(like="cat"),  # type: ignore[arg-type]
        lambda: Query.parse("a dog", like="cat"),
        lambda: index.search(matcher, "a dog", engine=Letters()),
        lambda: index.search(matcher, "a dog", filter="12"),
    ):
        with pytest.raises(ValueError, match=r"is the string '(12|cat)'; wanted a list of ids"):
            ask()


def test_one_string_is_no_list_of_sentences(scan, store, tmp_path):
    matcher, index = scan
    for ask in (
        lambda: retrieve(matcher, store, "a cat"),
        lambda: Query(wanted="a cat"),  # type: ignore[arg-type]
        lambda: Query(wanted=("a dog",), unwanted="a cat"),  # type: ignore[arg-type]
        lambda: index.find(matcher, "a cat"),
        lambda: index.measure(matcher, "a cat"),
        lambda: Index.build(matcher, store, tmp_path / "i", queries="a cat"),
    ):
        with pytest.raises(ValueError, match=r"is the string 'a cat'; wanted a list of"):
            ask()
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("head", [{"name": "scan"}, {"name": "cosine"}, {"name": "tests.search.test_index:MaxSim"}])
def test_an_item_whose_vectors_are_no_numbers_is_named(head, store, tmp_path):
    matcher, source = make_matcher(head), Overflowing(store, "12")
    with pytest.raises(ValueError, match="image '12' is embedded as a vector of length"):
        Index.build(matcher, source, tmp_path / "i")
    index = Index.build(matcher, store, tmp_path / "j")
    index.remove(["12"])
    source.image_id = [f"new {name}" for name in IDS]
    source.image = "new 12"
    with pytest.raises(ValueError, match="image 'new 12' is embedded as a vector of length"):
        index.add(matcher, source)
    assert len(Index.open(index.path)) == len(IDS) - 1


def test_a_query_whose_vectors_are_no_numbers_is_refused(store, tmp_path):
    for head in ({"name": "scan"}, {"name": "cosine"}):
        matcher = make_matcher(head)
        with torch.no_grad():
            next(matcher.text_encoder.parameters()).fill_(float("nan"))
        index = Index.build(matcher, store, tmp_path / head["name"])
        with pytest.raises(ValueError, match="query 0 is embedded as a vector of length nan"):
            index.search(matcher, "a dog")
        with pytest.raises(ValueError, match="query 0 is embedded as a vector of length nan"):
            find_composed(index, matcher, [Query.parse("a dog NOT a cat")])
        with pytest.raises(ValueError, match=r"the score of image '1' with 'a dog' is NaN"):
            retrieve(matcher, store, ["a dog"])


def test_a_score_that_is_no_number_ranks_nothing(store, scan, tmp_path):
    matcher = make_matcher({"name": "tests.search.test_refusals:Undefined"})
    index = Index.build(matcher, store, tmp_path / "i")
    with pytest.raises(ValueError, match=f"the score of '{IDS[-1]}' is NaN"):
        index.search(matcher, "a dog")
    with pytest.raises(ValueError, match=f"the score of image '{IDS[-1]}'.* is NaN"):
        find_composed(index, matcher, [Query.parse("a dog")])
    matcher, index = scan
    wrong = {"mine": torch.full((3, 16), float("nan"))}
    with pytest.raises(ValueError, match="vector 0 of example 'mine' is embedded as a vector of length nan"):
        find_composed(index, matcher, [Query.parse("a dog", like=["mine"])], examples=wrong)


@pytest.mark.parametrize("head", [SCAN(), Cosine()], ids=str)
def test_a_shortlist_names_who_has_no_finite_vector(head):
    regions, words = torch.randn(9, 5, 16), torch.randn(4, 3, 16)
    for kind, inputs in (("image 2", (regions.clone(), words)), ("caption 2", (regions, words.clone()))):
        inputs[kind.startswith("caption")][2, 1, 0] = float("nan")
        for wanted in ("images", "captions"):
            with pytest.raises(ValueError, match=f"{kind} is embedded as a vector of length nan"):
                shortlist(head, *inputs, k=3, wanted=wanted)


def test_a_query_is_one_image(store, scan, tmp_path):
    matcher, _ = scan
    index = Index.build(matcher, CAPTIONS, tmp_path / "i")
    cluster = Cluster.build(index, tmp_path / "c.json", [{"name": "folder", "path": str(tmp_path / "disk")}])
    two = store.batch([0, 1])
    for searched in (index, cluster):
        assert len(searched.search(matcher, [store[0], store[1]])) == 2
        assert searched.search(matcher, store.batch([1])) == searched.search(matcher, store[1])
        for wrong in (two, [two], [two, store[0]]):
            with pytest.raises(ValueError, match=r"queries hold . images; wanted one image a query"):
                searched.search(matcher, wrong)
        with pytest.raises(ValueError, match="queries is one RegionBatch; wanted a list"):
            searched.find(matcher, two)
    for look in (matcher.attention, matcher.explain):
        with pytest.raises(ValueError, match="a batch of 2 images was given; wanted one"):
            look(two, "a dog")


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"zzz": {"license": "x"}}, r"metadata is .*of 'zzz', which is not among the ids"),
        ({1: {"license": "x"}}, r"metadata is .*of 1, which is not among the ids"),
        ({"1": "CC0"}, r"metadata of '1' is 'CC0'; wanted a mapping by name"),
        ({"1": {3: "CC0"}}, r"metadata of '1' is .* wanted a mapping by name"),
        ({"1": {"year": np.int64(3)}}, r"metadata of '1' is .* cannot be kept as JSON"),
        ({"1": {"day": datetime.date(2020, 1, 1)}}, r"metadata of '1' is .* cannot be kept as JSON"),
        ({"1": {"length": float("nan")}}, r"metadata of '1' is .* cannot be kept as JSON"),
        (["CC0"], r"wanted a mapping by id"),
    ],
)
def test_metadata_that_would_be_lost_is_refused_before_anything_is_embedded(
    metadata, told, scan, store, tmp_path, monkeypatch
):
    matcher, index = scan
    monkeypatch.setattr("xmodal.search.index.embedded_blocks", lambda *_, **__: pytest.fail("embedded"))
    with pytest.raises(ValueError, match=told):
        Index.build(matcher, store, tmp_path / "i", metadata=metadata)
    with pytest.raises(ValueError, match=r"already|metadata"):
        index.add(matcher, store, metadata=metadata)


def test_metadata_of_captions_does_not_replace_what_the_index_keeps(scan, tmp_path):
    matcher, _ = scan
    for name in ("caption", "image_id"):
        with pytest.raises(ValueError, match=f"names '{name}', which an index of captions keeps itself"):
            Index.build(matcher, CAPTIONS, tmp_path / "i", metadata={"0": {name: "999"}})
    index = Index.build(matcher, CAPTIONS, tmp_path / "i", metadata={"0": {"by": "me"}})
    assert index.metadata("0") == {"by": "me", "caption": "a dog", "image_id": "7"}
    assert index.metadata("1") == {"by": None, "caption": "a cat", "image_id": "8"}


def test_a_filter_may_be_a_set_where_metadata_are_lists(scan, store, tmp_path):
    matcher, _ = scan
    index = Index.build(matcher, store, tmp_path / "i", metadata={"1": {"tags": ["x"]}, "2": {"tags": "y"}})
    assert [hit.image_id for hit in index.search(matcher, "a dog", filter={"tags": {"y", "z"}})] == ["2"]
    assert index.search(matcher, "a dog", filter={"tags": {"x"}}) == []


def test_numbers_are_whole(scan, store):
    matcher, index = scan
    for ask in (
        lambda: index.search(matcher, "a dog", k=2.5),
        lambda: index.search(matcher, "a dog", rescored=2.5),
        lambda: find_composed(index, matcher, [Query.parse("a dog")], k=2.5),  # type: ignore[arg-type]
        lambda: find_composed(index, matcher, [Query.parse("a dog")], rescored=2.5),  # type: ignore[arg-type]
        lambda: retrieve(matcher, store, ["a dog"], top=2.5),  # type: ignore[arg-type]
        lambda: shortlist(SCAN(), torch.randn(3, 5, 4), torch.randn(2, 3, 4), k=2.5),  # type: ignore[arg-type]
        lambda: list(index.embedded(2.5)),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"must be a whole number, got 2\.5"):
            ask()
    assert len(index.search(matcher, "a dog", k=np.int64(2))) == 2


def test_options_that_cannot_be_are_refused_before_an_index_is_built(scan, store, tmp_path):
    matcher, _ = scan
    for options, told in (
        ({"cells": -1}, "cells must be at least 0, got -1"),
        ({"cells": 1.5}, "cells must be a whole number"),
        ({"bits": 4, "queries": ["a dog"]}, "takes bits=8"),
        ({"queries": ["a dog", ""]}, "has no words"),
    ):
        with pytest.raises(ValueError, match=told):
            Index.build(matcher, store, tmp_path / "i", **options)
        assert not (tmp_path / "i").exists()


def test_ids_that_an_index_cannot_keep_are_not_in_it(scan, tmp_path):
    matcher, index = scan
    for name in ("1\0", "\0", "", "\ud800", 1, None):
        assert name not in index
        with pytest.raises(KeyError):
            index.metadata(name)  # type: ignore[arg-type]
    for name in ("", "a\0", "\ud800"):
        with pytest.raises(ValueError, match="cannot be kept in an index"):
            Index.build(matcher, [Caption("7", name, "a dog", "test")], tmp_path / "i")


def test_an_empty_query_is_refused_where_nothing_can_be_found(scan):
    matcher, index = scan
    assert index.search(matcher, "a dog", filter=[]) == []
    with pytest.raises(ValueError, match="has no words"):
        index.find(matcher, [""], filter=[])


def test_an_emptied_index_gives_nothing(store, tmp_path):
    matcher = make_matcher({"name": "scan"})
    index = Index.build(matcher, store, tmp_path / "i")
    index.remove(index.ids)
    assert list(index.embedded()) == []
    assert find_composed(index, matcher, [Query.parse("a dog NOT a cat")])[0].hits == []
    with pytest.raises(ValueError, match="holds nothing to be found"):
        index.measure(matcher, ["a dog"])
    with pytest.raises(ValueError, match="fewer than there are servers"):
        Cluster.build(index, tmp_path / "c.json", [{"name": "folder", "path": str(tmp_path / "disk")}])


def test_any_sequence_of_captions_is_one(scan, tmp_path):
    matcher, _ = scan
    index = Index.build(matcher, UserList(CAPTIONS), tmp_path / "i")  # type: ignore[arg-type]
    assert sorted(index.ids) == ["0", "1"]
    index.add(matcher, (Caption("9", "2", "a lamp", "test"),))
    assert len(index) == 3
    with pytest.raises(ValueError, match="what is to be indexed is the string 'x'"):
        index.add(matcher, "x")  # type: ignore[arg-type]


def test_vectors_that_are_not_kept_are_made_again_by_the_matcher_that_is_given(scan, store, tmp_path):
    matcher, kept = scan
    Index.build(matcher, store, tmp_path / "i", floats=False)
    index, disk = Index.open(tmp_path / "i", source=store), [{"name": "folder", "path": str(tmp_path / "disk")}]
    for ask in (lambda: list(index.embedded()), lambda: Cluster.build(index, tmp_path / "c.json", disk)):
        with pytest.raises(ValueError, match=r"pass the matcher that makes them again, matcher="):
            ask()
    with pytest.raises(ValueError, match="built with another model"):
        list(index.embedded(matcher=make_matcher({"name": "scan"}, seed=1)))
    (again,), (wanted,) = index.embedded(matcher=matcher), kept.embedded()
    assert again.ids == wanted.ids
    assert torch.allclose(again.vectors, wanted.vectors, atol=1e-6)
    cluster = Cluster.build(Index.open(tmp_path / "i", source=store), tmp_path / "c.json", disk, matcher=matcher)
    assert len(cluster) == len(IDS)
