from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "heads"))
from batches import ALL_HEADS, Batch, batches, random_batch

from xmodal.heads import BFAN, CHAN, SCAN, VSRN, Cosine, Head
from xmodal.scoring import evaluate_exact, score_all, score_pairs
from xmodal.scoring.backends import choose_backend
from xmodal.scoring.blocks import score_tiles
from xmodal.scoring.packing import group_by_length
from xmodal.scoring.plan import make_plan
from xmodal.scoring.sides import Sides

HEADS: list[Head] = [
    *ALL_HEADS,
    *(BFAN(focal, temperature) for focal in ("prob", "equal") for temperature in (5.0, 50.0)),
    SCAN(normalization="none", temperature=200.0),
    SCAN("i2t", temperature=100.0),
    CHAN(),
    CHAN("mean"),
    CHAN(temperature=0.001),
]


def in_float32(batch: Batch) -> Batch:
    return Batch(batch.regions.float(), batch.words.float(), batch.region_mask, batch.word_mask)


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("budget_bytes", [1, 3000, None])
def test_scores_are_those_of_the_head(head, budget_bytes):
    batch = random_batch(seed=3, images=7, captions=9, regions=5, words=6)
    torch.testing.assert_close(score_all(head, *batch, budget_bytes=budget_bytes), head(*batch), atol=1e-9, rtol=0)


@pytest.mark.parametrize("head", [SCAN(), SCAN("i2t"), CHAN("mean"), Cosine()], ids=str)
@given(batch=batches(dim=16), budget_bytes=st.integers(1, 100_000))
def test_float32_scores_are_those_of_the_head_for_any_lengths_and_budget(head, batch, budget_bytes):
    batch = in_float32(batch)
    expected = head(*batch)
    torch.testing.assert_close(score_all(head, *batch, budget_bytes=budget_bytes), expected, atol=2e-5, rtol=0)


@given(seed=st.integers(0, 2**31), words=st.integers(2, 7), budget_bytes=st.integers(1, 100_000))
def test_float32_scores_of_bfan(seed, words, budget_bytes):
    """Two words at least: over a single one, attention is the same for all positive regions, and rounding decides which
    of them BFAN keeps, in the head as here."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randn(4, 6, 16, generator=generator), torch.randn(5, words, 16, generator=generator)
    torch.testing.assert_close(score_all(BFAN(), *sides, budget_bytes=budget_bytes), BFAN()(*sides), atol=2e-5, rtol=0)


@pytest.mark.parametrize("head", [SCAN(), SCAN("i2t"), Cosine()], ids=str)
def test_order_of_images_and_captions_does_not_matter(head):
    batch = in_float32(random_batch(seed=1, images=9, captions=11))
    images, captions = torch.randperm(9), torch.randperm(11)
    shuffled = Batch(batch.regions[images], batch.words[captions], batch.region_mask[images], batch.word_mask[captions])
    expected = score_all(head, *batch)[images[:, None], captions]
    torch.testing.assert_close(score_all(head, *shuffled), expected, atol=2e-5, rtol=0)


def test_what_padding_holds_does_not_matter():
    batch = in_float32(random_batch(images=6, captions=6))
    expected = score_all(SCAN(), *batch)
    batch.regions[~batch.region_mask], batch.words[~batch.word_mask] = float("nan"), float("inf")
    torch.testing.assert_close(score_all(SCAN(), *batch), expected)
    assert batch.regions.isnan().any(), "the input was written to"


def test_vsrn_and_pooled_heads_embed_once_an_item():
    head, seen = VSRN(dim=8).eval(), []
    head.register_forward_pre_hook(lambda *_: pytest.fail("forward was called"))
    embed = head.embed_images
    head.embed_images = lambda *inputs: seen.append(len(inputs[0])) or embed(*inputs)
    regions, words = torch.randn(7, 4, 8), torch.randn(9, 5, 8)
    scores = score_all(head, regions, words, budget_bytes=2000)
    assert sum(seen) == 7
    assert len(seen) > 1
    torch.testing.assert_close(scores, VSRN.compare(head, embed(regions), head.embed_captions(words)).detach())


def test_bfloat16_products_are_near_and_scores_float32():
    batch = in_float32(random_batch(images=6, captions=6, dim=64))
    low = score_all(SCAN(), *batch, dtype=torch.bfloat16)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, score_all(SCAN(), *batch), atol=0.05, rtol=0)


@pytest.mark.parametrize("head", [SCAN(), SCAN("i2t"), BFAN(), CHAN(), Cosine("max"), VSRN(dim=8)], ids=str)
def test_pairs_are_entries_of_all_scores(head):
    batch = in_float32(random_batch(images=6, captions=8))
    batch = Batch(batch.regions, batch.words, torch.ones_like(batch.region_mask), torch.ones_like(batch.word_mask))
    images, captions = torch.tensor([5, 0, 3, 3, 5]), torch.tensor([1, 7, 7, 0, 1])
    with torch.no_grad():
        expected = head(*batch)[images, captions]
    torch.testing.assert_close(score_pairs(head, *batch, images, captions), expected, atol=2e-5, rtol=0)
    one_caption = score_pairs(head, *batch, torch.arange(6), torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(one_caption, score_all(head, *batch)[:, 0], atol=2e-5, rtol=0)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), pack_cost=st.integers(0, 50))
def test_groups_hold_every_set_once_and_cost_no_more_than_the_obvious_divisions(lengths, pack_cost):
    groups = group_by_length(torch.tensor(lengths), pack_cost=pack_cost)
    assert sorted(torch.cat(groups).tolist()) == list(range(len(lengths)))
    cost = sum(max(lengths[i] for i in group.tolist()) * len(group) + pack_cost for group in groups)
    assert cost <= max(lengths) * len(lengths) + pack_cost
    assert cost <= sum(lengths) + pack_cost * len(set(lengths))


@pytest.mark.parametrize("head", [SCAN(), Cosine()], ids=str)
def test_numpy_arrays_score_as_tensors(head):
    batch = random_batch(seed=3, images=4, captions=6, regions=5, words=6)
    arrays = [part.numpy() for part in batch]
    assert torch.equal(score_all(head, *arrays), score_all(head, *batch))
    images, captions = torch.tensor([3, 0]), torch.tensor([5, 1])
    found = score_pairs(head, *arrays, images.numpy(), captions.numpy())
    assert torch.equal(found, score_pairs(head, *batch, images, captions))
    exact = evaluate_exact(head, *arrays, caption_image=np.arange(6) % 4)
    assert exact == evaluate_exact(head, *batch, caption_image=torch.arange(6) % 4)
    with pytest.raises(ValueError, match="region_mask must be boolean"):
        score_all(head, arrays[0], arrays[1], arrays[2].astype(np.int64))


def test_a_result_file_holds_the_scores(tmp_path):
    batch = in_float32(random_batch())
    scores = score_all(SCAN(), *batch, out=tmp_path / "scores.npy")
    assert torch.equal(scores, score_all(SCAN(), *batch))
    scores.zero_()  # a private view
    assert np.array_equal(np.load(tmp_path / "scores.npy"), score_all(SCAN(), *batch).numpy())
    assert [file.name for file in tmp_path.iterdir()] == ["scores.npy"]


def test_a_result_file_that_exists_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "scores.npy"
    path.write_text("precious")
    batch = in_float32(random_batch())
    with pytest.raises(FileExistsError, match="overwrite=True"):
        score_all(SCAN(), *batch, out=path)
    assert path.read_text() == "precious"
    score_all(SCAN(), *batch, out=path, overwrite=True)
    assert np.load(path).shape == (3, 4)
    with pytest.raises(ValueError, match=r"\*\.npy"):
        score_all(SCAN(), *batch, out=tmp_path / "scores.h5")


class Interrupted(Cosine):
    """A head whose user presses Ctrl-C after the first block."""

    blocks = 0

    def compare(self, *inputs):
        self.blocks += 1
        if self.blocks > 1:
            raise KeyboardInterrupt
        return super().compare(*inputs)


def test_an_interruption_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        score_all(Interrupted(), *in_float32(random_batch()), out=tmp_path / "scores.npy", budget_bytes=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("budget_bytes", [0, -5])
def test_a_budget_must_be_positive(budget_bytes):
    with pytest.raises(ValueError, match="budget_bytes must be at least 1, got"):
        score_all(SCAN(), *random_batch(), budget_bytes=budget_bytes)


def test_an_image_without_regions_is_refused():
    batch = random_batch()
    batch.region_mask[1] = False
    with pytest.raises(ValueError, match="image 1 has no real region"):
        score_all(SCAN(), *batch)


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler.*backend='eager'"):
        score_all(SCAN(), *random_batch(), backend="compile")


def test_the_backend_is_logged(caplog):
    with caplog.at_level("INFO", logger="xmodal"):
        score_all(SCAN(), *in_float32(random_batch()))
    assert "backend eager" in caplog.text


@pytest.mark.parametrize(
    ("backend", "head", "problem"),
    [
        ("fast", SCAN(), "backend must be one of eager, compile, triton"),
        ("triton", SCAN(), "needs a CUDA device, got cpu; use device='cuda' or another backend"),
        ("compile", Cosine(), "backend='compile' scores BFAN, SCAN, got Cosine; use backend='eager'"),
    ],
)
def test_a_backend_that_cannot_score_is_refused(backend, head, problem):
    with pytest.raises(ValueError, match=problem):
        score_all(head, *in_float32(random_batch()), backend=backend)


def test_a_cuda_device_gets_the_fused_kernel_for_what_that_takes():
    def chosen(head, dtype=torch.bfloat16, widths=(36, 80)):
        return choose_backend(None, head, dtype, torch.device("cuda"), widths)

    pytest.importorskip("triton")
    assert chosen(SCAN()) == chosen(BFAN(), torch.float32) == "triton"
    assert chosen(SCAN(normalization="softmax")) == chosen(Cosine()) == "eager"
    assert chosen(BFAN(), torch.float64) == chosen(SCAN(), widths=(100, 80)) == "eager"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("head", [SCAN(), SCAN("i2t"), BFAN()], ids=str)
def test_compiled_scores_are_those_of_the_head(head):
    batch = in_float32(random_batch(images=7, captions=9))
    torch.testing.assert_close(score_all(head, *batch, backend="compile"), head(*batch), atol=2e-5, rtol=0)


@pytest.mark.parametrize("head", [SCAN(), BFAN(), CHAN()], ids=str)
def test_the_number_of_threads_changes_neither_scores_nor_itself(head):
    """Tiles are computed side by side, in inference mode as well, and a reader may stop half way."""
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(150, 9, 16, generator=generator), torch.randn(250, 12, 16, generator=generator)
    threads = torch.get_num_threads()
    try:
        scores = []
        for number in (1, 3):
            torch.set_num_threads(number)
            with torch.inference_mode(number == 3):
                scores.append(score_all(head, regions, words))
            assert torch.get_num_threads() == number
        assert torch.equal(*scores)
        sides = Sides.checked(regions, words)
        next(tiles := score_tiles(head, sides, make_plan(head, sides)))
        tiles.close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("images", "captions", "problem"),
    [
        ([0, 1, 2], [0, 1], "3 images and 2 captions; wanted as many of both"),
        ([0], [0, 1, 2], "1 images and 3 captions"),
        ([0, -1], [0, 1], "images of pairs are from -1 to 0; wanted numbers from 0 to 3"),
        ([0, 1], [0, 6], "captions of pairs are from 0 to 6; wanted numbers from 0 to 5"),
        ([0.0, 1.0], [0, 1], "images of pairs are torch.float32; wanted whole numbers"),
        ([True, False], [0, 1], "images of pairs are torch.bool"),
        ([[0, 1]], [[0, 1]], r"images of pairs have shape \(1, 2\)"),
    ],
)
@pytest.mark.parametrize("head", [SCAN(), Cosine(), VSRN(dim=8)], ids=str)
def test_pairs_that_are_none(head, images, captions, problem):
    with pytest.raises(ValueError, match=problem):
        score_pairs(head, torch.randn(4, 3, 8), torch.randn(6, 5, 8), None, None, images, captions)


def test_pairs_as_lists_and_none_at_all():
    regions, words = torch.randn(4, 3, 8), torch.randn(6, 5, 8)
    expected = SCAN()(regions, words)[[3, 0], [5, 1]]
    for dtype in (torch.uint8, torch.int32, torch.int64):
        images, captions = torch.tensor([3, 0], dtype=dtype), torch.tensor([5, 1], dtype=dtype)
        torch.testing.assert_close(score_pairs(SCAN(), regions, words, None, None, images, captions), expected)
    torch.testing.assert_close(score_pairs(SCAN(), regions, words, None, None, [3, 0], [5, 1]), expected)
    assert score_pairs(SCAN(), regions, words, None, None, [], []).shape == (0,)


@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e5m2])
def test_products_in_what_cannot_hold_them(dtype):
    with pytest.raises(ValueError, match=f"dtype is {dtype}; scores can be computed in torch.float32, torch.float64, "):
        score_all(SCAN(), torch.randn(4, 3, 8), torch.randn(6, 5, 8), dtype=dtype)


SHORT = [SCAN(), SCAN("i2t"), BFAN(), SCAN(normalization="softmax"), SCAN(normalization="none"), SCAN(temperature=50.0)]


@pytest.mark.parametrize("head", SHORT, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("images", [4, 40])
def test_short_features_score_as_the_head_has_them(head, scale, images):
    """Cosines have a floor below which lengths count; of few images torch computes them, of many a program may."""
    generator = torch.Generator().manual_seed(0)
    regions, words = (scale * torch.randn(count, 6, 16, generator=generator) for count in (images, images + 1))
    regions[0, 1], words[1, 2] = 0.0, 0.0
    word_mask = torch.arange(6) < torch.randint(3, 7, (images + 1, 1), generator=generator)
    with torch.no_grad():
        expected = head(regions.double(), words.double(), None, word_mask)
    scores = score_all(head, regions, words, None, word_mask)
    torch.testing.assert_close(scores.double(), expected, atol=5e-5, rtol=0)
    pairs = torch.arange(images), torch.arange(images)
    aligned = score_pairs(head, regions, words, None, word_mask, *pairs)
    torch.testing.assert_close(aligned.double(), expected.diagonal(), atol=5e-5, rtol=0)
