"""VSRN against plain loops over one image and one caption, and against the released code's figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from xmodal.heads import VSRN
from xmodal.heads.vsrn import RegionGraph, normalize_regions
from xmodal.objectives import hinge_ranking_loss

GOLDEN = Path(__file__).parents[1] / "golden"
FLAVORS = [(norm, region_norm) for norm in ("l2", "batch") for region_norm in ("region", "dim")]


def random_head(seed: int, dim: int = 4, **options) -> VSRN:
    """A head in evaluation mode whose batch norms act, in float64."""
    generator = torch.Generator().manual_seed(seed)
    head = VSRN(dim, **options).double()
    for name, value in head.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator).abs() + 0.1 if "var" in name else
                        torch.randn(value.shape, generator=generator) * 0.5)  # fmt: skip
    return head.eval()


def random_sides(seed: int, images: int, captions: int, regions: int, words: int, dim: int = 4) -> list[Tensor]:
    """Ragged items with NaN for padding: (regions, words, region_mask, word_mask)."""
    generator = torch.Generator().manual_seed(seed)
    items, masks = [], []
    for count, length in ((images, regions), (captions, words)):
        mask = torch.arange(length) < torch.randint(1, length + 1, (count, 1), generator=generator)
        side = torch.randn(count, length, dim, generator=generator, dtype=torch.float64)
        items.append(side.masked_fill(~mask[..., None], float("nan")))
        masks.append(mask)
    return [*items, *masks]


def oracle_norm(regions: list[Tensor], axis: str) -> list[Tensor]:
    if axis == "dim":
        return [r / r.norm() for r in regions]
    lengths = sum(r**2 for r in regions) ** 0.5
    return [r / lengths for r in regions]


def oracle_batch_norm(x: Tensor, norm: torch.nn.BatchNorm1d) -> Tensor:
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def oracle_gru(inputs: list[Tensor], rnn: torch.nn.GRU) -> Tensor:
    hidden = torch.zeros(rnn.hidden_size, dtype=torch.float64)
    for x in inputs:
        from_input = (rnn.weight_ih_l0 @ x + rnn.bias_ih_l0).chunk(3)
        from_hidden = (rnn.weight_hh_l0 @ hidden + rnn.bias_hh_l0).chunk(3)
        reset = torch.sigmoid(from_input[0] + from_hidden[0])
        update = torch.sigmoid(from_input[1] + from_hidden[1])
        new = torch.tanh(from_input[2] + reset * from_hidden[2])
        hidden = (1 - update) * new + update * hidden
    return hidden


def oracle_states(head: VSRN, image: Tensor) -> list[Tensor]:
    regions = list(image)
    if head.norm == "l2":
        regions = oracle_norm(regions, head.region_norm)
    for layer in head.graph:
        updated = []
        for region in regions:
            message = torch.zeros(head.dim, dtype=torch.float64)
            for other in regions:
                message = message + (layer.subject(region) @ layer.object(other)) * layer.value(other) / len(regions)
            updated.append(region + oracle_batch_norm(layer.output(message), layer.norm))
        regions = updated
    return oracle_norm(regions, head.region_norm)


def oracle_image(head: VSRN, image: Tensor) -> Tensor:
    pooled = oracle_gru(oracle_states(head, image), head.rnn)
    if head.norm == "batch":
        pooled = oracle_batch_norm(pooled, head.pooled_norm)
    return pooled / pooled.norm()


@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4),
       st.sampled_from(FLAVORS))  # fmt: skip
def test_equals_the_plain_loop(seed, images, captions, regions, words, flavor):
    head = random_head(seed, layers=1 + seed % 2, norm=flavor[0], region_norm=flavor[1])
    r, w, region_mask, word_mask = random_sides(seed, images, captions, regions, words)
    with torch.no_grad():
        scores = head(r, w, region_mask, word_mask)
        states = head.reason(r, region_mask)
        for i in range(images):
            real = r[i][region_mask[i]]
            torch.testing.assert_close(states[i, : len(real)], torch.stack(oracle_states(head, real)))
            assert not states[i, len(real) :].any()
            for c in range(captions):
                last = w[c][word_mask[c]][-1]
                torch.testing.assert_close(scores[i, c], oracle_image(head, real) @ last / last.norm())


@given(st.integers(0, 999), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2), st.sampled_from(FLAVORS))
def test_order_padding_and_batch_do_not_matter(seed, count, more_regions, more_words, flavor):
    head = random_head(seed, norm=flavor[0], region_norm=flavor[1])
    r, w, region_mask, word_mask = random_sides(seed, count, count + 1, 4, 3)
    scores = head(r, w, region_mask, word_mask)
    images, captions = torch.randperm(count), torch.randperm(count + 1)
    pad = torch.nn.functional.pad
    padded = head(
        pad(r[images], (0, 0, 0, more_regions), value=float("inf")),
        pad(w[captions], (0, 0, 0, more_words), value=float("nan")),
        pad(region_mask[images], (0, more_regions)),
        pad(word_mask[captions], (0, more_words)),
    )
    torch.testing.assert_close(padded, scores[images][:, captions])
    torch.testing.assert_close(head(r[:1], w[:1], region_mask[:1], word_mask[:1]), scores[:1, :1])


@pytest.mark.parametrize("norm", ["l2", "batch"])
def test_padding_does_not_matter_in_training(norm):
    r, w, region_mask, word_mask = random_sides(3, 4, 4, 5, 3)
    results = []
    for more in (0, 3):
        head = random_head(1, norm=norm).train()
        regions = torch.nn.functional.pad(r, (0, 0, 0, more), value=float("nan")).requires_grad_()
        scores = head(regions, w, torch.nn.functional.pad(region_mask, (0, more)), word_mask)
        hinge_ranking_loss(scores).backward()
        gradients = [p.grad for p in head.parameters()]
        results.append([scores, regions.grad[:, :5], *gradients, *head.buffers()])
    for short, long in zip(*results, strict=True):
        assert short.isfinite().all()
        torch.testing.assert_close(short, long)


def test_training_statistics_are_those_of_the_real_regions():
    r, _, region_mask, _ = random_sides(3, 4, 4, 5, 3)
    head = random_head(1, layers=1).train()
    layer = head.graph[0]
    seen = []
    layer.norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    head.embed_images(r, region_mask)
    assert seen[0].shape == (int(region_mask.sum()), head.dim)


def test_new_graph_layers_change_nothing():
    states = torch.randn(2, 5, 4)
    mask = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(VSRN(4, norm="batch").reason(states), normalize_regions(states, mask, axis="region"))


def released_head(data: str, norm: str) -> tuple[VSRN, dict[str, Tensor], dict[str, Tensor]]:
    """The head with the weights of a released-layout checkpoint, and the image and text weights."""
    checkpoint = torch.load(GOLDEN / f"s1_vsrn_{data}_precomp.pth.tar", weights_only=False)
    image, text = checkpoint["model"]
    names = {"g": "value", "theta": "subject", "phi": "object", "W.0": "output", "W.1": "norm"}
    head = VSRN(16, norm=norm)
    weights = {f"rnn.{n.removeprefix('img_rnn.')}": v for n, v in image.items() if n.startswith("img_rnn.")}
    weights |= {f"pooled_norm.{n.removeprefix('bn.')}": v for n, v in image.items() if n.startswith("bn.")}
    for layer in range(4):
        for theirs, ours in names.items():
            prefix = f"Rs_GCN_{layer + 1}.{theirs}."
            for name, value in image.items():
                if name.startswith(prefix):
                    value = value[..., 0] if value.ndim == 3 else value
                    weights[f"graph.{layer}.{ours}.{name.removeprefix(prefix)}"] = value
    head.load_state_dict(weights)
    return head.eval(), image, text


@pytest.mark.parametrize(("data", "norm"), [("coco", "l2"), ("f30k", "batch")])
def test_golden(data, norm):
    golden = {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(GOLDEN / "s1_vsrn.npz").items()}
    expected = {n.split("/")[-1]: v for n, v in golden.items() if n.startswith(data)}
    head, image, text = released_head(data, norm)
    regions = golden["features"] @ image["fc.weight"].T + image["fc.bias"]
    sentence = torch.nn.GRU(6, 16, batch_first=True)
    sentence.load_state_dict({n.removeprefix("rnn."): v for n, v in text.items() if n.startswith("rnn.")})
    words, _ = sentence(text["embed.weight"][golden["tokens"]])
    word_mask = torch.arange(words.shape[1]) < golden["lengths"][:, None]
    scores = head(regions, words, None, word_mask)
    close = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(head.reason(regions), expected["region_embedding"], **close)
    torch.testing.assert_close(head.embed_images(regions), expected["image_embedding"], **close)
    torch.testing.assert_close(head.embed_captions(words, word_mask), expected["text_embedding"], **close)
    torch.testing.assert_close(scores, expected["sim"], **close)
    torch.testing.assert_close(hinge_ranking_loss(scores), expected["loss_hard"], atol=1e-4, rtol=0)
    torch.testing.assert_close(hinge_ranking_loss(scores, hardest=False), expected["loss_sum"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_zero_channels_and_regions_are_finite(flavor):
    head = random_head(2, norm=flavor[0], region_norm=flavor[1])
    regions = torch.zeros(2, 3, 4, dtype=torch.float64)
    regions[1, :, 1:] = torch.randn(3, 3, dtype=torch.float64)
    regions.requires_grad_()
    scores = head(regions, torch.randn(2, 3, 4, dtype=torch.float64))
    scores.sum().backward()
    assert scores.isfinite().all()
    assert regions.grad.isfinite().all()


@pytest.mark.parametrize("axis", ["region", "dim"])
def test_normalization_keeps_zeros_and_unit_norms(axis):
    regions = torch.randn(2, 3, 4)
    regions[0, :, 1] = 0
    regions[1, 2] = 0
    mask = torch.tensor([[True, True, False], [True, True, True]])
    normalized = normalize_regions(regions, mask, axis=axis)
    norms = normalized.norm(dim=1 if axis == "region" else 2)
    empty = regions.masked_fill(~mask[..., None], 0.0).norm(dim=1 if axis == "region" else 2) == 0
    torch.testing.assert_close(norms, (~empty).float())


@pytest.mark.parametrize("flavor", FLAVORS)
def test_gradcheck(flavor):
    head = random_head(4, dim=3, layers=1, norm=flavor[0], region_norm=flavor[1])
    _, _, region_mask, word_mask = random_sides(4, 2, 2, 3, 2, dim=3)
    regions = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    words = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r, w: head(r, w, region_mask, word_mask), (regions, words))


@pytest.mark.parametrize("norm", ["l2", "batch"])
def test_half_precision_and_autocast_are_finite(norm):
    r, w, region_mask, word_mask = random_sides(5, 3, 3, 5, 4, dim=16)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        head = VSRN(16, norm=norm)
        regions = r.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            scores = head(regions, w.to(dtype), region_mask, word_mask.clone())
        scores.float().sum().backward()
        assert scores.isfinite().all()
        assert regions.grad.isfinite().all()


def test_weights_in_half_precision_are_close_to_the_exact_ones():
    head = random_head(6, dim=8)
    r, w, region_mask, word_mask = random_sides(6, 3, 3, 5, 4, dim=8)
    exact = head(r, w, region_mask, word_mask)
    rough = head.bfloat16()(r.bfloat16(), w.bfloat16(), region_mask, word_mask)
    torch.testing.assert_close(rough.double(), exact, atol=0.1, rtol=0)


def test_pairs_are_the_diagonal():
    sides = random_sides(8, 3, 3, 5, 4)
    head = random_head(8)
    torch.testing.assert_close(head.pairs(*sides), head(*sides).diag())


def test_attention_ranks_regions_by_agreement_with_the_image():
    head = random_head(9)
    r, w, region_mask, word_mask = random_sides(12, 3, 3, 5, 4)
    with torch.no_grad():
        weights = head.attention(r, w, region_mask, word_mask).weights
        for pair in range(3):
            real = r[pair][region_mask[pair]]
            whole = oracle_image(head, real)
            agreement = torch.stack([state @ whole for state in oracle_states(head, real)])
            shifted = agreement - agreement.min()
            expected = shifted / shifted.sum() if len(real) > 1 else torch.ones(1, dtype=torch.float64)
            for word in range(4):
                torch.testing.assert_close(
                    weights[pair, word, : len(real)], expected * float(word_mask[pair, word]), atol=1e-9, rtol=1e-6
                )
            assert not weights[pair, :, len(real) :].any()


REGIONS, WORDS = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
GAP = torch.tensor([[True, False, True], [True, True, True]])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((REGIONS[0], WORDS), r"regions must be \(image, region, dim\), got shape \(3, 4\)"),
        ((REGIONS[..., :3], WORDS), "regions have dim 3, this head was built with dim=4"),
        ((REGIONS, WORDS[..., :3]), "words have dim 3, this head was built with dim=4"),
        ((REGIONS, WORDS, GAP.float()), "region_mask must be boolean"),
        ((REGIONS, WORDS, ~GAP), "image 1 has no real region in region_mask"),
        ((REGIONS, WORDS, GAP), "region_mask must be True for the first items and False after them"),
        ((REGIONS, WORDS, None, torch.zeros(2, 5, dtype=torch.bool)), "caption 0 has no real word"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VSRN(4)(*arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "coco"}, "norm must be one of l2, batch; got 'coco'"),
        ({"region_norm": "channel"}, "region_norm must be one of region, dim; got 'channel'"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VSRN(4, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_joined_matrices_of_a_graph_layer_change_nothing(dtype):
    torch.manual_seed(0)
    layer, regions = RegionGraph(8).to(dtype).eval(), torch.randn(5, 7, 8, dtype=dtype)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) - 0.3 * (tensor.ndim == 2))
    real = torch.arange(7) < torch.tensor([7, 3, 1, 6, 5])[:, None]
    regions = regions.masked_fill(~real[..., None], 0.0)
    wanted = layer(regions, real)
    assert not layer._joining_pays(regions)  # somebody may ask for a gradient
    with torch.no_grad():
        assert layer._joining_pays(regions)
        assert not layer._joining_pays(regions[:1])
        found = layer(regions, real)
        torch.testing.assert_close(found, wanted.detach())
        assert (found[~real] == 0).all()
        garbage = regions.masked_fill(~real[..., None], 7.0)
        torch.testing.assert_close(layer(garbage, real)[real], wanted[real].detach())
