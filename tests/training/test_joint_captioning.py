"""VSRN's joint training: the ranking and the captioning loss share the region states, and captions can be read."""

import pytest
import torch

from xmodal.data import PairBatch, RegionBatch
from xmodal.model import Matcher
from xmodal.objectives import HingeRanking
from xmodal.objectives.captioning import caption_labels
from xmodal.training.step import MatchingStep

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "cat", "runs"]
CAPTIONS = ["a dog", "a cat runs", "a dog runs", "cat"]


def make_matcher(**options):
    torch.manual_seed(0)
    return Matcher(
        image={"name": "regions", "input_dim": 6, "dim": 8, "normalize": False},
        text={"name": "gru", "dim": 8, "word_dim": 4, "bidirectional": False, "normalize": False},
        head={"name": "vsrn", "dim": 8, "layers": 2},
        vocabulary=WORDS,
        captioner={"hidden_dim": 8, "word_dim": 4, "dropout": 0.0, **options},
    )


def make_batch(matcher):
    tokens, word_mask = matcher.tokenizer(CAPTIONS)
    region_mask = torch.arange(5) < torch.tensor([5, 3, 4, 1])[:, None]
    features = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    return PairBatch(RegionBatch(features, region_mask), tokens, word_mask, torch.arange(4), torch.arange(4))


def test_total_is_ranking_plus_weighted_captioning():
    matcher = make_matcher().eval()
    batch = make_batch(matcher)
    terms = MatchingStep(matcher, HingeRanking(), captioning_weight=0.5)(batch, 0)
    features, region_mask, _ = batch.images
    scores = matcher(features, batch.tokens, region_mask, batch.word_mask)
    torch.testing.assert_close(terms["ranking"], HingeRanking()(scores, batch.image, step=0)["total"])
    states = matcher.head.reason(matcher.encode_images(features), region_mask)
    labels = caption_labels(batch.tokens, batch.word_mask)
    torch.testing.assert_close(terms["captioning"], matcher.captioner.loss(states, *labels, region_mask))
    torch.testing.assert_close(terms["total"], terms["ranking"] + 0.5 * terms["captioning"])


def test_batch_statistics_move_once_a_step():
    matcher = make_matcher().train()
    MatchingStep(matcher, HingeRanking())(make_batch(matcher), 0)
    assert {int(layer.norm.num_batches_tracked) for layer in matcher.head.graph} == {1}


def test_jointly_trained_captioner_learns_to_write_the_captions(tmp_path):
    matcher = make_matcher()
    step_module, batch = MatchingStep(matcher, HingeRanking(), captioning_weight=1.0), make_batch(matcher)
    optimizer = torch.optim.Adam(step_module.parameters(), lr=0.02)
    for step in range(150):
        optimizer.zero_grad()
        step_module(batch, step)["total"].backward()
        optimizer.step()
    matcher.eval()
    images = [features[mask] for features, mask in zip(*batch.images[:2], strict=True)]
    assert matcher.caption(images) == CAPTIONS
    assert matcher.caption(images[1], beam_size=1) == [CAPTIONS[1]]
    matcher.save_pretrained(tmp_path / "model")
    assert Matcher.from_pretrained(tmp_path / "model").caption(images) == CAPTIONS


def test_captioner_needs_region_states_and_is_asked_for_by_name():
    with pytest.raises(ValueError, match=r"no option 'hiden_dim'.*did you mean 'hidden_dim'"):
        make_matcher(hiden_dim=3)
    options = {"image": {"name": "regions", "input_dim": 6, "dim": 8}, "text": {"name": "gru", "dim": 8}}
    with pytest.raises(ValueError, match="a head with region states"):
        Matcher(**options, head={"name": "scan"}, vocabulary=WORDS, captioner={})
    with pytest.raises(ValueError, match="has no captioner"):
        Matcher(**options, head={"name": "scan"}, vocabulary=WORDS).caption(torch.randn(3, 6))
