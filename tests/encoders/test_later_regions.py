"""The image sides of VSE-infinity, CHAN and ADAPT against plain loops, and fixed word vectors beside learned ones."""

from __future__ import annotations

import math

import pytest
import torch

from xmodal.data.region_store import RegionBatch
from xmodal.encoders.attending_regions import AttendingRegions
from xmodal.encoders.gru import GRUEncoder
from xmodal.encoders.regions import RegionProjection
from xmodal.encoders.residual_regions import ResidualRegions


def random_images(seed=0, content=0.0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [False, True, True, False]])
    features = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    return RegionBatch(features.masked_fill(~mask[..., None], content), mask)


def random_weights(module):
    generator = torch.Generator().manual_seed(1)
    for name, value in module.double().state_dict().items():
        if value.is_floating_point():
            random = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            value.copy_(random.abs() + 0.1 if "var" in name else random)
    return module.eval()


def slow_residual(encoder, feature):
    hidden = encoder.hidden.weight @ feature + encoder.hidden.bias
    norm = encoder.norm
    normed = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    linear = encoder.projection.weight @ feature + encoder.projection.bias
    return linear + encoder.output.weight @ normed.clamp(min=0) + encoder.output.bias


def test_residual_regions_equal_the_plain_loop_whatever_padding_holds():
    encoder = random_weights(ResidualRegions(6, 8, hidden_dim=5))
    batch = random_images()
    items, mask = encoder(batch)
    for image in range(3):
        for region in range(4):
            if mask[image, region]:
                expected = slow_residual(encoder, batch.regions[image, region])
                torch.testing.assert_close(items[image, region], expected)
    torch.testing.assert_close(encoder(random_images(content=1e30)).items, items)
    unit = random_weights(ResidualRegions(6, 8, normalize=True))(batch).items
    torch.testing.assert_close(unit.norm(dim=-1)[mask], torch.ones(int(mask.sum()), dtype=torch.float64))


def test_statistics_are_those_of_real_regions():
    encoder, batch = ResidualRegions(6, 8).double().train(), random_images(content=7.0)
    encoder(batch)
    hidden = encoder.hidden(batch.regions[batch.region_mask])
    torch.testing.assert_close(encoder.norm.running_mean, 0.1 * hidden.mean(dim=0))


def slow_attending(encoder, features, heads):
    """Every region asks every region of its image, head by head."""
    projected = [encoder.projection.weight @ f + encoder.projection.bias for f in features]
    asked = [torch.nn.functional.layer_norm(p, p.shape, encoder.norm.weight, encoder.norm.bias) for p in projected]
    attention, dim = encoder.attention, len(projected[0])
    weights, biases = attention.in_proj_weight.split(dim), attention.in_proj_bias.split(dim)
    queries, keys, values = ([w @ a + b for a in asked] for w, b in zip(weights, biases, strict=True))
    size, outputs = dim // heads, []
    for projection, query in zip(projected, queries, strict=True):
        parts = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = torch.stack([query[part] @ key[part] / math.sqrt(size) for key in keys])
            parts.append(sum(w * value[part] for w, value in zip(logits.softmax(0), values, strict=True)))
        mixed = attention.out_proj.weight @ torch.cat(parts) + attention.out_proj.bias
        outputs.append(torch.nn.functional.normalize(projection + mixed, dim=0))
    return outputs


def test_attending_regions_equal_the_plain_loop_whatever_padding_holds():
    encoder, batch = random_weights(AttendingRegions(6, 8, heads=2)), random_images(seed=2)
    items, mask = encoder(batch)
    for image in range(3):
        expected = slow_attending(encoder, batch.regions[image][mask[image]], heads=2)
        torch.testing.assert_close(items[image][mask[image]], torch.stack(expected))
    torch.testing.assert_close(encoder(random_images(seed=2, content=1e30)).items[mask], items[mask])


def test_attending_regions_have_the_attention_and_both_derivatives_of_torch():
    encoder, (regions, mask, *_) = random_weights(AttendingRegions(6, 8, heads=2)), random_images(seed=2)
    asked = torch.randn(*mask.shape, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    wanted, _ = encoder.attention(asked, asked, asked, key_padding_mask=~mask, need_weights=True)
    torch.testing.assert_close(encoder._attend(asked, mask)[mask], wanted[mask])

    def items(features):
        return encoder(RegionBatch(features, mask)).items[mask]

    assert torch.autograd.gradgradcheck(items, regions.clone().requires_grad_())


def test_the_projection_may_have_a_slope():
    one, other = RegionProjection(6, 8, slope=0.1, normalize=False), RegionProjection(6, 8, normalize=False)
    other.load_state_dict(one.state_dict())
    features = torch.randn(2, 4, 6)
    expected = torch.where(other.project(features) >= 0, other.project(features), 0.1 * other.project(features))
    torch.testing.assert_close(one.project(features), expected)


def test_fixed_vectors_are_read_beside_learned_ones_and_get_no_gradient():
    encoder = GRUEncoder(vocabulary_size=5, dim=8, word_dim=2, fixed_dim=3)
    vectors = torch.randn(5, 3)
    encoder.start_from(vectors, torch.tensor([True, True, False, True, True]))
    assert torch.equal(encoder.fixed.weight[2], torch.zeros(3))
    tokens = torch.tensor([[1, 4, 2]])
    encoder(tokens, tokens > 0).sum().backward()
    assert encoder.fixed.weight.grad is None
    assert encoder.embedding.weight.grad.abs().sum() > 0
    states, _ = encoder.rnn(torch.cat([encoder.fixed(tokens), encoder.embedding(tokens)], dim=-1))
    expected = torch.nn.functional.normalize((states[..., :8] + states[..., 8:]) / 2, dim=-1)
    torch.testing.assert_close(encoder(tokens, tokens > 0), expected)


@pytest.mark.bad_input
def test_heads_must_share_the_dim():
    with pytest.raises(ValueError, match="dim is 10 and heads 4; wanted a dim that so many heads can share"):
        AttendingRegions(6, 10, heads=4)
