"""How long scoring will take is told when its first tile is there, by what is real in it."""

from __future__ import annotations

import pytest
import torch

from xmodal.heads import NAAF, SCAN
from xmodal.scoring import blocks, forecast, score_all
from xmodal.scoring.forecast import expected_seconds
from xmodal.scoring.plan import Tile
from xmodal.scoring.sides import Sides


def sides():
    generator = torch.Generator().manual_seed(0)
    region_mask = torch.arange(5) < torch.tensor([5, 1, 2, 2])[:, None]
    word_mask = torch.arange(6) < torch.tensor([6, 1, 1])[:, None]
    regions, words = torch.randn(4, 5, 8, generator=generator), torch.randn(3, 6, 8, generator=generator)
    return regions, words, region_mask, word_mask


def test_a_tile_stands_for_its_share_of_real_regions_and_words():
    checked = Sides.checked(*sides())
    tile = Tile(torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 1))
    assert expected_seconds(checked, tile, 3.0) == pytest.approx(3.0 * (10 / 5) * (8 / 6))
    everything = Tile(torch.arange(4), torch.arange(3), torch.zeros(4, 3))
    assert expected_seconds(checked, everything, 3.0) == pytest.approx(3.0)


@pytest.mark.parametrize("head", [NAAF().eval(), SCAN()], ids=["compared", "fast"])
def test_the_log_says_it_and_a_person_is_told_of_what_takes_long(head, monkeypatch, caplog, capsys):
    times = iter([100.0, 140.0] * 2)
    monkeypatch.setattr(blocks, "perf_counter", lambda: next(times))
    told = f"scoring {type(head).__name__}, 4 x 3 pairs: about "
    with caplog.at_level("INFO", logger="xmodal"):
        score_all(head, *sides(), progress=True)
    assert told in caplog.text
    assert told in capsys.readouterr().out
    score_all(head, *sides())
    assert told not in capsys.readouterr().out


def test_what_is_short_is_only_logged(monkeypatch, capsys):
    monkeypatch.setattr(forecast, "WORTH_TELLING", 1e9)
    score_all(SCAN(), *sides(), progress=True)
    assert "scoring" not in capsys.readouterr().out
