"""Reading sets in order with a GRU: packed where that can be, step by step where the lengths are not known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xmodal.heads.packed_gru import gru_states
from xmodal.masks import counts

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor, nn


def read_in_order(
    rnn: nn.GRU, items: Float[Tensor, "set item input_dim"], mask: Bool[Tensor, "set item"]
) -> Float[Tensor, "set item state"]:
    """The states of a GRU at the real items of every set; padding gives zero and changes nothing.

    Real items come before the padding. A program that is exported cannot pack, which needs the lengths as numbers: it
    goes through all places and leaves the state as it is where there is padding. Backwards that is the zero that every
    set starts from, so that either direction sees nothing but real items.

    Args:
        rnn: one-way or bidirectional, of any number of layers, with `batch_first`.
        items: what it reads.
        mask: True = real.

    Example:
        >>> import torch
        >>> from xmodal.heads.recurrent import read_in_order
        >>> rnn, items = torch.nn.GRU(3, 4, batch_first=True, bidirectional=True), torch.randn(1, 5, 3)
        >>> states = read_in_order(rnn, items, torch.tensor([[True, True, False, False, False]]))
        >>> bool(torch.allclose(states[:, :2], rnn(items[:, :2])[0], atol=1e-6)), states[0, 2:].any().item()
        (True, False)
    """
    if torch.compiler.is_exporting():
        return _step_by_step(rnn, items, mask)
    held = torch.tensor(counts(mask), device="cpu")
    packed = pack_padded_sequence(items, held, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(gru_states(rnn, packed), batch_first=True, total_length=items.shape[1])[0]


def _step_by_step(
    rnn: nn.GRU, items: Float[Tensor, "set item input_dim"], mask: Bool[Tensor, "set item"]
) -> Float[Tensor, "set item state"]:
    for layer in range(rnn.num_layers):
        directions = ("", "_reverse") if rnn.bidirectional else ("",)
        items = torch.cat([_one_way(rnn, f"l{layer}{direction}", items, mask) for direction in directions], dim=-1)
    return items.masked_fill(~mask[..., None], 0.0)


def _one_way(
    rnn: nn.GRU, name: str, items: Float[Tensor, "set item input_dim"], mask: Bool[Tensor, "set item"]
) -> Float[Tensor, "set item state"]:
    """One direction of a layer, by the equations of `torch.nn.GRU`."""
    from torch._higher_order_ops.scan import scan  # where torch has it until it is `torch.scan`

    weight, bias = getattr(rnn, f"weight_hh_{name}"), getattr(rnn, f"bias_hh_{name}")
    inputs = F.linear(items, getattr(rnn, f"weight_ih_{name}"), getattr(rnn, f"bias_ih_{name}"))

    def step(state: Tensor, item: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        given, real = item
        reset_in, update_in, new_in = given.chunk(3, dim=-1)
        reset, update, new = F.linear(state, weight, bias).chunk(3, dim=-1)
        update = (update_in + update).sigmoid()
        new = (new_in + (reset_in + reset).sigmoid() * new).tanh()
        after = torch.where(real, (1 - update) * new + update * state, state)
        return after, after.clone()

    start = inputs.new_zeros(items.shape[0], rnn.hidden_size)  # `len` would be a fixed number in a graph
    places = (inputs.transpose(0, 1), mask.T[..., None])
    backward = name.endswith("_reverse")
    if backward:
        places = tuple(each.flip(0) for each in places)
    states = scan(step, start, places)[1]
    return (states.flip(0) if backward else states).transpose(0, 1)
