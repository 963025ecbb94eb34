"""DP-RNN against plain loops over one image and one caption, written from the paper's equations."""

from __future__ import annotations

import pytest
import torch
from batches import DIM, batches, check_against, learned, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pooling import slow_gru, softmax

from xmodal.heads import DPRNN
from xmodal.heads.dprnn import object_order
from xmodal.objectives import hinge_ranking_loss


def unit(vector):
    return vector / vector.norm()


def slow_agreements(asking, asked, temperature):
    """Cosine of each asking item with what it attends to: cut cosines, normalized over the asking items."""
    cut = [[(a @ b).clamp_min(0) for b in asked] for a in asking]
    lengths = [sum(row[k] ** 2 for row in cut) for k in range(len(asked))]
    lengths = [value**0.5 if value.item() > 0 else torch.ones(()) for value in lengths]
    agreements = []
    for a, row in zip(asking, cut, strict=True):
        weights = softmax([temperature * value / length for value, length in zip(row, lengths, strict=True)])
        agreements.append(a @ unit(sum(weight * b for weight, b in zip(weights, asked, strict=True))))
    return agreements


def slow_dprnn(head):
    def shares(items, side):
        if side != head.scored:
            return [1 / len(items)] * len(items)
        return softmax([head.weighting * (head.weight.weight[0] @ item) for item in items])

    def score(regions, words):
        objects, words = [unit(region) for region in regions], [unit(word) for word in words]
        if head.rnn is not None:
            weights = shares(words, "word")
            places = []
            for o in objects:
                relevance = [
                    float(w * (o @ word).detach()) for w, word in zip(map(torch.as_tensor, weights), words, strict=True)
                ]
                places.append(relevance.index(max(relevance)))
            order = sorted(range(len(objects)), key=lambda i: places[i])
            inputs = [objects[i] for i in order]
            forward, backward = slow_gru(inputs, head.rnn), slow_gru(inputs[::-1], head.rnn, "_reverse")[::-1]
            objects = [unit((f + b) / 2) for f, b in zip(forward, backward, strict=True)]
        if head.scored == "word":
            agreements, weights = slow_agreements(words, objects, head.word_temperature), shares(words, "word")
        else:
            agreements, weights = slow_agreements(objects, words, head.object_temperature), shares(objects, "object")
        return sum(weight * value for weight, value in zip(weights, agreements, strict=True))

    return score


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("score", ["word", "object"])
@pytest.mark.parametrize("recurrent", [False, True])
@settings(max_examples=12)
@given(batch=batches(dim=DIM), seed=st.integers(0, 99), weighting=st.sampled_from([0.0, 0.3, 2.0]))
def test_equals_the_plain_loop(score, recurrent, batch, seed, weighting):
    head = learned(DPRNN(DIM, score, weighting, recurrent=recurrent), seed)
    check_against(slow_dprnn(head), head, batch)


def test_a_new_head_weighs_all_words_alike():
    batch = random_batch(dim=DIM)
    new, plain = (DPRNN(DIM, weighting=weighting, recurrent=False).double() for weighting in (0.3, 0.0))
    torch.testing.assert_close(new.eval()(*batch), plain.eval()(*batch))


def test_objects_that_share_a_word_keep_their_order_and_padding_comes_last():
    relevance = torch.tensor([[[0.0, 2.0], [9.0, 0.0], [0.0, 1.0], [3.0, 0.0]]])
    mask = torch.tensor([[True, False, True, True]])
    assert object_order(relevance, mask, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[3, 0, 2, 1]]


@pytest.mark.parametrize("score", ["word", "object"])
def test_training_compares_the_match_and_the_nearest_candidates(score):
    head = learned(DPRNN(DIM, score, candidates=2)).train()
    batch = random_batch(seed=6, images=6, captions=6, dim=DIM)
    scores = head(batch.regions.requires_grad_(), *batch[1:])
    compared = scores.isfinite()
    assert compared.diag().all()
    assert torch.equal(compared.sum(dim=0), torch.full((6,), 3))
    torch.testing.assert_close(scores[compared], head.eval()(*batch)[compared])
    objects = torch.nn.functional.normalize(batch.regions, dim=-1).detach().sum(dim=1)
    shares = head._shares(head.embed_captions(batch.words, batch.word_mask), batch.word_mask, "word")
    words = (shares[..., None] * torch.nn.functional.normalize(batch.words, dim=-1)).sum(dim=1)
    early = (objects @ words.T).masked_fill(torch.eye(6, dtype=torch.bool), float("-inf"))
    for caption in range(6):
        nearest = early[:, caption].argsort(descending=True)[:2]
        assert compared[nearest, caption].all()
    for hardest in (True, False):
        (gradient,) = torch.autograd.grad(hinge_ranking_loss(scores, hardest=hardest), batch.regions, retain_graph=True)
        assert gradient.isfinite().all()


def test_attention_is_that_of_words_over_objects_that_were_read():
    batch = random_batch(captions=3, dim=DIM)
    weights = learned(DPRNN(DIM)).attention(*batch).weights
    torch.testing.assert_close(weights.sum(dim=2), batch.word_mask.double())
    assert not weights.masked_select(~batch.region_mask[:, None]).any()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "image"}, "score must be one of word, object; got 'image'"),
        ({"object_temperature": 0.0}, "object_temperature must be positive, got 0.0"),
        ({"word_temperature": -1.0}, "word_temperature must be positive, got -1.0"),
        ({"weighting": -1.0}, "weighting must be at least 0, got -1.0"),
        ({"candidates": -1}, "candidates must be at least 0, got -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DPRNN(8, **options)


@pytest.mark.bad_input
def test_candidates_need_square_batches():
    with pytest.raises(ValueError, match="square batches of matched pairs, got 2 images and 3 captions"):
        DPRNN(4).train()(torch.ones(2, 3, 4), torch.ones(3, 3, 4))
