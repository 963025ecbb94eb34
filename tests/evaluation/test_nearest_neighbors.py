"""Neighbors and the metrics made of them against loops over float64, whatever the embeddings look like."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import xmodal.evaluation.neighbors as module
from xmodal.evaluation.labelled import evaluate_embeddings, kmeans_clusters
from xmodal.evaluation.neighbors import nearest_neighbors

RETRIEVAL = ("R@1", "R@2", "R-precision", "mAP@R")
KINDS = ("plain", "offset", "outliers", "cone", "two cones", "zeros", "equal", "duplicates", "multiples", "lattice")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def embeddings_of(kind, images, dim, seed):
    """Embeddings of a kind that is hard for float32, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 1 + images // 5, (images,), generator=generator)
    labels[1] = labels[0]  # someone can be found
    centers = torch.randn(images, dim, generator=generator, dtype=torch.float64)[labels]
    points = centers + 0.7 * torch.randn(images, dim, generator=generator, dtype=torch.float64)
    place, away = torch.arange(images), torch.rand(dim, generator=generator, dtype=torch.float64) + 1
    if kind == "offset":
        points += 1000
    elif kind == "outliers":
        points[::7] *= 1e6
    elif kind == "cone":
        points = away + 1e-4 * points
    elif kind == "two cones":
        away = torch.stack([away, away * (-1.0) ** torch.arange(dim)])
        points = away[place // 2 % 2] + 1e-6 * points
    elif kind == "zeros":
        points[::3] = 0
    elif kind == "equal":
        points[:] = points[0].clone()
    elif kind == "duplicates":
        points = points[place % 4]
    elif kind == "multiples":
        points = points[place % 6] * 2.0 ** (place % 5)[:, None]
    elif kind == "lattice":
        points = points.round()
    return points, labels


def distances(embeddings, normalize):
    """Squared distances of all pairs, one by one."""
    points = embeddings.double().tolist()
    if normalize:
        lengths = [math.hypot(*point) or 1.0 for point in points]
        points = [[x / length for x in point] for point, length in zip(points, lengths, strict=True)]
    return [[math.fsum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for p in points] for q in points]


def looped(embeddings, labels, query, normalize):
    """One query at a time, its neighbors sorted by distance, wrong ones first where rounding may have parted equals."""
    square, labels = distances(embeddings, normalize), labels.tolist()
    images = range(len(labels))
    rows = []
    for q in images if query is None else [i for i in images if query[i]]:
        others = [i for i in images if (i != q if query is None else not query[i])]
        late = [(d**0.5 * (1 + 1e-15) + 1e-15 * normalize) ** 2 for d in square[q]]
        key = {i: (late[i], True) if labels[i] == labels[q] else (square[q][i], False) for i in others}
        hits = [labels[i] == labels[q] for i in sorted(others, key=key.__getitem__)]
        right = sum(hits)
        if right:
            precisions = [sum(hits[: n + 1]) / (n + 1) for n in range(right) if hits[n]]
            rows.append([hits[0], any(hits[:2]), sum(hits[:right]) / right, sum(precisions) / right])
    return dict(zip(RETRIEVAL, 100 * np.mean(rows, axis=0), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=st.integers(0, 999),
    images=st.integers(8, 60),
    dim=st.sampled_from([2, 5, 32]),
    scale=st.sampled_from([-60, 0, 60, 400]),
    dtype=st.sampled_from(DTYPES),
    gallery=st.booleans(),
    normalize=st.booleans(),
)
def test_metrics_are_those_of_a_loop_over_float64(kind, seed, images, dim, scale, dtype, gallery, normalize):
    points, labels = embeddings_of(kind, images, dim, seed)
    if dtype == torch.float64 or (dtype == torch.float32 and abs(scale) <= 60):
        points = points * 2.0**scale
    embeddings = points.clamp(-60_000, 60_000).to(dtype) if dtype == torch.float16 else points.to(dtype)
    query = torch.arange(images) % 2 == 0 if gallery else None
    options = {"query": query, "normalize": normalize}
    metrics = evaluate_embeddings(embeddings, labels, ks=(1, 2), kmeans=False, **options)
    for name, value in looped(embeddings, labels, **options).items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name


def test_a_common_offset_changes_nothing():
    labels = torch.arange(20).repeat_interleave(6)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(20, 16, generator=generator)[labels] + 0.6 * torch.randn(120, 16, generator=generator)
    for offset in (0, 1000):
        metrics = evaluate_embeddings(embeddings + offset, labels, normalize=False, kmeans=False)
        assert (metrics["R@1"], round(metrics["mAP@R"], 1)) == (95.0, 81.6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-30, 7.0])
def test_equal_embeddings_find_nothing(value, normalize):
    embeddings, labels = torch.full((120, 16), value), torch.arange(120) // 6
    metrics = evaluate_embeddings(embeddings, labels, normalize=normalize, kmeans=False)
    assert {metrics[name] for name in ("R@1", "R@8", "R-precision", "mAP@R")} == {0.0}


def test_multiples_of_a_vector_tie_by_cosine():
    direction = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    embeddings = torch.stack([direction * factor for factor in (1, 3, 1e-20, 0.7, 11, 5e8)])
    metrics = evaluate_embeddings(embeddings, torch.tensor([0, 0, 1, 1, 2, 2]), ks=(1, 4), kmeans=False)
    assert (metrics["R@1"], metrics["R@4"]) == (0.0, 0.0)


def test_neighbors_that_differ_in_float64_only_do_not_tie():
    embeddings = torch.tensor([[0.0], [1.0], [1.0 + 1e-14], [5.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    (found,) = nearest_neighbors(embeddings, labels, torch.tensor([0]), torch.arange(4), count=3)
    assert found.neighbor.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("block", "precision"), [(130, "highest"), (2**22, "high")])
def test_neither_blocks_nor_the_first_format_matter(monkeypatch, kind, block, precision):
    embeddings, labels = embeddings_of(kind, 60, 5, seed=3)
    whole = evaluate_embeddings(embeddings, labels, kmeans=False)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    torch.set_float32_matmul_precision(precision)
    try:
        assert evaluate_embeddings(embeddings, labels, kmeans=False) == pytest.approx(whole)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_of_a_product_is_within_its_bound(kind, dtype):
    embeddings, _ = embeddings_of(kind, 40, 32, seed=1)
    points, everything = module.center(module.as_points(embeddings, normalize=False)).points, torch.arange(40)
    value, error = module._Product(points, everything, dtype, blur=0.0)(everything)
    lengths = [math.fsum(x * x for x in point) for point in points.tolist()]
    for (q, row), x in itertools.product(enumerate(distances(points, normalize=False)), range(40)):
        assert abs(value[q, x].item() - (row[x] - lengths[q])) <= error[q, x].item()


def test_few_equal_points_of_every_class_are_enough():
    labels = torch.arange(3000) % 7
    kept = module._without_surplus(torch.zeros(3000, 2), labels, torch.arange(3000), 20)
    assert kept.tolist() == list(range(42)), "the first of every class, then the second, and so on"
    alone = module._without_surplus(torch.zeros(3000, 2), labels.clamp(max=1), torch.arange(3000), 20)
    assert torch.bincount(labels[alone].clamp(max=1)).tolist() == [21, 21]


@pytest.mark.parametrize("change", [lambda e: e + 1000, lambda e: e * 1e-30, lambda e: e * 1e25, lambda e: e.double()])
def test_clusters_do_not_depend_on_offset_and_scale(change):
    labels = torch.arange(20).repeat_interleave(6)
    embeddings = torch.randint(-50, 50, (20, 16), generator=torch.Generator().manual_seed(0)).float()[labels] / 4
    embeddings += torch.randint(-20, 20, (120, 16), generator=torch.Generator().manual_seed(1)) / 4
    wanted = kmeans_clusters(embeddings, 20)
    assert wanted.unique().numel() == 20
    assert torch.equal(kmeans_clusters(change(embeddings), 20), wanted)


def test_arrays_are_taken_as_tensors_are():
    embeddings, labels = embeddings_of("plain", 40, 5, seed=2)
    query = torch.arange(40) % 2 == 0
    wanted = evaluate_embeddings(embeddings, labels, query=query, ks=(1, 2))
    for mask in (query, query.numpy(), query.tolist()):
        assert evaluate_embeddings(embeddings.numpy(), labels.numpy(), query=mask, ks=(1, 2)) == wanted


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="needs PyTorch 2.9")
def test_a_precision_that_is_told_for_one_device_only():
    """torch then raises when it is asked for that of all."""
    embeddings, labels = embeddings_of(KINDS[0], 30, 5, seed=3)
    whole, before = evaluate_embeddings(embeddings, labels, kmeans=False), torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        assert evaluate_embeddings(embeddings, labels, kmeans=False) == pytest.approx(whole)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
