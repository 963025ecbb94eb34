"""A training step reads nothing from a device that computes: everything runs on one that holds no values to be read."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.nn import functional as F

from xmodal.data import PairBatch, RegionBatch
from xmodal.model import Matcher
from xmodal.objectives import HingeRanking, InfoNCE
from xmodal.training.adversary import Adversary
from xmodal.training.moving import noted
from xmodal.training.step import MatchingStep

META = torch.device("meta")
HEADS = [
    {"name": "scan"},
    {"name": "scan", "direction": "i2t", "aggregation": "mean"},
    {"name": "bfan", "focal": "prob"},
    {"name": "bfan", "focal": "equal"},
    {"name": "vsrn"},
    {"name": "cosine"},
    {"name": "cosine", "pooling": "gpo"},
    {"name": "chan"},
    {"name": "mtfn"},
    {"name": "adapt"},
    {"name": "sgraf"},
    {"name": "rdan_style"},
    {"name": "naaf"},
]


@pytest.fixture
def batch():
    """On the host."""
    regions = RegionBatch(torch.randn(3, 36, 8), torch.arange(36) < torch.tensor([[36], [20], [30]]))
    words = torch.arange(5) < torch.tensor([[3], [5], [4]])
    return PairBatch(regions, torch.ones(3, 5, dtype=torch.long), words, torch.arange(3), torch.arange(3))


@pytest.fixture(autouse=True)
def without_values(monkeypatch):
    """What torch cannot do without values: packing, which takes its lengths from the host as on CUDA, and autocast."""

    def pack(items, lengths, **_):
        assert lengths.device.type == "cpu"
        return items

    def states(rnn, items):
        one = F.linear(items, rnn.weight_ih_l0)[..., : rnn.hidden_size]
        return torch.cat([one] * (1 + rnn.bidirectional), dim=-1)

    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr("xmodal.heads.recurrent.pack_padded_sequence", pack)
    monkeypatch.setattr("xmodal.heads.recurrent.gru_states", states)
    monkeypatch.setattr("xmodal.heads.recurrent.pad_packed_sequence", lambda states, **_: (states, None))


def moved(batch):
    images = RegionBatch(*(field.to(META) for field in batch.images[:2]))
    return PairBatch(images, *(field.to(META) for field in batch[1:]))


def make_step(head, objective):
    image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    return MatchingStep(Matcher(image, text, head, vocabulary=["a", "dog"]), objective).to(META)


@pytest.mark.parametrize("objective", [HingeRanking(), HingeRanking(hardest=0.5), InfoNCE()], ids=repr)
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_a_step_reads_nothing(head, objective, batch):
    step = make_step(head, objective)
    step(noted(moved(batch), batch), step=0)["total"].backward()
    assert all(parameter.grad is not None for parameter in step.matcher.image_encoder.parameters())


def test_dprnn_reads_nothing_where_all_images_have_as_many_regions(batch):
    """It packs the regions of images that it picks by their scores."""
    full = RegionBatch(batch.images.regions, torch.ones_like(batch.images.region_mask))
    batch = batch._replace(images=full)
    step = make_step({"name": "dprnn", "candidates": 1}, HingeRanking())
    step(noted(moved(batch), batch), step=0)["total"].backward()


@pytest.mark.parametrize(
    "options", [{"name": "addr", "form": "ridge"}, {"name": "addr"}, {"name": "mean_match"}], ids=str
)
def test_an_adversary_reads_nothing(options, batch):
    step = make_step({"name": "scan"}, HingeRanking())
    adversary = Adversary.build(options, dim=4, pairs=3, device=META)
    step(noted(moved(batch), batch), 0, adversary)["total"].backward()


def test_without_notes_it_would_read(batch):
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        make_step({"name": "scan"}, HingeRanking())(moved(batch), step=0)
