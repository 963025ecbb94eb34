"""Few of the kills that `python -m scripts.attack.changes` makes many of, and that it notices what it looks for."""

from __future__ import annotations

import pytest

from scripts.attack import changes
from xmodal.search.manifest import Manifest


def test_an_index_outlives_whoever_changes_it(tmp_path):
    assert list(changes.attack(tmp_path, 24, kills=3)) == []


def test_half_a_change_would_be_noticed(tmp_path, monkeypatch):
    save = Manifest.save

    def save_half(self, folder):
        if len(self.segments) > 1:
            self = type(self)(**{**vars(self), "segments": self.segments[1:]})
        save(self, folder)

    monkeypatch.setattr(Manifest, "save", save_half)
    (wrong, *_) = changes.attack(tmp_path, 12, kills=1)
    assert "neither before nor after" in wrong or "ended with" in wrong


@pytest.mark.parametrize("seed", [0, 1])
def test_changes_are_the_same_again_and_never_remove_what_is_not_there(seed):
    first, second = changes.changes(seed), changes.changes(seed)
    holds = set(range(100))
    for _ in range(300):
        adds, numbers = next(first)
        assert (adds, numbers) == next(second)
        assert set(numbers).isdisjoint(holds) if adds else set(numbers) <= holds
        holds = holds | set(numbers) if adds else holds - set(numbers)
