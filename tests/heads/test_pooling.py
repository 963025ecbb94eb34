"""Poolers against plain loops over one set, term by term; their options by name."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from batches import DIM, batches, check_against, learned
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.heads import Cosine
from xmodal.heads.pooling import ESA, GPO, POOLERS, Pooler, SelfAttention, make_pooler
from xmodal.model import Matcher
from xmodal.names import build
from xmodal.training.command_line import parse
from xmodal.training.config import ModelConfig, TrainConfig
from xmodal.training.parts import changes, completed


def slow_gru(inputs, rnn, suffix=""):
    """States of one direction of a GRU, cell by cell."""
    weights = {part: getattr(rnn, f"{part}_l0{suffix}") for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    hidden, states = torch.zeros(rnn.hidden_size, dtype=torch.float64), []
    for x in inputs:
        from_input = (weights["weight_ih"] @ x + weights["bias_ih"]).chunk(3)
        from_hidden = (weights["weight_hh"] @ hidden + weights["bias_hh"]).chunk(3)
        reset, update = (torch.sigmoid(a + b) for a, b in zip(from_input[:2], from_hidden[:2], strict=True))
        new = torch.tanh(from_input[2] + reset * from_hidden[2])
        hidden = (1 - update) * new + update * hidden
        states.append(hidden)
    return states


def softmax(logits):
    total = sum(value.exp() for value in logits)
    return [value.exp() / total for value in logits]


def slow_gpo(items, pooler):
    codes = []
    for position in range(len(items)):
        code = []
        for channel in range(0, pooler.code_dim, 2):
            angle = position / 10000 ** (channel / pooler.code_dim)
            code += [math.sin(angle), math.cos(angle)]
        codes.append(torch.tensor(code, dtype=torch.float64))
    forward = slow_gru(codes, pooler.rnn)
    backward = slow_gru(codes[::-1], pooler.rnn, "_reverse")[::-1]
    logits = [pooler.linear.weight[0] @ (f + b) / 2 for f, b in zip(forward, backward, strict=True)]
    weights = softmax([value / pooler.temperature for value in logits])
    channels = []
    for channel in range(items.shape[1]):
        ranked = sorted(items[:, channel], key=torch.Tensor.item, reverse=True)
        channels.append(sum(weight * value for weight, value in zip(weights, ranked, strict=True)))
    return torch.stack(channels)


def slow_esa(items, pooler):
    logits = [pooler.linear.weight @ item + pooler.linear.bias for item in items]
    channels = []
    for channel in range(items.shape[1]):
        weights = softmax([logit[channel] for logit in logits])
        channels.append(sum(weight * item[channel] for weight, item in zip(weights, items, strict=True)))
    return torch.stack(channels)


def slow_norm(x, norm):
    """A batch norm of one vector of channels in evaluation mode."""
    if isinstance(norm, torch.nn.Identity):
        return x
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def slow_self_attention(items, pooler):
    local = [pooler.local.weight @ item + pooler.local.bias for item in items]
    if pooler.norm == "slot":
        n = pooler.local_norm
        local = [
            (x - n.running_mean[slot]) / (n.running_var[slot] + n.eps).sqrt() * n.weight[slot] + n.bias[slot]
            for slot, x in enumerate(local)
        ]
    else:
        local = [slow_norm(x, pooler.local_norm) for x in local]
    mean = sum(items) / len(items)
    whole = slow_norm(pooler.whole.weight @ mean + pooler.whole.bias, pooler.whole_norm).tanh()
    weights = softmax([pooler.logit.weight[0] @ (x.tanh() * whole) + pooler.logit.bias[0] for x in local])
    return sum(weight * item for weight, item in zip(weights, items, strict=True))


SLOW = {
    "mean": lambda items, pooler: sum(items) / len(items),
    "max": lambda items, pooler: torch.stack([max(items[:, c], key=torch.Tensor.item) for c in range(items.shape[1])]),
    "gpo": slow_gpo,
    "esa": slow_esa,
    "self_attention": slow_self_attention,
}


def slow_cosine(head, names):
    def score(regions, words):
        image = SLOW[names[0]](regions, head.image_pooler)
        caption = SLOW[names[1]](words, head.caption_pooler)
        return image @ caption / (image.norm() * caption.norm())

    return score


@pytest.mark.parametrize("names", [("mean", "max"), ("gpo", "gpo"), ("esa", "gpo"), ("self_attention", "esa")])
@settings(max_examples=15)
@given(batch=batches(dim=DIM), seed=st.integers(0, 99))
def test_equals_the_plain_loop(names, batch, seed):
    head = learned(Cosine(*names, dim=DIM), seed)
    check_against(slow_cosine(head, names), head, batch)


@pytest.mark.parametrize("norm", ["none", "channel", "slot"])
def test_norms_of_self_attention_equal_the_plain_loop(norm):
    pooler = learned(SelfAttention(DIM, norm=norm, slots=5), 3)
    items = torch.randn(4, 5, DIM, dtype=torch.float64)
    expected = torch.stack([slow_self_attention(one, pooler) for one in items])
    torch.testing.assert_close(pooler(items), expected, atol=1e-10, rtol=0)


def test_statistics_in_training_are_those_of_real_items():
    pooler, items = SelfAttention(DIM, norm="channel").train(), torch.randn(3, 4, DIM)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    pooler(items.masked_fill(~mask[..., None], float("nan")), mask)
    real = pooler.local(items[mask])
    torch.testing.assert_close(pooler.local_norm.running_mean, 0.1 * real.mean(dim=0))


def test_each_side_has_a_pooler_of_its_own():
    head = Cosine({"name": "gpo"})
    assert head.image_pooler is not head.caption_pooler
    assert len({id(p) for p in head.parameters()}) == 2 * len(list(GPO().parameters()))
    assert str(Cosine("max", "gpo").caption_pooler) == "GPO(temperature=0.1)"


def test_configurations_of_before_mean_the_same():
    about = {"prog": "xmodal train", "description": "Train."}
    for pooling in ("mean", "max"):
        old = TrainConfig(model=ModelConfig(head={"name": "cosine", "pooling": pooling}))
        new = TrainConfig(model=ModelConfig(head={"name": "cosine", "pooling": {"name": pooling}}))
        assert changes(old, new) == {}
        assert completed(old).model.head["pooling"] == {"name": pooling}
        chosen = parse(TrainConfig(), ["--model.head.name", "cosine", "--model.head.pooling", pooling], **about)
        assert chosen.model.head == new.model.head
    image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "word_dim": 4}
    matcher = Matcher(image, text, {"name": "cosine", "pooling": "esa"}, vocabulary=["a", "dog"])
    assert matcher.head.image_pooler.linear.weight.shape == (4, 4)


def test_poolers_and_their_options_on_the_command_line(capsys):
    about = {"prog": "xmodal train", "description": "Train."}
    head = ["--model.head.name=cosine", "--model.head.pooling=gpo", "--model.head.pooling.temperature=0.3"]
    chosen = parse(TrainConfig(), [*head, "--model.head.caption-pooling", "max"], **about).model.head
    pooling = {"name": "gpo", "code_dim": 32, "hidden_dim": 32, "temperature": 0.3}
    assert chosen == {"name": "cosine", "pooling": pooling, "caption_pooling": {"name": "max"}}
    with pytest.raises(SystemExit):
        parse(TrainConfig(), [*head, "--help"], **about)
    assert "Divides what the softmax takes" in capsys.readouterr().out


class Third(Pooler):
    """Somebody's own."""

    def __init__(self, factor: float = 3.0) -> None:
        super().__init__()
        self.factor = factor

    def pool(self, items, mask):
        return self.factor * items.sum(dim=1)


def test_a_pooler_of_somebody_else_by_its_dotted_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_pooler", sys.modules[__name__])
    head = build("head", {"cosine": Cosine}, {"name": "cosine", "pooling": {"name": "my_pooler:Third", "factor": 2.0}})
    assert head.image_pooler.factor == 2.0
    assert build("head", {"cosine": Cosine}, {"name": "cosine", "pooling": "my_pooler:Third"}).image_pooler.factor == 3


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"name": "gpo", "temprature": 1}, "pooling 'gpo' has no option 'temprature'; known: code_dim, hidden_dim"),
        ({"name": "mean", "dim": 4}, "pooling 'mean' has no option 'dim'; known: none"),
        ({"name": "gpo", "temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"name": "gpo", "code_dim": 3}, "code_dim must be even and at least 2, got 3"),
        ("esa", "pooling 'esa' needs the dim of the items"),
        ({"name": "self_attention", "dim": 4, "norm": "layer"}, "norm must be one of none, channel, slot; got 'layer'"),
        ({}, f"pooling must be one of {', '.join(POOLERS)}; got None"),
    ],
)
def test_bad_options_are_named(pooling, message):
    with pytest.raises(ValueError, match=message):
        make_pooler(pooling)


@pytest.mark.bad_input
def test_what_cannot_be_pooled_is_named():
    with pytest.raises(ValueError, match="dim is stated as 4, but it is 8 here"):
        make_pooler({"name": "esa", "dim": 4}, dim=8)
    with pytest.raises(ValueError, match="takes exactly 36 real items a set, got 5 to 5"):
        SelfAttention(8, norm="slot")(torch.ones(2, 5, 8))
    with pytest.raises(ValueError, match="items must be"):
        make_pooler("mean")(torch.ones(5, 8))
    with pytest.raises(NotImplementedError, match="Pooler has no pool"):
        Pooler()(torch.ones(1, 2, 3))


@pytest.mark.parametrize("drop", [0.2, 0.999])
def test_esa_leaves_items_out_in_training_only_and_never_all(drop):
    torch.manual_seed(0)
    pooler = ESA(DIM, drop=drop)
    items, mask = torch.randn(50, 9, DIM), torch.rand(50, 9) < 0.7
    mask[:, 0] = True
    views = [pooler.train()(items, mask) for _ in range(2)]
    assert (views[0] != views[1]).any(dim=1).float().mean() > (0.5 if drop < 0.5 else 0.0)
    assert all(view.isfinite().all() for view in views)
    kept = ESA(DIM)
    kept.load_state_dict(pooler.state_dict())
    assert torch.equal(pooler.eval()(items, mask), kept.train()(items, mask))
