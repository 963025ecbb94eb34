"""What a search says of itself is true of that search: how many it finds, what is certain, what share it may expect."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from tests.search.test_index import Some, Subset, make_matcher
from tests.tiny_data import make_data
from xmodal.data import RegionStore, RegionStoreWriter, load_captions
from xmodal.search.composed import find_composed
from xmodal.search.engines.cluster import Cluster
from xmodal.search.index import Index
from xmodal.search.queries import Query


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train=120)


@pytest.fixture(scope="module")
def store(data):
    return RegionStore(data / "train.h5")


def test_the_recall_told_is_that_of_a_search_like_the_measured_one(data, store, tmp_path):
    matcher = make_matcher({"name": "scan"})
    index = Index.build(matcher, store, tmp_path / "i", bits=8)
    sentences = [caption.caption for caption in load_captions(data / "captions.jsonl", "train")[:12]]
    claimed = index.measure(matcher, sentences, rescored=20)
    best = matcher.score_all(store, sentences).T.topk(10).indices.tolist()
    found = index.find(matcher, sentences, exact=False, rescored=20, words=False)
    shares = [
        len({store.image_id[image] for image in row} & {hit.image_id for hit in each.hits})
        for row, each in zip(best, found, strict=True)
    ]
    assert claimed == pytest.approx(100 * sum(shares) / (10 * len(shares)), abs=100 / 120)  # one tie may differ
    assert {each.recall for each in found} == {claimed}

    def told(**options):
        (each,) = Index.open(index.path).find(matcher, ["a dog"], exact=False, words=False, **options)
        return each.recall

    assert told(rescored=50) == told(k=30, rescored=1) == claimed
    assert told(rescored=19) is None
    assert told(rescored=20, filter=store.image_id[:60]) is None
    index.remove([])
    assert told(rescored=20) == claimed
    index.add(matcher, Subset(store, range(9)))
    assert told(rescored=20) is None
    index.measure(matcher, sentences, rescored=5)  # ten are scored at least, as ten are wanted
    assert told(k=5, rescored=9) is None
    assert told(k=10, rescored=5) is not None
    index.remove(["new-1"])
    assert told(rescored=20) is None


def test_nothing_is_measured_by_no_query(store, tmp_path):
    matcher = make_matcher({"name": "cosine"})
    index = Index.build(matcher, store, tmp_path / "i")
    with pytest.raises(ValueError, match="there is no query, so that no recall can be measured"):
        index.measure(matcher, [])
    assert Index.open(index.path).manifest.recall is None


def test_of_what_another_engine_left_out_nothing_is_certain(store, tmp_path):
    for head in ("scan", "cosine"):
        matcher = make_matcher({"name": head})
        index = Index.build(matcher, store, tmp_path / head)
        worst = [store.image_id[n] for n in matcher.score_all(store, ["a dog"])[:, 0].argsort()[:5].tolist()]
        hits = index.search(matcher, "a dog", k=2, engine=Some(worst))
        assert not any(hit.certified for hit in hits)


def test_a_cluster_finds_as_many_as_are_wanted(store, tmp_path, monkeypatch):
    monkeypatch.setattr("xmodal.search.engines.cluster.NEAR", 8)
    for head in ("scan", "cosine"):
        matcher = make_matcher({"name": head})
        index = Index.build(matcher, store, tmp_path / head)
        servers = [{"name": "folder", "path": str(tmp_path / f"{head}{number}")} for number in range(2)]
        cluster = Cluster.build(index, tmp_path / f"{head}.json", servers)
        best = matcher.score_all(store, ["a dog"])[:, 0].topk(120).values
        for hits in (
            index.search(matcher, "a dog", k=120, engine=cluster, words=False),
            cluster.search(matcher, "a dog", k=120, near=1, rescored=1).hits,
        ):
            assert len(hits) == len({hit.image_id for hit in hits}) == 120
            if head == "cosine":  # nearest by the product are the best; of attention they need not be
                assert [hit.score for hit in hits] == pytest.approx(best.tolist(), abs=1e-5)


def test_cells_find_as_many_as_are_wanted(store, tmp_path, monkeypatch):
    monkeypatch.setattr("xmodal.search.ranking.SHORTLIST", 20)
    matcher = make_matcher({"name": "scan"})
    index = Index.build(matcher, store, tmp_path / "i", cells=8)
    best = matcher.score_all(store, ["a dog"])[:, 0].topk(70).values
    for exact in (True, False):
        hits = index.search(matcher, "a dog", k=70, exact=exact, words=False)
        assert len(hits) == len({hit.image_id for hit in hits}) == 70
        if exact:
            assert [hit.score for hit in hits] == pytest.approx(best.tolist(), abs=1e-5)


@pytest.fixture
def roughly(monkeypatch):
    """Products in another order of summation, whose last digits are others; here the last two."""
    knn, generator = faiss.knn, np.random.default_rng(0)

    def rough(asked, vectors, count, **options):
        products, places = knn(asked, vectors, len(vectors), **options)
        products = products + generator.uniform(-4e-6, 4e-6, products.shape).astype(np.float32)
        order = (-products).argsort(axis=1)[:, :count]
        return np.take_along_axis(products, order, 1), np.take_along_axis(places, order, 1)

    monkeypatch.setattr(faiss, "knn", rough)


@pytest.mark.parametrize("k", [10, 60])
def test_near_duplicates_are_certified_in_the_order_of_their_scores(k, roughly, tmp_path):
    torch.manual_seed(0)
    base = torch.randn(1, 8)
    with RegionStoreWriter(tmp_path / "s.h5", dim=8, extractor="by hand") as writer:
        for number in range(200):
            writer.write(f"{number:03}", base + 3e-6 * torch.randn(1, 8))
    matcher = make_matcher({"name": "cosine"})
    index = Index.build(matcher, RegionStore(tmp_path / "s.h5"), tmp_path / "i")
    (items,) = index.embedded()
    encoded = matcher.embed_captions(["a dog"])
    query = matcher.head.embed_captions(*encoded)[0].double()
    scores = dict(zip(items.ids, (items.vectors[:, 0].double() @ query).tolist(), strict=True))
    (found,) = index.find(matcher, ["a dog"], k=k)
    assert all(hit.certified for hit in found.hits)
    best = sorted(scores.values(), reverse=True)[:k]
    assert [scores[hit.image_id] for hit in found.hits] == pytest.approx(best, abs=3e-7)
    (short,) = index.find(matcher, ["a dog"], k=k, exact=False)
    assert not any(hit.certified for hit in short.hits)
    (composed,) = find_composed(index, matcher, [Query.parse("a dog")], k=150, rescored=10)
    assert not any(hit.certified for hit in composed.hits)  # the last of those scored is as good as the last wanted
