"""The Triton kernel in Triton's interpreter, against the heads: test_triton_kernels.py runs it in its own process."""

from __future__ import annotations

import pytest
import torch
from foreign_heads import Attending, Filtering, Inherited, Reweighted, SilentlyReweighted, declarable
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.data import PairBatch, RegionBatch
from xmodal.heads import BFAN, SCAN, SCAN_PUBLISHED
from xmodal.model import Matcher
from xmodal.objectives import HingeRanking
from xmodal.scoring import score_all
from xmodal.scoring.triton import TileShape, triton_scores
from xmodal.training.step import MatchingStep

SHAPE = TileShape(rows=32, columns=32, depth=16)
"""Small, so that a few items already need several tiles."""


def draw_side(lengths, width, dim, generator, scale=1.0):
    """Features with garbage in the padding, and masks whose real items lie anywhere."""
    order = torch.rand(len(lengths), width, generator=generator).argsort(dim=1)
    mask = order < torch.tensor(lengths)[:, None]
    items = scale * torch.randn(len(lengths), width, dim, generator=generator)
    return items.masked_fill(~mask[:, :, None], float("nan")), mask


def compare(head, regions, words, region_mask, word_mask, shape: TileShape | None = SHAPE):
    fused = triton_scores(head, regions, words, region_mask, word_mask, shape=shape)
    expected = head(regions, words, region_mask, word_mask)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, expected, atol=2e-5, rtol=2e-5)


@settings(max_examples=20)
@given(
    image_lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    caption_lengths=st.lists(st.integers(1, 20), min_size=1, max_size=20),
    dim=st.integers(1, 40),
    scale=st.sampled_from([0.05, 1.0, 30.0]),
    direction=st.sampled_from(["t2i", "i2t"]),
    normalization=st.sampled_from(["clipped_l2", "l2", "clipped_l1", "l1"]),
    aggregation=st.sampled_from(["logsumexp", "mean", "max", "sum"]),
    temperature=st.sampled_from([0.5, 4.0, 9.0, 32.0]),
    seed=st.integers(0, 2**16),
)
def test_scan_equals_the_head(
    image_lengths, caption_lengths, dim, scale, direction, normalization, aggregation, temperature, seed
):
    generator = torch.Generator().manual_seed(seed)
    regions, region_mask = draw_side(image_lengths, 12, dim, generator, scale)
    words, word_mask = draw_side(caption_lengths, 20, dim, generator, scale)
    head = SCAN(direction, normalization, aggregation, temperature)
    compare(head, regions, words, region_mask, word_mask)


@pytest.mark.parametrize("aggregation", ["logsumexp", "mean", "max", "sum"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_no_number_is_no_number_in_all_scores_that_read_it(aggregation):
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(3, 5, 8, generator=generator), torch.randn(4, 4, 8, generator=generator)
    regions[1, 2, 3] = float("nan")
    assert triton_scores(SCAN(aggregation=aggregation), regions, words, shape=SHAPE)[1].isnan().all()


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_of_two_precisions_the_wider_is_taken(dtypes):
    """As autocast leaves them, which normalizes one side in float32 and not the other."""
    generator = torch.Generator().manual_seed(0)
    sides = [draw_side([3, 5, 2], 5, 16, generator) for _ in range(2)]
    (regions, region_mask), (words, word_mask) = sides
    regions, words = regions.to(dtypes[0]), words.to(dtypes[1])
    fused = triton_scores(SCAN(), regions, words, region_mask, word_mask, shape=SHAPE)
    expected = SCAN()(regions.float(), words.float(), region_mask, word_mask)
    torch.testing.assert_close(fused, expected, atol=2e-5, rtol=2e-5)


@settings(max_examples=8)
@given(
    image_lengths=st.lists(st.integers(2, 12), min_size=1, max_size=5),
    caption_lengths=st.lists(st.integers(2, 20), min_size=1, max_size=8),
    focal=st.sampled_from(["prob", "equal"]),
    temperature=st.sampled_from([1.0, 20.0]),
    seed=st.integers(0, 2**16),
)
def test_bfan_equals_the_head(image_lengths, caption_lengths, focal, temperature, seed):
    # Two items at least: the only query of a set has logits of -0.1 or 1 exactly, and whether an item is above the
    # mean of equal ones is then up to rounding, in the head as in the kernel.
    generator = torch.Generator().manual_seed(seed)
    regions, region_mask = draw_side(image_lengths, 12, 24, generator)
    words, word_mask = draw_side(caption_lengths, 20, 24, generator)
    compare(BFAN(focal, temperature), regions, words, region_mask, word_mask)


@settings(max_examples=15)
@given(
    how=declarable(normalization=st.sampled_from(["clipped_l2", "l2", "clipped_l1", "l1"])), seed=st.integers(0, 2**16)
)
def test_whatever_cross_attention_is_declared_is_computed(how, seed):
    generator = torch.Generator().manual_seed(seed)
    sides = (draw_side([3, 9, 2], 9, 12, generator), draw_side([2, 8, 5, 3], 8, 12, generator))
    compare(Attending(how), sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def test_a_head_that_compares_in_its_own_way_is_refused():
    sides = torch.randn(2, 3, 12), torch.randn(2, 3, 12)
    for head in (Inherited(12), SilentlyReweighted(12), Filtering(12)):
        refusal = f"scores SCAN and BFAN, got {type(head).__name__}, which does not declare"
        with pytest.raises(ValueError, match=refusal):
            triton_scores(head, *sides)
        with pytest.raises(ValueError, match=refusal):
            score_all(head, *sides, backend="triton")


def test_work_once_an_item_comes_before_the_kernel():
    generator = torch.Generator().manual_seed(5)
    regions, words, word_mask = torch.randn(3, 4, 12), *draw_side([2, 8, 5], 8, 12, generator)
    head, words = Reweighted(12), words.nan_to_num(1.0)
    inputs = (regions, words, None, word_mask)
    with torch.no_grad():
        compare(head, *inputs)
        torch.testing.assert_close(score_all(head, *inputs, backend="triton"), head(*inputs), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("focal", ["prob", "equal"])
def test_bfan_keeps_all_of_uniform_attention(focal):
    regions, words = torch.ones(2, 5, 8), torch.ones(3, 4, 8)
    torch.testing.assert_close(triton_scores(BFAN(focal), regions, words, shape=SHAPE), torch.full((2, 3), 2.0))


@pytest.mark.parametrize("options", SCAN_PUBLISHED.values(), ids=SCAN_PUBLISHED.keys())
def test_published_shapes_in_the_default_tile(options):
    generator = torch.Generator().manual_seed(0)
    regions = torch.nn.functional.normalize(torch.randn(4, 36, 100, generator=generator), dim=-1)
    words, word_mask = draw_side([12, 9, 70, 7], 70, 100, generator)
    compare(SCAN(**options), regions, words, None, word_mask, shape=None)


@pytest.mark.parametrize("head", [SCAN(), SCAN("i2t", temperature=4.0), BFAN()], ids=str)
def test_score_all_takes_the_kernel_part_by_part(head):
    generator = torch.Generator().manual_seed(4)
    regions, region_mask = draw_side([3, 9, 5, 2, 9], 9, 12, generator)
    words, word_mask = draw_side([2, 8, 5, 3, 4, 4], 8, 12, generator)
    sides = (regions, words, region_mask, word_mask)
    scores = score_all(head, *sides, backend="triton", budget_bytes=5000)
    torch.testing.assert_close(scores, head(*sides), atol=2e-5, rtol=0)


def test_zero_features_score_as_in_the_head():
    regions, words = torch.randn(2, 3, 8), torch.randn(3, 4, 8)
    regions[0], words[1], words[2, 1] = 0.0, 0.0, 0.0
    compare(SCAN(aggregation="mean"), regions, words, None, None)
    compare(SCAN("i2t", aggregation="mean"), regions, words, None, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", [SCAN(), SCAN("i2t"), BFAN("equal", 1.0)], ids=str)
def test_half_precision_inputs_lose_nothing_further(head, dtype):
    """Products of half precision numbers are exact in float32: the result is that of the rounded inputs."""
    generator = torch.Generator().manual_seed(1)
    regions, words = torch.randn(3, 9, 32, generator=generator), torch.randn(4, 7, 32, generator=generator)
    regions, words = regions.to(dtype), words.to(dtype)
    fused = triton_scores(head, regions, words, shape=SHAPE)
    torch.testing.assert_close(fused, head(regions.float(), words.float()), atol=2e-5, rtol=2e-5)


def test_the_answer_does_not_depend_on_the_tile():
    generator = torch.Generator().manual_seed(2)
    regions, region_mask = draw_side([3, 16, 1, 9, 9], 16, 20, generator)
    words, word_mask = draw_side([1] * 18 + [16, 5, 8], 16, 20, generator)
    sides = (regions, words, region_mask, word_mask)
    small = triton_scores(SCAN(), *sides, shape=TileShape(16, 16, 16))
    torch.testing.assert_close(small, triton_scores(SCAN(), *sides, shape=TileShape(64, 32, 32)), atol=2e-6, rtol=0)
    with pytest.raises(ValueError, match="there must be at least one image"):
        triton_scores(SCAN(), regions[:0], words, region_mask[:0], word_mask)


@pytest.mark.parametrize(
    "head",
    [
        SCAN(),
        SCAN("i2t", "l2", "mean", 4.0),
        SCAN("t2i", "clipped_l1", "max"),
        SCAN("i2t", "l1", "sum"),
        BFAN(),
        BFAN("equal"),
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_equal_those_of_the_head(head, masked, monkeypatch):
    monkeypatch.setattr("xmodal.scoring.triton.kernels.BACKWARD_BYTES", 5000)  # several steps
    generator = torch.Generator().manual_seed(3)
    regions, region_mask = draw_side([5, 9, 2, 7], 9, 12, generator)
    words, word_mask = draw_side([2, 8, 5], 8, 12, generator)
    masks = (region_mask, word_mask)
    if not masked:
        regions, words = (torch.randn(items.shape, generator=generator) for items in (regions, words))
        masks = (None, None)
    regions, words = regions.nan_to_num(1.0).requires_grad_(), words.nan_to_num(1.0).requires_grad_()
    weight = torch.randn(4, 3, generator=generator)
    fused = torch.autograd.grad(
        (weight * triton_scores(head, regions, words, *masks, shape=SHAPE)).sum(), (regions, words)
    )
    expected = torch.autograd.grad((weight * head(regions, words, *masks)).sum(), (regions, words))
    for got, wanted in zip(fused, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-4, rtol=2e-4)


def test_training_with_the_kernel_is_training_with_the_head():
    """One step's terms and the gradients of all parameters, through the encoders."""
    generator = torch.Generator().manual_seed(4)
    features, region_mask = draw_side([5, 9, 2, 7], 9, 12, generator)
    _, word_mask = draw_side([2, 8, 5, 3], 8, 12, generator)
    tokens = torch.randint(4, 9, word_mask.shape, generator=generator)
    order = word_mask.sum(1, keepdim=True) > torch.arange(8)  # a GRU reads from the first word on
    images = RegionBatch(features.nan_to_num(1.0), region_mask)
    batch = PairBatch(images, tokens, order, torch.arange(4), torch.arange(4))
    torch.manual_seed(0)
    matcher = Matcher(
        image={"name": "regions", "input_dim": 12, "dim": 16},
        text={"name": "gru", "dim": 16, "word_dim": 4},
        head={"name": "scan"},
        vocabulary=["<pad>", "<start>", "<end>", "<unk>", *"abcde"],
    )
    gradients = []
    for scoring in ("eager", "triton"):
        step = MatchingStep(matcher, HingeRanking(), scoring=scoring)
        gradients.append(torch.autograd.grad(step(batch, 0)["total"], list(matcher.parameters())))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-4, rtol=2e-4)
