"""The compiled attention is the plain one, by operations in float64: values and gradients, whatever is padded."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.heads import BFAN, SCAN, attended, attended_program, attention, bfan, bfan_scores, scan, scan_scores
from xmodal.heads.attention import EPSILON, attended_cosine, attention_weights
from xmodal.heads.bfan import refocus
from xmodal.heads.ragged import Ragged, counts_of
from xmodal.scoring import score_all, tiles

pytestmark = pytest.mark.skipif(attended_program._program() is None, reason="there is no C++ compiler; install g++")


def plainly(products, gram, norms, mask, *, slope, temperature, focal):
    """By operations."""
    weights = attention_weights(
        products,
        mask,
        torch.ones(1, *products.shape[2:], dtype=torch.bool),
        normalization="l2" if slope == 1 else "clipped_l2",
        temperature=temperature,
    )
    if focal is not None:
        weights = refocus(weights, mask, focal=focal)
    return attended_cosine(products, weights, gram, norms)


@settings(max_examples=40, deadline=None)
@given(
    contexts=st.integers(1, 5),
    places=st.integers(1, 11),
    words=st.integers(1, 4),
    queries=st.sampled_from([8, 15, 16, 17, 40]),
    slope=st.sampled_from([0.1, 1.0]),
    focal=st.sampled_from([None, "equal", "prob"]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_are_those_of_operations(contexts, places, words, queries, slope, focal, threads, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(contexts, places, 6, generator=generator)
    mask = torch.arange(places) < torch.randint(1, places + 1, (contexts, 1), generator=generator)
    vectors = vectors * mask[..., None]
    asked = torch.randn(queries, words, 6, generator=generator)
    products = (vectors.flatten(0, 1) @ asked.transpose(0, 1).flatten(0, 1).T).view(contexts, places, words, queries)
    inputs = products, vectors @ vectors.transpose(1, 2), asked.norm(dim=-1).T[None]
    options = {"slope": slope, "temperature": 4.0, "focal": focal}
    weighed = torch.randn(contexts, words, queries, generator=generator)
    exact = [each.double().requires_grad_() for each in inputs]
    wanted = plainly(*exact, mask, **options)
    (wanted * weighed).sum().backward()
    if focal is not None and not _is_sure(inputs[0], mask, slope, focal):
        return  # whether a weight is above the mean hangs on rounding
    how = attended.How(slope, 4.0, EPSILON, focal, partial(refocus, focal=focal) if focal else None, None)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attended_program, "FEW", 0)
            given_ = [each.clone().requires_grad_() for each in inputs]
            found = attended.attended_cosines(*given_, mask, how)
            (found * weighed).sum().backward()
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    for mine, right in zip(given_, exact, strict=True):
        scale = float(right.grad.abs().max()) + 1
        torch.testing.assert_close(mine.grad.double() / scale, right.grad / scale, rtol=0, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    contexts=st.integers(1, 4),
    places=st.integers(1, 9),
    lengths=st.lists(st.integers(1, 6), min_size=8, max_size=40),
    focal=st.sampled_from([None, "equal", "prob"]),
    cut=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_products_without_padding_give_what_padded_ones_do(contexts, places, lengths, focal, cut, seed):
    """Alone, and as a part of a wider product whose rows are longer."""
    generator = torch.Generator().manual_seed(seed)
    counts = counts_of(sorted(lengths, reverse=True))
    vectors = torch.randn(contexts, places, 6, generator=generator)
    columns = torch.randn(sum(counts) + 3, 6, generator=generator)
    products = (vectors.flatten(0, 1) @ columns.T).unflatten(0, (contexts, places))[..., 2:-1]
    products = products if cut else products.contiguous()
    gram, mask = vectors @ vectors.transpose(1, 2), torch.ones(contexts, places, dtype=torch.bool)
    norms = torch.stack([torch.nn.functional.pad(c.norm(dim=-1), (0, counts[0] - len(c)))
                         for c in columns[2:-1].split(counts)])[None]  # fmt: skip
    weighed = torch.randn(contexts, len(counts), counts[0], generator=generator)
    exact = [each.double().requires_grad_() for each in (products, gram, norms)]
    padded = Ragged(exact[0], counts).padded()
    if focal is not None and not _is_sure(padded.detach().float(), mask, 0.1, focal):
        return
    wanted = plainly(padded, *exact[1:], mask, slope=0.1, temperature=4.0, focal=focal)
    (wanted * weighed).sum().backward()
    how = attended.How(0.1, 4.0, EPSILON, focal, partial(refocus, focal=focal) if focal else None, None)
    given_ = [each.detach().requires_grad_() for each in (products, gram, norms)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attended_program, "FEW", 0)
        found = attended.attended_cosines(Ragged(given_[0], counts), *given_[1:], mask, how)
        (found * weighed).sum().backward()
        with torch.no_grad():
            assert torch.equal(attended.attended_cosines(Ragged(given_[0], counts), *given_[1:], mask, how), found)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    for mine, right in zip(given_, exact, strict=True):
        scale = float(right.grad.abs().max()) + 1
        torch.testing.assert_close(mine.grad.double() / scale, right.grad / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("score", [scan_scores, partial(scan_scores, direction="i2t"), bfan_scores])
@pytest.mark.parametrize(("columns", "size"), [(2048, 16 << 20), (40, 3000), (1, 1)])
def test_spans_and_tiles_change_neither_scores_nor_gradients(score, columns, size, monkeypatch):
    """Words with gaps between them, images of different numbers of regions; BFAN needs two words (see above)."""
    generator = torch.Generator().manual_seed(3)
    regions, words = torch.randn(20, 9, 8, generator=generator), torch.randn(35, 7, 8, generator=generator)
    region_mask = torch.arange(9) < torch.randint(2, 10, (20, 1), generator=generator)
    word_mask = (torch.arange(7) < torch.randint(3, 8, (35, 1), generator=generator)) & (torch.arange(7) != 1)
    monkeypatch.setattr(attended_program, "FEW", 0)
    found = []
    for ragged in (True, False):
        for module in (scan, bfan):
            monkeypatch.setattr(module, "takes_ragged", lambda *_, ragged=ragged, **__: ragged)
        monkeypatch.setattr(attention, "RAGGED_COLUMNS", columns)
        monkeypatch.setattr(attention, "RAGGED_BYTES", size)
        inputs = [each.clone().requires_grad_() for each in (regions, words)]
        scores = score(*inputs, region_mask, word_mask)
        found.append((scores, *torch.autograd.grad(scores.square().sum(), inputs)))
        with torch.no_grad():
            torch.testing.assert_close(score(regions, words, region_mask, word_mask), scores, rtol=0, atol=1e-6)
    for ours, dense in zip(*found, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-4)


def _is_sure(products, mask, slope, focal):
    """Whether the focal function keeps the same in float32 as in float64, by a margin."""
    ones = torch.ones(1, *products.shape[2:], dtype=torch.bool)
    weights = attention_weights(
        products.double(), mask, ones, normalization="l2" if slope == 1 else "clipped_l2", temperature=4.0
    )
    real = mask[:, :, None, None]
    trust = real.double() if focal == "equal" else weights.sqrt()
    apart = weights * trust.sum(dim=1, keepdim=True) - (trust * weights).sum(dim=1, keepdim=True)
    return bool((apart.abs() > 1e-5)[real.expand_as(apart)].all())


@pytest.mark.parametrize("score", [scan_scores, partial(scan_scores, direction="i2t"), bfan_scores])
def test_heads_score_alike_with_and_without_it(score, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(20, 9, 8, generator=generator), torch.randn(35, 7, 8, generator=generator)
    # Of a single word all regions that it is near to have equal weights, and BFAN's choice among them is rounding's.
    masks = (torch.arange(n) < torch.randint(2, n + 1, (m, 1), generator=generator) for m, n in ((20, 9), (35, 7)))
    region_mask, word_mask = masks
    monkeypatch.setattr(attended_program, "FEW", 0)
    calls = []
    run = attended_program.Attending._run
    monkeypatch.setattr(attended_program.Attending, "_run", lambda *args: (calls.append(args[1]), run(*args)))
    compiled = score(regions, words, region_mask, word_mask)
    assert calls
    monkeypatch.setattr(attended, "is_served", lambda values, queries: False)
    torch.testing.assert_close(compiled, score(regions, words, region_mask, word_mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", [SCAN(), SCAN(direction="i2t"), BFAN()], ids=repr)
@pytest.mark.parametrize("served", [{4, 29}, {4}, {29}], ids=str)
def test_scoring_takes_it_for_some_packs_and_torch_for_others(head, served, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    regions, words = (torch.randn(sets, 29, 8, generator=generator) for sets in (41, 45))
    region_mask, word_mask = (  # few lengths: a pack for each
        torch.arange(29) < torch.tensor([4, 29])[torch.arange(sets) % 2, None] for sets in (41, 45)
    )
    seen = set()
    monkeypatch.setattr(
        tiles, "is_served", lambda values, queries: (seen.add(values.shape[1]), values.shape[1] in served)[1]
    )
    mixed = score_all(head, regions, words, region_mask, word_mask)
    assert seen == {4, 29}
    monkeypatch.setattr(tiles, "is_served", lambda values, queries: False)
    torch.testing.assert_close(mixed, score_all(head, regions, words, region_mask, word_mask), rtol=0, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_a_forked_process_has_threads_of_its_own():
    done = []
    attended_program._pool(2).submit(done.append, 1).result()
    if (child := os.fork()) == 0:
        attended_program._pool(2).submit(done.append, 2).result(timeout=20)
        os._exit(0 if done == [1, 2] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_gradients_of_gradients_are_there(monkeypatch):
    monkeypatch.setattr(attended_program, "FEW", 0)
    regions = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    words = torch.randn(16, 2, 4, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(scan_scores(regions, words).sum(), regions, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), regions)
    exact = regions.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(scan_scores(exact, words.double()).sum(), exact, create_graph=True)
    (wanted,) = torch.autograd.grad(slope.square().sum(), exact)
    torch.testing.assert_close(second.double(), wanted, rtol=1e-3, atol=1e-3)


def test_what_it_does_not_compute_is_left_to_torch():
    products, few = torch.empty(64, 16, 4, 16), torch.empty(2, 2, 2, 16)
    assert attended_program.is_served(products, 16)
    assert not attended_program.is_served(products.double(), 16)
    assert not attended_program.is_served(few, 16)
    assert not attended_program.is_served(products, 1)


@pytest.mark.parametrize("head", [SCAN(), BFAN()], ids=repr)
def test_scoring_puts_narrow_packs_together_for_it(head, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(30, 29, 8, generator=generator), torch.randn(33, 29, 8, generator=generator)
    word_mask = torch.arange(29) < torch.tensor([8] * 20 + [29] + [11] * 3 + [18] * 9)[:, None]
    shapes = []
    run = attended_program.Attending._run
    monkeypatch.setattr(
        attended_program.Attending, "_run", lambda self, *args: (shapes.append(self.shape), run(self, *args))
    )
    found = score_all(head, regions, words, None, word_mask)
    assert {shape[2:] for shape in shapes} >= {(8, 20), (18, 9), (29, 4)}  # words and captions: 11 and 29 together
    exact = score_all(head.double(), regions.double(), words.double(), None, word_mask)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["region", "word"])
@pytest.mark.parametrize(
    "head",
    [*(SCAN(d, "clipped_l2", a) for d in ("t2i", "i2t") for a in ("mean", "max", "logsumexp")), BFAN(), BFAN("equal")],
    ids=repr,
)
@pytest.mark.parametrize("is_compiled", [True, False])
def test_what_is_not_finite_is_seen_in_all_scores_that_read_it_and_in_no_others(
    head, side, bad, is_compiled, monkeypatch
):
    monkeypatch.setattr(attended_program, "FEW", 0 if is_compiled else 1 << 60)
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(12, 5, 8, generator=generator), torch.randn(16, 4, 8, generator=generator)
    (regions if side == "region" else words)[3, 2, 1] = bad
    lost = torch.tensor(
        [[(image if side == "region" else caption) == 3 for caption in range(16)] for image in range(12)]
    )
    for found in (head(regions, words), score_all(head, regions, words)):
        assert torch.equal(found.isnan(), lost)
    inputs = regions.requires_grad_(), words.requires_grad_()
    by_regions, _ = torch.autograd.grad(head(*inputs).sum(), inputs)
    assert not by_regions[3].isfinite().all()


def plain_scores(regions, words, *, normalization):
    """SCAN's mean over words, one word of one pair after the other; products that are all zero have logits of zero."""
    scores = []
    for image in regions:
        for caption in words:
            logits = []
            for region in image:
                products = torch.stack([region @ word for word in caption])
                clipped = torch.where(products > 0, products, 0.1 * products)
                length = clipped.norm() if normalization.endswith("l2") else clipped.abs().sum()
                logits.append(9 * clipped / length if length > 0 else torch.zeros_like(clipped))
            cosines = []
            for number, word in enumerate(caption):
                weights = torch.stack([logit[number] for logit in logits]).softmax(dim=0)
                attended = sum(weight * region for weight, region in zip(weights, image, strict=True))
                cosines.append(torch.cosine_similarity(attended, word, dim=0))
            scores.append(torch.stack(cosines).mean())
    return torch.stack(scores).view(len(regions), len(words))


@pytest.mark.parametrize("normalization", ["clipped_l2", "clipped_l1"])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_region_of_zeros_leaves_gradients_as_exact_as_they_are_without(normalization, is_compiled, monkeypatch):
    monkeypatch.setattr(attended_program, "FEW", 0 if is_compiled else 1 << 60)
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(2, 3, 6, generator=generator), torch.randn(8, 2, 6, generator=generator)
    regions[1, 1] = 0
    weighed = torch.randn(2, 8, generator=generator)
    inputs = [each.clone().requires_grad_() for each in (regions, words)]
    found = scan_scores(*inputs, normalization=normalization, aggregation="mean")
    exact = [each.double().requires_grad_() for each in (regions, words)]
    wanted = plain_scores(*exact, normalization=normalization)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)
    gradients = torch.autograd.grad((found * weighed).sum(), inputs)
    for ours, right in zip(gradients, torch.autograd.grad((wanted * weighed).sum(), exact), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=0, atol=1e-5)
