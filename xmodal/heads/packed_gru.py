"""GRUs on a CPU with as few and as large matrix products as their order in time allows.

torch walks a GRU step by step, forwards and backwards, and lets every step add its share to the gradient of the
weights: a product as tall as the batch, and a pass over the whole matrix, for each. Here the products with the inputs
of all steps are one, so is the gradient of each weight, and only what depends on the step before goes step by step.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.products import inner_products, linear

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn
    from torch.nn.utils.rnn import PackedSequence


def gru_states(rnn: nn.GRU, items: PackedSequence) -> PackedSequence:
    """The states of a GRU at all items of packed sequences, both directions side by side: `rnn(items)[0]`.

    Other devices than a CPU, autocast and compiled code are left to torch, and so is dropout between layers.

    Args:
        rnn: its parameters are read; batches first or not, any number of layers.
        items: packed sequences.

    Example:
        >>> import torch
        >>> from torch.nn.utils.rnn import pack_sequence
        >>> from xmodal.heads.packed_gru import gru_states
        >>> rnn, items = torch.nn.GRU(4, 8, bidirectional=True), pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
        >>> torch.allclose(gru_states(rnn, items).data, rnn(items)[0].data, atol=1e-6)
        True
    """
    on_cpu = items.data.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if not on_cpu or torch.compiler.is_compiling() or (rnn.dropout and rnn.training) or rnn.proj_size:
        return rnn(items)[0]
    data, sizes = items.data, items.batch_sizes.tolist()
    for layer in range(rnn.num_layers):
        states = []
        for suffix in ("", "_reverse") if rnn.bidirectional else ("",):
            name = f"l{layer}{suffix}"
            gates = linear(data, getattr(rnn, f"weight_ih_{name}"), getattr(rnn, f"bias_ih_{name}", None))
            bias = getattr(rnn, f"bias_hh_{name}", None)
            bias = gates.new_zeros(gates.shape[1]) if bias is None else bias
            states.append(_one_way(gates, getattr(rnn, f"weight_hh_{name}"), bias, sizes, suffix != ""))
        data = torch.cat(states, dim=1) if len(states) > 1 else states[0]
    return items._replace(data=data)


def _one_way(gates: Tensor, weight: Tensor, bias: Tensor, sizes: list[int], backwards: bool) -> Tensor:
    """The states of one direction; only where a gradient is asked for, with what it needs."""
    if torch.is_grad_enabled() and (gates.requires_grad or weight.requires_grad or bias.requires_grad):
        return _States.apply(gates, weight, bias, sizes, backwards)  # type: ignore[return-value]
    return _walk(gates, weight, bias, sizes, backwards, None)


class _Kept(NamedTuple):
    """What the gradient needs of every step."""

    before: Tensor
    """The state before it."""
    opened: Tensor
    """Reset and update gate, and the new state that they mix with the one before."""
    reset_of: Tensor
    """What the reset gate scales."""


def _walk(
    gates: Tensor, weight: Tensor, bias: Tensor, sizes: list[int], backwards: bool, kept: _Kept | None
) -> Float[Tensor, "item dim"]:
    """Step by step, in buffers; nothing here has a gradient."""
    dim = weight.shape[1]
    states, state = gates.new_empty(len(gates), dim), gates.new_zeros(sizes[0], dim)
    for rows, size in _steps(sizes, backwards):
        from_state = linear(state[:size], weight, bias)
        both = from_state[:, : 2 * dim].add_(gates[rows, : 2 * dim]).sigmoid_()
        new = torch.addcmul(gates[rows, 2 * dim :], both[:, :dim], from_state[:, 2 * dim :]).tanh_()
        torch.lerp(new, state[:size], both[:, dim:], out=states[rows])
        if kept is not None:
            kept.before[rows] = state[:size]
            kept.reset_of[rows] = from_state[:, 2 * dim :]
            kept.opened[rows, : 2 * dim] = both
            kept.opened[rows, 2 * dim :] = new
        state[:size] = states[rows]
    return states


class _States(torch.autograd.Function):
    """The states of one direction from what the inputs bring to the gates (reset, update, new).

    Rows are packed: all first items, then all second ones, of sequences from long to short.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor, sizes: list[int], backwards: bool) -> Tensor:
        kept = _Kept(*(gates.new_empty(len(gates), size) for size in (weight.shape[1], len(weight), weight.shape[1])))
        states = _walk(gates, weight, bias, sizes, backwards, kept)
        ctx.save_for_backward(gates, weight, bias, *kept)
        ctx.sizes, ctx.backwards = sizes, backwards
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gates, weight, bias, before, opened, reset_of = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants the gradient of a gradient
            states = _differentiable(gates, weight, bias, ctx.sizes, ctx.backwards)
            needed = [tensor for tensor in (gates, weight, bias) if tensor.requires_grad]
            found = iter(torch.autograd.grad(states, needed, gradient, create_graph=True))
            return *(next(found) if tensor.requires_grad else None for tensor in (gates, weight, bias)), None, None
        dim = weight.shape[1]
        reset, update, new = opened.split(dim, dim=1)
        # What a gate's gradient is of the state's, and the state's of the next one's, for all steps at once.
        to_new = (1 - update) * (1 - new * new)
        to_update = (before - new) * update * (1 - update)
        to_reset = to_new * reset_of * reset * (1 - reset)
        to_state = torch.cat([to_reset, to_update, to_new * reset], dim=1)
        carried = gates.new_zeros(ctx.sizes[0], dim)
        whole = torch.empty_like(before)
        for rows, size in _steps(ctx.sizes, not ctx.backwards):
            here = torch.add(gradient[rows], carried[:size], out=whole[rows])
            to_state[rows].view(size, 3, dim).mul_(here[:, None])
            carried[:size] = inner_products(to_state[rows], weight.T).addcmul_(here, update[rows])
        for_gates = torch.cat([to_state[:, : 2 * dim], to_new.mul_(whole)], dim=1)
        return for_gates, inner_products(to_state.T, before.T), to_state.sum(dim=0), None, None


def _steps(sizes: list[int], backwards: bool) -> list[tuple[slice, int]]:
    """The rows of every step and their number, in the order in which a direction takes them."""
    ends = list(itertools.accumulate(sizes))
    steps = [(slice(end - size, end), size) for end, size in zip(ends, sizes, strict=True)]
    return steps[::-1] if backwards else steps


def _differentiable(gates: Tensor, weight: Tensor, bias: Tensor, sizes: list[int], backwards: bool) -> Tensor:
    """The states by operations that have gradients of any order; slower."""
    dim, steps = weight.shape[1], _steps(sizes, backwards)
    state, states = gates.new_zeros(0, dim), []
    for rows, size in steps:
        missing = size - len(state)  # sequences that begin here, read backwards, or end before, read forwards
        state = torch.cat([state, gates.new_zeros(missing, dim)]) if missing > 0 else state[:size]
        reset, update, new = gates[rows].split(dim, dim=1)
        from_reset, from_update, from_new = linear(state, weight, bias).split(dim, dim=1)
        new = (new + (reset + from_reset).sigmoid() * from_new).tanh()
        state = new.lerp(state, (update + from_update).sigmoid())
        states.append(state)
    return torch.cat(states[::-1] if backwards else states)
