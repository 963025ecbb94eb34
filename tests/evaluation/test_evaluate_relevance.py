"""Retrieval with many right answers against its definition, spelled out, and against the eccv-caption package."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.evaluation import evaluate_protocol, evaluate_relevance, evaluate_retrieval, retrieval_ranks
from xmodal.evaluation.hubs import occurrences
from xmodal.evaluation.plausible import evaluate_plausible
from xmodal.evaluation.ranks import retrieval_metrics
from xmodal.evaluation.relevance import Relevance, answer_ranks, evaluate_direction
from xmodal.evaluation.reranking import rerank

GRADES = st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0])


@st.composite
def judged_scores(draw):
    """Scores with many ties, and a table of grades: some queries with many right answers, some with none."""
    images, captions = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    grades = draw(st.lists(GRADES, min_size=images * captions, max_size=images * captions).filter(any))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randint(draw(st.sampled_from([1, 2, 4, 1000])), (images, captions), generator=generator) / 4 - 1
    return scores, torch.tensor(grades, dtype=torch.float64).reshape(images, captions)


def as_relevance(grades):
    image, caption = grades.nonzero(as_tuple=True)
    return Relevance(image, caption, grades[image, caption], *grades.shape)


def ranked_grades(scores, grades):
    """The grades of a query's answers in the order of retrieval, the worst order of what is equal."""
    return [grade for _, grade in sorted(zip(scores, grades, strict=True), key=lambda pair: (-pair[0], pair[1]))]


def slow_direction(scores, grades):
    """The published definitions, query by query."""
    values = {name: [] for name in ("R@1", "R@5", "R@10", "rank", "R-precision", "mAP@R", "nDCG")}
    for row, graded in zip(scores.tolist(), grades.tolist(), strict=True):
        found = ranked_grades(row, graded)
        right = sum(grade > 0 for grade in found)
        if not right:
            continue
        for k in (1, 5, 10):
            values[f"R@{k}"].append(any(found[:k]))
        values["rank"].append(1 + next(at for at, grade in enumerate(found) if grade))
        values["R-precision"].append(sum(grade > 0 for grade in found[:right]) / right)
        precisions = [sum(g > 0 for g in found[: at + 1]) / (at + 1) if found[at] else 0 for at in range(right)]
        values["mAP@R"].append(sum(precisions) / right)
        gains, ideal = (
            sum(grade / math.log2(at + 2) for at, grade in enumerate(order))
            for order in (found, sorted(found, reverse=True))
        )
        values["nDCG"].append(gains / ideal)
    ranks = values.pop("rank")
    means = {name: 100 * sum(numbers) / len(numbers) for name, numbers in values.items()}
    median = sorted(ranks)[(len(ranks) - 1) // 2] + sorted(ranks)[len(ranks) // 2]
    return {**means, "MedR": median // 2, "MeanR": sum(ranks) / len(ranks), "queries": len(ranks)}


@given(judged_scores(), st.sampled_from([1, 2, None]), st.sampled_from([torch.float64, torch.bfloat16, torch.float32]))
def test_all_numbers_equal_the_definition(problem, block, dtype):
    scores, grades = problem
    scores = scores.to(dtype)
    result = evaluate_relevance(scores, as_relevance(grades), block=block)
    for direction, oriented, graded in (("i2t", scores, grades), ("t2i", scores.T, grades.T)):
        assert result[direction] == pytest.approx(slow_direction(oriented.double(), graded))
    assert result["rsum"] == pytest.approx(sum(result[d][f"R@{k}"] for d in ("i2t", "t2i") for k in (1, 5, 10)))


@given(judged_scores())
def test_scores_of_any_kind(problem):
    scores, grades = problem
    relevance, whole = as_relevance(grades), (4 * scores).int()
    assert evaluate_relevance(whole, relevance) == evaluate_relevance(scores, relevance)
    infinite = scores.masked_fill(scores < 0, float("-inf"))
    assert evaluate_relevance(infinite, relevance)["i2t"] == pytest.approx(slow_direction(infinite, grades))


@given(judged_scores())
def test_where_all_are_answered_the_ranks_are_those_of_retrieval(problem):
    scores, grades = problem
    grades[:, 0] = grades[0] = 1.0
    relevance = as_relevance(grades)
    wanted, found = evaluate_retrieval(scores, relevance), evaluate_relevance(scores, relevance)
    for direction in ("i2t", "t2i"):
        assert {name: found[direction][name] for name in wanted[direction]} == wanted[direction]
    assert found["rsum"] == wanted["rsum"]


@given(judged_scores())
def test_retrieval_ranks_of_several_images_a_caption_equal_the_definition(problem):
    scores, grades = problem
    grades[:, 0] = grades[0] = 1.0
    ranks = retrieval_ranks(scores, as_relevance(grades), block=2)
    for found, oriented, graded in ((ranks.i2t, scores, grades), (ranks.t2i, scores.T, grades.T)):
        for rank, row, right in zip(found.tolist(), oriented.tolist(), (graded > 0).tolist(), strict=True):
            best = max(score for score, is_right in zip(row, right, strict=True) if is_right)
            assert rank == 1 + sum(s >= best for s, is_right in zip(row, right, strict=True) if not is_right)


def test_an_index_and_its_relevance_are_one():
    scores, index = torch.randn(4, 9), torch.arange(9) % 4
    relevance = Relevance.from_caption_image(index)
    assert evaluate_retrieval(scores, index) == evaluate_retrieval(scores, relevance)
    assert evaluate_relevance(scores, index) == evaluate_relevance(scores, relevance)
    assert evaluate_retrieval(scores, index) == retrieval_metrics(retrieval_ranks(scores, relevance))


def test_the_formulas_of_the_eccv_caption_package():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like ujson
        metrics = pytest.importorskip("eccv_caption._metrics")
    scores = torch.rand(12, 40, generator=torch.Generator().manual_seed(0))
    grades = (torch.rand(12, 40, generator=torch.Generator().manual_seed(1)) < 0.2).double()
    result = evaluate_relevance(scores, as_relevance(grades))
    for direction, oriented, graded in (("i2t", scores, grades), ("t2i", scores.T, grades.T)):
        retrieved = {query: row.argsort(descending=True).tolist() for query, row in enumerate(oriented)}
        right = {query: row.nonzero().flatten().tolist() for query, row in enumerate(graded) if row.any()}
        published = metrics.compute_eccv_metrics(retrieved, right)
        assert result[direction]["mAP@R"] == pytest.approx(100 * published["eccv_map_at_r"])
        assert result[direction]["R-precision"] == pytest.approx(100 * published["eccv_rprecision"])
        assert result[direction]["R@1"] == pytest.approx(100 * published["eccv_r1"])
        for k in (1, 5, 10):
            assert result[direction][f"R@{k}"] == pytest.approx(100 * metrics.compute_r_at_k(retrieved, right, k))


@pytest.mark.bad_input
def test_what_cannot_be_evaluated_is_named():
    relevance = Relevance([0], [1], None, images=2, captions=3)
    with pytest.raises(ValueError, match="no pair that belongs together"):
        evaluate_relevance(torch.zeros(2, 3), Relevance([], [], None, images=2, captions=3))
    with pytest.raises(ValueError, match=r"2 images and 3 captions, and the scores of 3 and 2 .*transpose"):
        evaluate_relevance(torch.zeros(3, 2), relevance)
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        evaluate_relevance(torch.zeros(2, 3), relevance, block=0)
    with pytest.raises(ValueError, match=r"image 1 has no caption \(1 of 2 images .*evaluate_relevance"):
        evaluate_retrieval(torch.zeros(2, 3), relevance)
    with pytest.raises(ValueError, match=r"caption 2 has no image \(1 of 3 captions"):
        evaluate_retrieval(torch.zeros(2, 3), Relevance([0, 1], [0, 1], None, images=2, captions=3))
    for image, caption in ((0, 2), (1, 1)):
        scores = torch.zeros(2, 3)
        scores[image, caption] = torch.nan
        with pytest.raises(ValueError, match=f"image {image} and caption {caption} is NaN"):
            evaluate_relevance(scores, relevance)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "ask",
    [
        lambda scores, direction: evaluate_direction(scores, Relevance.from_caption_image([0, 1]), direction),
        lambda scores, direction: list(answer_ranks(scores, Relevance.from_caption_image([0, 1]), direction)),
        lambda scores, direction: occurrences(scores, direction, k=1),
        lambda scores, direction: rerank(scores, direction),
        lambda scores, direction: evaluate_plausible(
            scores, shown=scores > 0, caption_image=torch.arange(2), direction=direction
        ),
    ],
)
def test_there_are_two_directions(ask):
    with pytest.raises(ValueError, match="direction is 't2t'; wanted i2t, images that look for captions, or t2i"):
        ask(torch.eye(2), "t2t")


UNUSUAL = [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", [*UNUSUAL, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_any_real_type_ranks_as_float64(dtype):
    levels = {torch.bool: 2, torch.float8_e5m2: 5}.get(dtype, 12)  # as many as it holds
    scores = torch.randint(levels, (6, 9), generator=torch.Generator().manual_seed(0)).double()
    caption_image = torch.arange(9) % 6
    given = scores.to(dtype)
    assert given.double().equal(scores)
    for evaluate in (evaluate_relevance, evaluate_retrieval, evaluate_protocol):
        assert evaluate(given, caption_image) == evaluate(scores, caption_image)
    for direction in ("i2t", "t2i"):
        judgements = Relevance.from_caption_image(caption_image)
        expected = evaluate_direction(scores, judgements, direction)
        assert evaluate_direction(given, judgements, direction) == expected
        assert occurrences(given, direction, k=2).equal(occurrences(scores, direction, k=2))
        assert rerank(given, direction).argsort(stable=True).equal(rerank(scores, direction).argsort(stable=True))


@pytest.mark.bad_input
def test_what_has_no_order_is_refused():
    with pytest.raises(ValueError, match=r"scores are torch\.complex64; wanted real numbers"):
        evaluate_relevance(torch.eye(2).to(torch.complex64), torch.arange(2))
    large = torch.from_numpy(np.array([[2**63, 1], [1, 2]], dtype=np.uint64))
    with pytest.raises(ValueError, match=r"scores are torch.uint64 above 2\^63"):
        evaluate_retrieval(large, torch.arange(2))
