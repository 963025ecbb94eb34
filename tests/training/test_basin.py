"""The log says how words and regions lie, and whoever trains is told once where they stand apart for long."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xmodal.evaluation.alignment import alignment
from xmodal.heads import SCAN
from xmodal.training import matching
from xmodal.training.basin import STEPS, BasinWatch
from xmodal.training.matching import MatchingTask
from xmodal.training.trainer import train

FALLEN, FREE = (-0.74, 0.06), (-0.25, 0.4)


class OwnHead(SCAN):
    """One that compares in another way than it inherits, and says nothing of it."""

    def compare(self, images, captions, region_mask=None, word_mask=None):
        return super().compare(images, captions, region_mask, word_mask) / 2


def test_the_watch_speaks_once_after_so_many_steps_in_a_row():
    watch = BasinWatch()
    assert [watch.see(*FALLEN) for _ in range(STEPS - 1)] == [None] * (STEPS - 1)
    assert watch.see(*FREE) is None
    assert [watch.see(*FALLEN) for _ in range(STEPS - 1)] == [None] * (STEPS - 1)
    warning = watch.see(*FALLEN)
    assert "below -0.5 (now -0.74) and less than 20%" in warning
    assert "positive (now 6%)" in warning
    assert "--adversary.beta-decay-steps" in warning
    assert all(watch.see(*FALLEN) is None for _ in range(2 * STEPS))


@pytest.mark.parametrize("state", [FREE, (-0.74, 0.4), (-0.25, 0.06), (float("nan"), float("nan"))])
def test_the_watch_is_silent_where_only_one_sign_or_none_is_seen(state):
    watch = BasinWatch(steps=1)
    assert watch.see(*state) is None


@pytest.mark.parametrize(
    ("head", "warns"),
    [
        ({"name": "scan"}, True),
        ({"name": "bfan"}, True),
        ({"name": "scan", "normalization": "softmax"}, False),
        ({"name": "cosine"}, False),
        ({"name": f"{__name__}:OwnHead"}, True),
    ],
    ids=str,
)
def test_only_heads_that_may_clip_are_warned_of(config, change, head, warns):
    task = MatchingTask(change(config, model__head=head), torch.device("cpu"))
    task._basin = BasinWatch(steps=1)
    terms = {"alignment/mean_cosine": -0.74, "alignment/positive_share": 0.05}
    assert (task.warning(terms) is not None) == warns


@pytest.mark.parametrize("head", [{"name": "scan"}, {"name": "cosine"}, {"name": "vsrn", "layers": 1}], ids=str)
def test_every_step_of_every_head_is_logged_with_the_alignment_of_its_batch(
    config, change, read_log, monkeypatch, head
):
    seen = []

    def remember(*sides):
        seen.append(alignment(*sides))
        return found(*sides)

    found = matching.MatchingStep._alignment
    monkeypatch.setattr(matching.MatchingStep, "_alignment", staticmethod(remember))
    train(change(config, epochs=1, model__head=head))
    lines = [line for line in read_log(config.output) if "loss/total" in line]
    assert len(lines) == len(seen)
    for line, wanted in zip(lines, seen, strict=True):
        for name, value in wanted._asdict().items():
            assert line[f"loss/alignment/{name}"] == pytest.approx(value.item())


def test_a_run_in_the_basin_says_so_on_the_terminal(config, change, monkeypatch, capsys):
    """Towers whose sides are opposite by construction, and do not move."""
    monkeypatch.setattr(matching, "BasinWatch", lambda: BasinWatch(steps=3))
    build = matching._build_matcher

    def opposite(*given):
        matcher = build(*given)
        with torch.no_grad():
            matcher.image_encoder.projection.bias.fill_(5.0)
            for name, bias in matcher.text_encoder.rnn.named_parameters():
                nn.init.constant_(bias, -1.0) if "bias" in name else None
        return matcher

    monkeypatch.setattr(matching, "_build_matcher", opposite)
    train(change(config, optimizer__learning_rate=0.0))
    assert capsys.readouterr().out.count("warning, step 3: words and regions stand on opposite sides") == 1
