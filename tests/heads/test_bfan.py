"""BFAN against a plain loop over one image and one caption, and against the released code's figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.heads import BFAN, bfan_attention, bfan_pair_scores, bfan_scores
from xmodal.objectives import hinge_ranking_loss

FOCALS = ["equal", "prob"]
GOLDEN = Path(__file__).parents[1] / "golden" / "s1_bfan.npz"


def oracle_attention(queries, contexts, focal, temperature):
    """(weights, kept), each [query][context], of one image and one caption: as the paper writes it, sum by sum."""
    products = [[float(q @ c) for c in contexts] for q in queries]
    clipped = [[p if p > 0 else 0.1 * p for p in row] for row in products]
    weights, masks = [], []
    norms = [math.sqrt(sum(row[s] ** 2 for row in clipped)) + 1e-8 for s in range(len(contexts))]
    for row in clipped:
        exponentials = [math.exp(temperature * value / norms[s]) for s, value in enumerate(row)]
        a = [e / sum(exponentials) for e in exponentials]
        confidence = [1.0 if focal == "equal" else math.sqrt(value) for value in a]
        focus = [sum(g * (mine - other) for g, other in zip(confidence, a, strict=True)) for mine in a]
        kept = [value > 0 for value in focus]
        if not any(kept):
            kept = [True] * len(a)
        total = sum(value for value, keep in zip(a, kept, strict=True) if keep)
        weights.append([value / total if keep else 0.0 for value, keep in zip(a, kept, strict=True)])
        masks.append(kept)
    return weights, masks


def oracle_score(regions, words, focal, temperature):
    score = 0.0
    for queries, contexts in ((words, regions), (regions, words)):
        weights, _ = oracle_attention(queries, contexts, focal, temperature)
        cosines = []
        for query, row in zip(queries, weights, strict=True):
            attended = sum(a * c for a, c in zip(row, contexts, strict=True))
            cosines.append(float(query @ attended / max(float(query.norm() * attended.norm()), 1e-8)))
        score += sum(cosines) / len(cosines)
    return score


def random_batch(seed, images, captions, regions, words, dim, dtype=torch.float64):
    """Items that are not normalized, ragged, with NaN in the padding."""
    generator = torch.Generator().manual_seed(seed)

    def side(count, length):
        items = torch.randn(count, length, dim, generator=generator, dtype=torch.float64).to(dtype)
        mask = torch.arange(length) < torch.randint(1, length + 1, (count, 1), generator=generator)
        return items.masked_fill(~mask[..., None], float("nan")), mask

    (region_items, region_mask), (word_items, word_mask) = side(images, regions), side(captions, words)
    return region_items, word_items, region_mask, word_mask


sizes = st.integers(1, 5)


@pytest.mark.parametrize("focal", FOCALS)
def test_golden(focal):
    golden = {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(GOLDEN).items()}
    regions, words = golden["images"].requires_grad_(), golden["captions"].requires_grad_()
    word_mask = torch.arange(words.shape[1]) < golden["lengths"][:, None]
    scores = bfan_scores(regions, words, word_mask=word_mask, focal=focal)
    loss = hinge_ranking_loss(scores)
    loss.backward()
    torch.testing.assert_close(scores, golden[f"sim/{focal}"], atol=2e-5, rtol=0)
    torch.testing.assert_close(loss, golden[f"loss/{focal}/hard"], atol=1e-4, rtol=0)
    torch.testing.assert_close(regions.grad, golden[f"loss/{focal}/hard/grad_images"], atol=2e-4, rtol=0)
    torch.testing.assert_close(words.grad, golden[f"loss/{focal}/hard/grad_captions"], atol=2e-4, rtol=0)


@settings(max_examples=25)
@given(st.integers(0, 999), sizes, sizes, st.integers(1, 7), st.integers(1, 6), st.sampled_from(FOCALS))
def test_equals_the_plain_loop(seed, images, captions, regions, words, focal):
    r, w, region_mask, word_mask = random_batch(seed, images, captions, regions, words, dim=3)
    scores = bfan_scores(r, w, region_mask, word_mask, focal=focal, temperature=7.0)
    expected = [[oracle_score(i[m], c[n], focal, 7.0) for c, n in zip(w, word_mask)] for i, m in zip(r, region_mask)]  # noqa: B905
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@settings(max_examples=15)
@given(st.integers(0, 999), st.sampled_from(FOCALS), st.sampled_from(["t2i", "i2t"]))
def test_attention_equals_the_plain_loop(seed, focal, direction):
    r, w, region_mask, word_mask = random_batch(seed, 2, 2, 6, 5, dim=3)
    weights, kept = bfan_attention(r, w, region_mask, word_mask, direction=direction, focal=focal)
    for pair in range(2):
        regions, words = r[pair][region_mask[pair]], w[pair][word_mask[pair]]
        sides = (words, regions) if direction == "t2i" else (regions, words)
        expected_weights, expected_kept = (torch.tensor(t) for t in oracle_attention(*sides, focal, 20.0))
        if direction == "i2t":
            expected_weights, expected_kept = expected_weights.T, expected_kept.T
        real = word_mask[pair][:, None] & region_mask[pair]
        torch.testing.assert_close(weights[pair][real], expected_weights.double().flatten())
        assert torch.equal(kept[pair][real], expected_kept.flatten())
        assert not weights[pair][~real].any()
        assert not kept[pair][~real].any()


@settings(max_examples=20)
@given(st.integers(0, 999), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.sampled_from(FOCALS))
def test_order_padding_and_batch_do_not_matter(seed, count, more_regions, more_words, focal):
    r, w, region_mask, word_mask = random_batch(seed, count, count + 1, 5, 4, dim=4)
    scores = bfan_scores(r, w, region_mask, word_mask, focal=focal)
    images, captions = torch.randperm(count), torch.randperm(count + 1)
    pad = torch.nn.functional.pad
    padded = bfan_scores(
        pad(r[images], (0, 0, 0, more_regions), value=float("inf")),
        pad(w[captions], (0, 0, 0, more_words), value=float("nan")),
        pad(region_mask[images], (0, more_regions)),
        pad(word_mask[captions], (0, more_words)),
        focal=focal,
    )
    torch.testing.assert_close(padded, scores[images][:, captions], atol=1e-12, rtol=0)
    alone = bfan_scores(r[:1], w[:1], region_mask[:1], word_mask[:1], focal=focal)
    torch.testing.assert_close(alone, scores[:1, :1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("focal", FOCALS)
def test_pairs_are_the_diagonal(focal):
    batch = random_batch(5, 4, 4, 6, 5, dim=3)
    head = BFAN(focal=focal)
    torch.testing.assert_close(head.pairs(*batch), head(*batch).diag(), atol=1e-12, rtol=0)
    torch.testing.assert_close(bfan_pair_scores(*batch, focal=focal), bfan_scores(*batch, focal=focal).diag())


def test_tiles_do_not_matter(monkeypatch):
    batch = random_batch(7, 6, 4, 6, 5, dim=3)
    whole = bfan_scores(*batch)
    monkeypatch.setattr("xmodal.heads.attention.PRODUCTS_BYTES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr("xmodal.heads.attention.LANES", 1)
    torch.testing.assert_close(bfan_scores(*batch), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("focal", FOCALS)
@pytest.mark.parametrize("length", [1, 3, 11, 36])
def test_uniform_attention_is_finite_and_keeps_everything(focal, length):
    regions = torch.ones(2, length, 4).requires_grad_()
    words = torch.ones(3, 5, 4).requires_grad_()
    scores = bfan_scores(regions, words, focal=focal)
    scores.sum().backward()
    torch.testing.assert_close(scores, torch.full((2, 3), 2.0))
    assert regions.grad.isfinite().all()
    assert words.grad.isfinite().all()
    assert bfan_attention(regions, words[:2], focal=focal).focal.all()


@pytest.mark.parametrize("focal", FOCALS)
def test_zero_items_are_finite(focal):
    regions = torch.randn(2, 6, 4).index_fill(1, torch.tensor([2]), 0.0).requires_grad_()
    words = torch.zeros(2, 3, 4).requires_grad_()
    scores = bfan_scores(regions, words, focal=focal)
    scores.sum().backward()
    assert scores.isfinite().all()
    assert regions.grad.isfinite().all()
    assert words.grad.isfinite().all()


@pytest.mark.parametrize("focal", FOCALS)
def test_gradcheck(focal):
    regions, words, region_mask, word_mask = random_batch(11, 2, 3, 4, 3, dim=3)
    regions = regions.nan_to_num().requires_grad_()
    words = words.nan_to_num().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r, w: bfan_scores(r, w, region_mask, word_mask, focal=focal, temperature=4.0), (regions, words)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype):
    regions, words, region_mask, word_mask = random_batch(3, 3, 3, 6, 5, dim=16, dtype=dtype)
    regions, words = regions.requires_grad_(), words.requires_grad_()
    scores = bfan_scores(regions, words, region_mask, word_mask)
    scores.sum().backward()
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert regions.grad.isfinite().all()
    assert words.grad.isfinite().all()


def test_autocast_is_finite():
    regions, words, region_mask, word_mask = random_batch(4, 3, 3, 6, 5, dim=16, dtype=torch.float32)
    regions = regions.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        scores = bfan_scores(regions, words, region_mask, word_mask)
    scores.sum().backward()
    assert scores.isfinite().all()
    assert regions.grad.isfinite().all()


def test_module_attends_in_both_directions():
    batch = random_batch(9, 2, 2, 4, 3, dim=3)
    for direction in ("t2i", "i2t"):
        ours, theirs = BFAN().attention(*batch, direction=direction), bfan_attention(*batch, direction=direction)
        assert torch.equal(ours.weights, theirs.weights)
    assert repr(BFAN(focal="equal")) == "BFAN(focal='equal', temperature=20.0)"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regions": torch.randn(3, 4)}, "regions must be"),
        ({"words": torch.randn(2, 3, 9)}, "dim 9"),
        ({"region_mask": torch.ones(2, 3)}, "region_mask must be boolean"),
        ({"word_mask": torch.zeros(2, 3, dtype=torch.bool)}, "caption 0 has no real word"),
        ({"focal": "confident"}, "focal must be one of prob, equal; got 'confident'"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"regions": torch.full((2, 3, 4), float("nan")), "validate": True}, r"regions\[0, 0\]"),
    ],
)
@pytest.mark.parametrize("function", [bfan_scores, bfan_pair_scores])
def test_bad_input_is_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(**{"regions": torch.randn(2, 3, 4), "words": torch.randn(2, 3, 4), **arguments})


@pytest.mark.bad_input
def test_bad_options_are_named():
    with pytest.raises(ValueError, match="focal must be one of"):
        BFAN(focal="none")
    with pytest.raises(ValueError, match="direction must be one of t2i, i2t; got 'both'"):
        bfan_attention(torch.randn(2, 3, 4), torch.randn(2, 3, 4), direction="both")
    with pytest.raises(ValueError, match="as many images as captions"):
        bfan_pair_scores(torch.randn(2, 3, 4), torch.randn(3, 3, 4))
