"""The captioner against plain loops, against every sentence there is, and against the released code's loss."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.objectives import Captioner, caption_labels, captioning_loss

GOLDEN = Path(__file__).parents[1] / "golden"
PAD, START, END = 0, 1, 2


def tiny(seed: int = 0, dim: int = 5, vocabulary_size: int = 6, hidden_dim: int = 4) -> Captioner:
    """A captioner in evaluation mode and float64 with opinions: its weights are large."""
    torch.manual_seed(seed)
    captioner = Captioner(dim, vocabulary_size, hidden_dim, word_dim=3).double().eval()
    for parameter in captioner.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    return captioner


def random_states(seed: int, images: int, regions: int, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged region states with NaN for padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(regions) < torch.randint(1, regions + 1, (images, 1), generator=generator)
    states = torch.randn(images, regions, dim, generator=generator, dtype=torch.float64)
    return states.masked_fill(~mask[..., None], float("nan")), mask


def oracle_gru(x, hidden, w_in, w_hidden, b_in, b_hidden):
    inputs, memory = (w_in @ x + b_in).chunk(3), (w_hidden @ hidden + b_hidden).chunk(3)
    reset, update = torch.sigmoid(inputs[0] + memory[0]), torch.sigmoid(inputs[1] + memory[1])
    return (1 - update) * torch.tanh(inputs[2] + reset * memory[2]) + update * hidden


def oracle_log_probabilities(captioner: Captioner, states: torch.Tensor, words: list[int]) -> list[torch.Tensor]:
    """Of the word after each of `words`, for the real regions of one image."""
    e, d = captioner.encoder, captioner.decoder
    hidden = torch.zeros(e.hidden_size, dtype=torch.float64)
    encoded = []
    for state in states:
        x = captioner.projection(state)
        hidden = oracle_gru(x, hidden, e.weight_ih_l0, e.weight_hh_l0, e.bias_ih_l0, e.bias_hh_l0)
        encoded.append(hidden)
    results = []
    for word in words:
        scores = [captioner.attention_score(torch.tanh(captioner.attention(torch.cat([h, hidden])))) for h in encoded]
        weights = [score.exp() / sum(s.exp() for s in scores) for score in scores]
        context = sum(a * h for a, h in zip(weights, encoded, strict=True))
        x = torch.cat([captioner.embedding.weight[word], context])
        hidden = oracle_gru(x, hidden, d.weight_ih, d.weight_hh, d.bias_ih, d.bias_hh)
        logits = captioner.output(hidden)
        results.append(logits - logits.exp().sum().log())
    return results


def oracle_score(captioner: Captioner, states: torch.Tensor, sentence: list[int]) -> float:
    steps = oracle_log_probabilities(captioner, states, [START, *sentence[:-1]])
    return float(sum(step[word] for step, word in zip(steps, sentence, strict=True)))


@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 4), st.integers(2, 5))
@settings(max_examples=20)
@torch.no_grad()
def test_teacher_forcing_equals_the_plain_loop(seed, images, regions, length):
    captioner = tiny(seed)
    states, mask = random_states(seed, images, regions)
    labels = torch.randint(0, 6, (images, length), generator=torch.Generator().manual_seed(seed))
    log_probabilities = captioner(states, labels, mask)
    for i in range(images):
        expected = oracle_log_probabilities(captioner, states[i][mask[i]], labels[i, :-1].tolist())
        torch.testing.assert_close(log_probabilities[i], torch.stack(expected))


@pytest.mark.parametrize("data", ["coco", "f30k"])
def test_golden(data):
    golden = {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(GOLDEN / "s1_vsrn.npz").items()}
    released = torch.load(GOLDEN / f"s1_vsrn_{data}_precomp_captioner.pth", weights_only=True)
    captioner = Captioner(dim=16, vocabulary_size=23, hidden_dim=8, word_dim=6)
    names = {
        "encoder.vid2hid": "projection", "encoder.rnn": "encoder", "decoder.embedding": "embedding",
        "decoder.attention.linear1": "attention", "decoder.attention.linear2": "attention_score",
        "decoder.rnn": "decoder", "decoder.out": "output",
    }  # fmt: skip
    weights = {}
    for name, value in released.items():
        module, parameter = name.rsplit(".", 1)
        ours = names[module]
        weights[f"{ours}.{parameter.removesuffix('_l0') if ours == 'decoder' else parameter}"] = value
    captioner.load_state_dict(weights)
    states, labels = golden[f"{data}_precomp/eval/region_embedding"], golden["caption_labels"]
    label_mask = golden["caption_masks"].bool()
    expected = golden[f"{data}_precomp/eval/caption_loss"]
    captioner.eval()
    torch.testing.assert_close(captioner.loss(states, labels, label_mask), expected, atol=1e-4, rtol=0)
    whole = captioning_loss(captioner(states, labels), labels, label_mask)
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)


def test_golden_labels():
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "s1_vsrn.npz").items() if value.ndim}
    word_mask = torch.arange(golden["tokens"].shape[1]) < golden["lengths"][:, None]
    assert torch.equal(caption_labels(golden["tokens"], word_mask, max_length=10).labels, golden["caption_labels"])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(2, 12), st.integers(0, 2))
def test_labels_equal_the_plain_loop(counts, max_length, padding):
    sentences = [[START, *range(5, 5 + count), END] for count in counts]
    width = max(map(len, sentences)) + padding
    tokens = torch.tensor([s + [99] * (width - len(s)) for s in sentences])
    word_mask = torch.tensor([[True] * len(s) + [False] * (width - len(s)) for s in sentences])
    labels, label_mask = caption_labels(tokens, word_mask, max_length)
    for row, mask, sentence in zip(labels.tolist(), label_mask.tolist(), sentences, strict=True):
        expected = sentence if len(sentence) <= max_length else [*sentence[: max_length - 1], END]
        expected = expected + [PAD] * (max_length - len(expected))
        first_pad = expected.index(PAD) if PAD in expected else max_length
        assert row == expected
        assert mask == [position <= first_pad for position in range(max_length)]


@given(st.integers(0, 999), st.integers(1, 4))
@settings(max_examples=20)
def test_loss_equals_the_plain_loop(seed, captions):
    generator = torch.Generator().manual_seed(seed)
    log_probabilities = torch.randn(captions, 4, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    labels = torch.randint(0, 6, (captions, 5), generator=generator)
    mask = torch.rand(captions, 5, generator=generator) < 0.5
    total = 0.0
    for c, k in product(range(captions), range(1, 5)):
        total -= float(log_probabilities[c, k - 1, labels[c, k]]) if mask[c, k] else 0.0
    assert float(captioning_loss(log_probabilities, labels, mask)) == pytest.approx(total / captions)


@given(st.integers(0, 999), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=20)
def test_padding_and_order_do_not_matter(seed, count, more):
    captioner = tiny(seed)
    states, mask = random_states(seed, count, 4)
    order = torch.randperm(count)
    labels, label_mask = caption_labels(torch.tensor([[1, 4, 2]] * count), torch.ones(count, 3).bool(), 5)
    pad = torch.nn.functional.pad
    padded = pad(states[order], (0, 0, 0, more), value=float("inf")), pad(mask[order], (0, more))
    torch.testing.assert_close(captioner(padded[0], labels, padded[1]), captioner(states, labels, mask)[order])
    ours, theirs = captioner.beam(*padded, beam_size=2, max_length=4), captioner.beam(states, mask, 2, 4)
    torch.testing.assert_close(ours.log_probability, theirs.log_probability[order])
    assert torch.equal(ours.tokens, theirs.tokens[order])
    more_labels = captioner.loss(states, pad(labels, (0, 3)), pad(label_mask, (0, 3)), mask)
    torch.testing.assert_close(more_labels, captioner.loss(states, labels, label_mask, mask))


@given(st.integers(0, 999), st.integers(1, 3))
@settings(max_examples=15)
@torch.no_grad()
def test_a_beam_of_one_takes_the_likeliest_word_at_every_step(seed, images):
    captioner = tiny(seed)
    states, mask = random_states(seed, images, 3)
    captions = captioner.beam(states, mask, beam_size=1, max_length=5)
    for i in range(images):
        real, sentence = states[i][mask[i]], []
        while len(sentence) < 5 and END not in sentence:
            step = oracle_log_probabilities(captioner, real, [START, *sentence])[-1]
            sentence.append(max((w for w in range(6) if w not in (START, PAD)), key=lambda word: step[word]))
        assert [t for t in captions.tokens[i].tolist() if t != PAD] == sentence
        assert float(captions.log_probability[i]) == pytest.approx(oracle_score(captioner, real, sentence))


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_a_beam_wide_enough_finds_the_likeliest_of_all_sentences(seed):
    captioner = tiny(seed)
    states, mask = random_states(seed, 2, 3)
    words, longest = [3, 4, 5], 3
    sentences = [[*s, END] for n in range(longest) for s in product(words, repeat=n)]
    sentences += [list(s) for s in product(words, repeat=longest)]
    wide = captioner.beam(states, mask, beam_size=len(sentences), max_length=longest)
    narrow = captioner.beam(states, mask, beam_size=1, max_length=longest)
    for i in range(2):
        scores = {tuple(s): oracle_score(captioner, states[i][mask[i]], s) for s in sentences}
        best = max(scores, key=scores.__getitem__)
        assert tuple(t for t in wide.tokens[i].tolist() if t != PAD) == best
        assert float(wide.log_probability[i]) == pytest.approx(scores[best])
        assert float(wide.log_probability[i]) >= float(narrow.log_probability[i]) - 1e-12


def test_it_learns_to_write_what_the_regions_say():
    torch.manual_seed(0)
    captioner = Captioner(dim=4, vocabulary_size=8, hidden_dim=16, word_dim=8)
    states = torch.eye(4)[:3, None].repeat(1, 2, 1)
    tokens = torch.tensor([[1, 3, 4, 2], [1, 5, 2, 0], [1, 6, 7, 2]])
    labels = caption_labels(tokens, tokens != 0, max_length=6)
    optimizer = torch.optim.Adam(captioner.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        captioner.loss(states, *labels).backward()
        optimizer.step()
    captioner.eval()
    for captions in (captioner.beam(states, beam_size=1), captioner.beam(states)):
        assert captions.tokens.tolist() == [[3, 4, 2], [5, 2, 0], [6, 7, 2]]


def test_gradcheck():
    captioner = tiny(1)
    states, mask = random_states(1, 2, 3)
    states = states.nan_to_num().requires_grad_()
    tokens = torch.tensor([[1, 4, 2], [1, 2, 0]])
    labels = caption_labels(tokens, tokens != 0, max_length=4)
    assert torch.autograd.gradcheck(lambda s: captioner.loss(s, *labels, mask), (states,))


def test_autocast_is_finite():
    captioner = Captioner(dim=5, vocabulary_size=9, hidden_dim=8, word_dim=4)
    states, mask = random_states(2, 2, 3)
    states = states.float().requires_grad_()
    tokens = torch.tensor([[1, 4, 2], [1, 2, 0]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = captioner.loss(states, *caption_labels(tokens, tokens != 0, 5), mask)
        assert captioner.eval().beam(states, mask, max_length=4).log_probability.isfinite().all()
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert states.grad.isfinite().all()


TOKENS, STATES = torch.tensor([[1, 4, 2]]), torch.randn(1, 3, 5)
GAP = torch.tensor([[True, False, True]])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: caption_labels(TOKENS, TOKENS), "word_mask must be boolean"),
        (lambda c: caption_labels(TOKENS, TOKENS > 9), "caption 0 has no real word"),
        (lambda c: caption_labels(TOKENS, TOKENS > 0, 1), "max_length must be at least 2"),
        (lambda c: captioning_loss(torch.zeros(1, 3, 6), TOKENS, TOKENS > 0), "one step less"),
        (lambda c: c(STATES, TOKENS.repeat(2, 1)), "got 1 for 2 captions"),
        (lambda c: c(STATES, TOKENS, GAP.float()), r"region_mask must be boolean of shape \(1, 3\), got torch.float32"),
        (lambda c: c(STATES, TOKENS, GAP), "region_mask must be True for the first regions"),
        (lambda c: c.beam(STATES, beam_size=0), "beam_size must be at least 1, got 0"),
        (lambda c: c.beam(STATES, max_length=0), "max_length must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(Captioner(5, 6, 4, 3))
