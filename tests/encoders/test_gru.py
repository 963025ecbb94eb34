"""The GRU over a batch of padded captions is the GRU over each caption alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.encoders.gru import GRUEncoder


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    padding=st.integers(0, 3),
    bidirectional=st.booleans(),
    normalize=st.booleans(),
    layers=st.integers(1, 2),
)
def test_padding_and_neighbors_change_nothing(lengths, padding, bidirectional, normalize, layers):
    torch.manual_seed(0)
    encoder = GRUEncoder(11, 6, 4, bidirectional, layers, normalize)
    mask = torch.arange(max(lengths) + padding) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(0, 11, mask.shape)
    words = encoder(tokens, mask)
    assert not words[~mask].any()
    for row, length, encoded in zip(tokens, lengths, words, strict=True):
        states, _ = encoder.rnn(encoder.embedding(row[None, :length]))
        if bidirectional:
            states = states.unflatten(-1, (2, 6)).mean(dim=2)
        if normalize:
            states = states / states.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(encoded[:length], states[0])


@pytest.mark.parametrize("mask", [[[True, False, True]], [[False, True, True]], [[False, False, False]]])
def test_a_mask_with_a_gap_is_refused(mask):
    with pytest.raises(ValueError, match="True for the first words"):
        GRUEncoder(5, 4)(torch.ones(1, 3, dtype=torch.long), torch.tensor(mask))


def test_word_vectors_replace_the_words_that_were_found():
    encoder = GRUEncoder(3, 4, word_dim=2)
    before = encoder.embedding.weight.detach().clone()
    encoder.start_from(torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]), torch.tensor([True, False, True]))
    assert encoder.embedding.weight.tolist()[::2] == [[1.0, 2.0], [3.0, 4.0]]
    assert torch.equal(encoder.embedding.weight[1], before[1])
    with pytest.raises(ValueError, match="word_dim to 5"):
        encoder.start_from(torch.zeros(3, 5), torch.ones(3, dtype=torch.bool))
