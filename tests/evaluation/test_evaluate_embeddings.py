"""Retrieval and clustering by class, against plain loops, pytorch-metric-learning and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import xmodal.evaluation.neighbors as module
from xmodal.evaluation.labelled import (
    evaluate_embeddings,
    kmeans_clusters,
    nearest_neighbors,
    normalized_mutual_information,
    pair_f1,
)

RETRIEVAL = ("R@1", "R@2", "R-precision", "mAP@R")


def random_set(seed, images, classes, dim=3):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(images, dim, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(0, classes, (images,), generator=generator) * 7


def looped(embeddings, labels, query=None, ks=(1, 2)):
    """One query at a time, its neighbors sorted by distance and then wrong ones first."""
    points, labels = torch.nn.functional.normalize(embeddings).numpy(), labels.tolist()
    images = range(len(labels))
    rows = []
    for q in images if query is None else [i for i in images if query[i]]:
        others = [i for i in images if (i != q if query is None else not query[i])]
        distance = {i: round(float(np.sum((points[q] - points[i]) ** 2)), 9) for i in others}
        hits = [labels[i] == labels[q] for i in sorted(others, key=lambda i: (distance[i], labels[i] == labels[q]))]
        right = sum(hits)
        if right:
            precisions = [sum(hits[: n + 1]) / (n + 1) for n in range(right) if hits[n]]
            rows.append([*(any(hits[:k]) for k in ks), sum(hits[:right]) / right, sum(precisions) / right])
    return dict(zip(RETRIEVAL, 100 * np.mean(rows, axis=0), strict=True))


@given(seed=st.integers(0, 999), images=st.integers(8, 40), classes=st.integers(1, 6), gallery=st.booleans())
def test_retrieval_equals_a_loop(seed, images, classes, gallery):
    embeddings, labels = random_set(seed, images, classes)
    embeddings[1::3] = embeddings[0]  # many ties
    query = torch.arange(images) % 2 == 0 if gallery else None
    labels[1] = labels[0]  # someone can be found
    metrics = evaluate_embeddings(embeddings, labels, query=query, ks=(1, 2), kmeans=False)
    for name, value in looped(embeddings, labels, query).items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name


def test_as_pytorch_metric_learning_has_it():
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    embeddings, labels = random_set(0, 500, 40, dim=8)
    embeddings = torch.nn.functional.normalize(embeddings.float())
    labels[0] = 10_000  # a lone query
    names = {"precision_at_1": "R@1", "r_precision": "R-precision", "mean_average_precision_at_r": "mAP@R"}
    theirs = accuracy.AccuracyCalculator(include=tuple(names), k="max_bin_count", device=torch.device("cpu"))
    ours = evaluate_embeddings(embeddings, labels, kmeans=False)
    for name, value in theirs.get_accuracy(embeddings, labels).items():
        assert ours[names[name]] == pytest.approx(100 * value), name
    assert ours["lone_queries"] == 1

    query = torch.arange(500) < 200
    ours = evaluate_embeddings(embeddings, labels, query=query, kmeans=False)
    of_gallery = (embeddings[query], labels[query], embeddings[~query], labels[~query])
    for name, value in theirs.get_accuracy(*of_gallery).items():
        assert ours[names[name]] == pytest.approx(100 * value), name


@given(seed=st.integers(0, 999), images=st.integers(2, 60), classes=st.integers(1, 6), clusters=st.integers(1, 6))
def test_clustering_scores_equal_those_of_scikit_learn(seed, images, classes, clusters):
    cluster_metrics = pytest.importorskip("sklearn.metrics.cluster")
    labels, found = random_set(seed, images, classes)[1], random_set(seed + 1, images, clusters)[1]
    wanted = cluster_metrics.normalized_mutual_info_score(labels, found)
    assert normalized_mutual_information(labels, found) == pytest.approx(wanted, abs=1e-9)
    (_, false_positive), (false_negative, positive) = cluster_metrics.pair_confusion_matrix(labels, found)
    pairs = 2 * positive + false_positive + false_negative
    assert pair_f1(labels, found) == pytest.approx(2 * positive / pairs if pairs else 0)


def test_pairs_are_counted_one_by_one():
    labels, clusters = random_set(3, 30, 4)[1], random_set(4, 30, 5)[1]
    pairs = list(itertools.combinations(range(30), 2))
    alike, together = ({p for p in pairs if group[p[0]] == group[p[1]]} for group in (labels, clusters))
    precision, recall = len(alike & together) / len(together), len(alike & together) / len(alike)
    assert pair_f1(labels, clusters) == pytest.approx(2 * precision * recall / (precision + recall))


def test_k_means_finds_what_is_apart():
    centers = 10 * torch.eye(5)
    labels = torch.arange(50) % 5
    embeddings = centers[labels] + 0.01 * torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    best = max(pair_f1(labels, kmeans_clusters(embeddings, 5, seed)) for seed in range(5))
    assert best == 1
    assert torch.equal(kmeans_clusters(embeddings, 5, 3), kmeans_clusters(embeddings, 5, 3))
    assert kmeans_clusters(embeddings, 50).unique().numel() == 50


@pytest.mark.parametrize("dim", [3, 512])
@pytest.mark.parametrize("images", [10, 333])
def test_a_collapsed_embedding_finds_nothing(images, dim):
    embeddings = torch.randn(1, dim).expand(images, dim).contiguous()
    labels = torch.arange(images) // 2
    metrics = evaluate_embeddings(embeddings, labels, ks=(1, 8), kmeans=False)
    assert [metrics[name] for name in ("R@1", "R@8", "R-precision", "mAP@R")] == [0, 0, 0, 0]


def test_distances_may_be_euclidean():
    embeddings, labels = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.1, 0.2], [3.1, 0.1]]), torch.tensor([0, 1, 0, 1])
    assert evaluate_embeddings(embeddings, labels, ks=[1], normalize=False)["R@1"] == 100
    assert evaluate_embeddings(embeddings, labels, ks=[1])["R@1"] == 0


def test_blocks_do_not_matter(monkeypatch):
    embeddings, labels = random_set(5, 60, 6)
    whole = evaluate_embeddings(embeddings, labels)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 130)
    assert evaluate_embeddings(embeddings, labels) == pytest.approx(whole)


def test_a_query_is_not_its_own_neighbor():
    embeddings, labels = random_set(6, 9, 3)
    chosen = torch.tensor([4, 7])
    (found,) = nearest_neighbors(embeddings, labels, chosen, torch.arange(9), count=8)
    assert found.query.tolist() == [4, 7]
    for query, row, correct in zip(chosen.tolist(), found.neighbor, found.correct, strict=True):
        assert sorted(row.tolist()) == [image for image in range(9) if image != query]
        assert torch.equal(correct, labels[row] == labels[query])


def test_the_labels_need_not_be_counted_from_zero():
    embeddings, labels = random_set(7, 30, 4)
    assert evaluate_embeddings(embeddings, labels - 50) == evaluate_embeddings(embeddings, labels)


def test_what_cannot_be_evaluated_is_refused():
    embeddings, labels = random_set(8, 10, 3)
    query = torch.arange(10) < 4
    for arguments, message in (
        ({"embeddings": embeddings[0]}, r"embeddings have shape \(3,\); wanted \(image, dim\)"),
        ({"labels": labels[:4]}, r"labels are torch.int64 of shape \(4,\); wanted an integer for each of the 10"),
        ({"labels": labels.float()}, "labels are torch.float32"),
        ({"query": query[:3]}, r"query is torch.bool of shape \(3,\)"),
        ({"query": query.long()}, "query is torch.int64"),
        ({"ks": (1, 10)}, r"ks are \(1, 10\); wanted levels from 1 to 9"),
        ({"ks": (1, 8), "query": query}, "wanted levels from 1 to 6"),
        ({"ks": ()}, r"ks are \(\)"),
        ({"ks": (0,)}, r"ks are \(0,\)"),
        ({"ks": (1.5,)}, r"ks are \(1.5,\); wanted whole numbers"),
        ({"labels": [None] * 10}, r"labels are object of shape \(10,\)"),
        ({"embeddings": embeddings + 1j}, "embeddings are torch.complex128; wanted real numbers"),
        ({"labels": torch.arange(10)}, "none of the 10 queries has an image of its class"),
        ({"query": query, "labels": query.long()}, "none of the 4 queries"),
        ({"embeddings": embeddings.index_fill(0, torch.tensor([6]), torch.nan)}, "embedding of image 6 is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_embeddings(**{"embeddings": embeddings, "labels": labels, "ks": (1,), **arguments})


@pytest.mark.parametrize("kind", [str, bytes, bool, "uint8", "uint16", "uint64", "int16"])
def test_labels_of_any_kind(kind):
    """Texts, numbers of any size and booleans name classes alike."""
    labels = np.repeat([0, 1], 5)
    named = (
        np.array([f"class {label}" for label in labels]).astype(kind) if kind in (str, bytes) else labels.astype(kind)
    )
    embeddings = np.random.default_rng(0).random((10, 3))
    wanted = evaluate_embeddings(embeddings, labels)
    assert evaluate_embeddings(embeddings, named) == evaluate_embeddings(embeddings, named.tolist()) == wanted


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.uint8, torch.uint16], ids=str)
def test_any_real_type_and_levels_as_an_array(dtype):
    embeddings, labels = torch.randint(8, (20, 3), generator=torch.Generator().manual_seed(0)), torch.arange(20) // 4
    expected = evaluate_embeddings(embeddings.double(), labels, ks=[1, 2], kmeans=False)
    assert evaluate_embeddings(embeddings.to(dtype), labels, ks=np.array([1, 2]), kmeans=False) == expected
