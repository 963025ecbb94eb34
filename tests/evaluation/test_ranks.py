from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.evaluation import evaluate_retrieval, retrieval_ranks
from xmodal.evaluation.ranks import Ranks, retrieval_metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "s1_metrics.npz"


def slow_ranks(scores: torch.Tensor, caption_image: torch.Tensor) -> tuple[list[int], list[int]]:
    """The definition, spelled out: every positive in turn against every wrong answer."""
    table, relevance = scores.tolist(), caption_image.tolist()
    i2t = []
    for image, row in enumerate(table):
        wrong = [score for caption, score in enumerate(row) if relevance[caption] != image]
        right = [score for caption, score in enumerate(row) if relevance[caption] == image]
        i2t.append(min(1 + sum(other >= score for other in wrong) for score in right))
    t2i = []
    for caption, image in enumerate(relevance):
        wrong = [row[caption] for other, row in enumerate(table) if other != image]
        t2i.append(1 + sum(other >= table[image][caption] for other in wrong))
    return i2t, t2i


@st.composite
def ranking_problems(draw: st.DrawFn, values: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and relevance in any order; few different `values` make many ties."""
    images = draw(st.integers(1, 7))
    extra = draw(st.lists(st.integers(0, images - 1), max_size=12))
    caption_image = torch.tensor(draw(st.permutations([*range(images), *extra])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = values or draw(st.sampled_from([1, 2, 3, 1000]))
    scores = torch.randint(values, (images, len(caption_image)), generator=generator)
    return scores / 7 - 1, caption_image


@given(ranking_problems(), st.sampled_from([1, 2, 3, 100, None]), st.sampled_from([torch.float64, torch.bfloat16]))
def test_ranks_equal_the_definition_for_any_block_and_dtype(problem, block, dtype):
    scores, caption_image = problem[0].to(dtype), problem[1]
    ranks = retrieval_ranks(scores, caption_image, block=block)
    assert (ranks.i2t.tolist(), ranks.t2i.tolist()) == slow_ranks(scores, caption_image)


@given(ranking_problems(), st.randoms(use_true_random=False))
def test_order_of_images_and_captions_does_not_matter(problem, random):
    scores, caption_image = problem
    images, captions = (torch.tensor(random.sample(range(n), n)) for n in scores.shape)
    shuffled = retrieval_ranks(scores[images][:, captions], images.argsort()[caption_image[captions]])
    ranks = retrieval_ranks(scores, caption_image)
    assert torch.equal(shuffled.i2t, ranks.i2t[images])
    assert torch.equal(shuffled.t2i, ranks.t2i[captions])


@given(ranking_problems(values=1))
def test_constant_scores_give_the_worst_ranks(problem):
    scores, caption_image = problem
    images, captions = scores.shape
    ranks = retrieval_ranks(scores, caption_image)
    assert torch.equal(ranks.i2t, captions - caption_image.bincount(minlength=images) + 1)
    assert ranks.t2i.tolist() == [images] * captions


def test_ties_count_against_the_model_but_positives_never_compete():
    scores = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.1, 0.6]])
    ranks = retrieval_ranks(scores, torch.tensor([0, 0, 1]))
    assert ranks.i2t.tolist() == [2, 1]


def test_released_metrics_are_reproduced():
    golden = np.load(GOLDEN)
    scores = torch.from_numpy(golden["sims"])
    caption_image = torch.arange(200) // 5
    ranks = retrieval_ranks(scores, caption_image)
    np.testing.assert_array_equal(ranks.i2t, golden["i2t_ranks"] + 1)
    np.testing.assert_array_equal(ranks.t2i, golden["t2i_ranks"] + 1)
    metrics = evaluate_retrieval(scores, caption_image)
    for direction in ("i2t", "t2i"):
        np.testing.assert_allclose(list(metrics[direction].values()), golden[direction])
    assert metrics["rsum"] == pytest.approx(golden["i2t"][:3].sum() + golden["t2i"][:3].sum())


@pytest.mark.parametrize(("ranks", "median"), [([1, 2], 1), ([1, 4], 2), ([2, 4], 3), ([9, 1, 5], 5)])
def test_median_is_the_published_one(ranks, median):
    metrics = retrieval_metrics(Ranks(torch.tensor(ranks), torch.tensor(ranks)))
    assert metrics["i2t"]["MedR"] == np.floor(np.median(np.array(ranks) - 1)) + 1 == median


def test_metrics_are_plain_floats_named_alike():
    metrics = evaluate_retrieval(torch.eye(12), torch.arange(12))
    assert list(metrics) == ["i2t", "t2i", "rsum"]
    assert list(metrics["i2t"]) == list(metrics["t2i"]) == ["R@1", "R@5", "R@10", "MedR", "MeanR"]
    assert metrics["rsum"] == 600
    assert json.loads(json.dumps(metrics)) == metrics


def test_memory_mapped_scores(tmp_path):
    scores = torch.randn(20, 60)
    np.save(tmp_path / "scores.npy", scores.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "scores.npy", mmap_mode="c"))
    caption_image = torch.arange(60) % 20
    assert retrieval_ranks(mapped, caption_image).t2i.tolist() == slow_ranks(scores, caption_image)[1]


def test_infinite_scores_are_ranked():
    scores = torch.tensor([[torch.inf, -torch.inf], [torch.inf, -torch.inf]])
    assert retrieval_ranks(scores, torch.tensor([0, 1])).i2t.tolist() == [1, 2]


@settings(max_examples=20)
@given(st.integers(0, 5), st.integers(0, 5))
def test_nan_is_refused_wherever_it_is(image, caption):
    scores = torch.eye(6)
    scores[image, caption] = torch.nan
    with pytest.raises(ValueError, match=f"image {image} and caption {caption} is NaN"):
        retrieval_ranks(scores, torch.arange(6), block=4)


@pytest.mark.parametrize(
    ("scores", "caption_image", "message"),
    [
        (torch.zeros(2), torch.tensor([0, 1]), r"shape \(2,\); expected \(image, caption\)"),
        (torch.zeros(0, 0), torch.tensor([], dtype=torch.int64), r"at least one of each"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), r"shape \(3,\).*each of the 2 captions.*transpose"),
        (torch.zeros(2, 2), torch.tensor([0.0, 1.0]), "float32; expected integer"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), r"caption_image\[2\] is 2; .* from 0 to 1"),
        (torch.zeros(2, 3), torch.tensor([0, -1, 1]), r"caption_image\[1\] is -1"),
        (torch.zeros(3, 3), torch.tensor([0, 2, 2]), r"image 1 has no caption \(1 of 3 images"),
    ],
)
def test_unfit_input_is_refused(scores, caption_image, message):
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(scores, caption_image)


def test_block_must_be_positive():
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        retrieval_ranks(torch.eye(2), torch.arange(2), block=0)
