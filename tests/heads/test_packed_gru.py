"""Our walk through a GRU gives torch's states and gradients, whatever the lengths, layers and directions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from xmodal.heads.packed_gru import gru_states

KINDS = [{}, {"bidirectional": True}, {"bidirectional": True, "num_layers": 2}, {"bias": False}]
LENGTHS = [[3, 5, 1, 5], [2, 2], [1], [4, 1, 1]]


def packed(items, lengths):
    return pack_padded_sequence(items, torch.tensor(lengths), batch_first=True, enforce_sorted=False)


def sides(kind, lengths, dtype=torch.float32):
    torch.manual_seed(0)
    rnn = nn.GRU(4, 6, batch_first=True, **kind).to(dtype)
    return rnn, torch.randn(len(lengths), max(lengths), 4, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_states_and_gradients_are_those_of_torch(kind, lengths):
    rnn, items = sides(kind, lengths)
    wanted = [items, *rnn.parameters()]
    ours, theirs = gru_states(rnn, packed(items, lengths)), rnn(packed(items, lengths))[0]
    torch.testing.assert_close(ours.data, theirs.data)
    assert torch.equal(ours.batch_sizes, theirs.batch_sizes)
    assert torch.equal(ours.unsorted_indices, theirs.unsorted_indices)
    weights = torch.randn_like(ours.data)
    gradients = [torch.autograd.grad((states.data * weights).sum(), wanted) for states in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(gru_states(rnn, packed(items, lengths)).data, theirs.data)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_are_those_of_differences_twice(kind):
    lengths = [2, 3, 1]
    rnn, items = sides(kind, lengths, torch.float64)
    names, parameters = zip(*rnn.named_parameters(), strict=True)

    def states(items, *parameters):
        with torch.nn.utils.stateless._reparametrize_module(rnn, dict(zip(names, parameters, strict=True))):
            return gru_states(rnn, packed(items, lengths)).data

    inputs = (items, *(parameter.detach().requires_grad_() for parameter in parameters))
    assert torch.autograd.gradcheck(states, inputs)
    found, wanted = (
        _second_order(walk(rnn, packed(items, lengths)).data, [items, *parameters])
        for walk in (gru_states, lambda rnn, items: rnn(items)[0])
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def _second_order(states, inputs):
    first = torch.autograd.grad(states.square().sum(), inputs, create_graph=True)
    return torch.autograd.grad(sum(each.square().sum() for each in first), inputs)


def test_only_what_asks_for_a_gradient_gets_one():
    rnn, items = sides({}, [3, 2])
    rnn.weight_hh_l0.requires_grad_(False)
    gru_states(rnn, packed(items.detach(), [3, 2])).data.sum().backward()
    assert rnn.weight_hh_l0.grad is None
    assert rnn.weight_ih_l0.grad.abs().sum() > 0


def test_dropout_between_layers_and_autocast_are_left_to_torch():
    rnn, items = sides({"num_layers": 2, "dropout": 0.5}, [3, 2])
    torch.manual_seed(1)
    ours = gru_states(rnn, packed(items, [3, 2])).data
    torch.manual_seed(1)
    assert torch.equal(ours, rnn(packed(items, [3, 2]))[0].data)
    torch.testing.assert_close(gru_states(rnn.eval(), packed(items, [3, 2])).data, rnn(packed(items, [3, 2]))[0].data)
    with torch.autocast("cpu", torch.bfloat16):
        assert gru_states(rnn, packed(items, [3, 2])).data.dtype == rnn(packed(items, [3, 2]))[0].data.dtype
