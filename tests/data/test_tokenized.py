from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_file

from xmodal.data import Vocabulary, tokenized
from xmodal.data.tokenized import KeptTokens
from xmodal.data.tokenized import tokenized as tokenize_all

CAPTIONS = [f"a dog number {number} runs" for number in range(20)]
VOCABULARY = Vocabulary(["a", "dog", "runs", *map(str, range(0, 20, 3))])


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch):
    monkeypatch.setattr(tokenized, "WORTH_KEEPING", 10)


class Counting:
    """A vocabulary that counts how many captions it was asked about."""

    def __init__(self, vocabulary):
        self.vocabulary, self.asked = vocabulary, 0

    def __call__(self, captions):
        self.asked += len(captions)
        return self.vocabulary(captions)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_shown_where_it_is_asked_for(progress, monkeypatch):
    shown = []
    bar = tokenized.tqdm
    monkeypatch.setattr(tokenized, "tqdm", lambda **options: shown.append(not options["disable"]) or bar(**options))
    tokenize_all(CAPTIONS, VOCABULARY, progress=progress)
    assert shown == [progress]


def test_captions_are_tokenized_once(tmp_path):
    wanted = [VOCABULARY.encode(caption) for caption in CAPTIONS]
    tokenizer = Counting(VOCABULARY)
    for _ in range(2):
        words, start = tokenize_all(CAPTIONS, tokenizer, KeptTokens(tmp_path, VOCABULARY.identity()))
        bounds = zip(start.tolist(), start[1:].tolist(), strict=False)
        assert [words[first:end].tolist() for first, end in bounds] == wanted
    assert tokenizer.asked == len(CAPTIONS)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("captions", "vocabulary"),
    [
        ([*CAPTIONS[:-1], "a dog"], VOCABULARY),
        (CAPTIONS[::-1], VOCABULARY),
        (CAPTIONS, Vocabulary(["dog", "a", "runs", *VOCABULARY.words[7:]])),
        (CAPTIONS, Vocabulary(VOCABULARY.words, "characters")),
    ],
)
def test_other_captions_words_and_ways_to_split_are_others(tmp_path, captions, vocabulary):
    tokenize_all(CAPTIONS, VOCABULARY, KeptTokens(tmp_path, VOCABULARY.identity()))
    tokenizer = Counting(vocabulary)
    again = tokenize_all(captions, tokenizer, KeptTokens(tmp_path, vocabulary.identity()))
    assert tokenizer.asked == len(captions)
    assert torch.equal(again.words, tokenize_all(captions, vocabulary).words)
    assert len(files(tmp_path)) == 2


def test_another_version_of_the_library_is_another_tokenizer(monkeypatch):
    before = VOCABULARY.identity()
    monkeypatch.setattr(tokenized, "version", lambda package: f"0.0 of {package}")
    assert VOCABULARY.identity() != before


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b"nothing of the kind"),
        lambda path: save_file({"words": torch.zeros(3)}, path),
        lambda path: save_file({"words": torch.zeros(9, dtype=torch.int32), "start": torch.arange(9)}, path),
        lambda path: save_file({"words": torch.zeros(9, dtype=torch.int32), "start": torch.arange(21)}, path),
        lambda path: save_file({"words": torch.full((20,), -1), "start": torch.arange(21)}, path),
        lambda path: save_file({"words": torch.zeros(()), "start": torch.zeros(())}, path),
    ],
)
def test_a_damaged_file_is_made_anew(tmp_path, damage, caplog):
    wanted = tokenize_all(CAPTIONS, VOCABULARY, KeptTokens(tmp_path, VOCABULARY.identity()))
    (path,) = tmp_path.iterdir()
    damage(path)
    with caplog.at_level(logging.WARNING, "xmodal"):
        again = tokenize_all(CAPTIONS, VOCABULARY, KeptTokens(tmp_path, VOCABULARY.identity()))
    assert "made anew" in caplog.text
    assert all(torch.equal(one, other) for one, other in zip(wanted, again, strict=True))
    tokenizer = Counting(VOCABULARY)
    tokenize_all(CAPTIONS, tokenizer, KeptTokens(tmp_path, VOCABULARY.identity()))
    assert tokenizer.asked == 0


def test_where_nothing_can_be_kept_nothing_is(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    wanted = tokenize_all(CAPTIONS, VOCABULARY)
    assert torch.equal(tokenize_all(CAPTIONS, VOCABULARY, KeptTokens(tmp_path / "file", "known")).words, wanted.words)
    tokenize_all(CAPTIONS, VOCABULARY, KeptTokens(tmp_path, None))
    tokenize_all(CAPTIONS[:9], VOCABULARY, KeptTokens(tmp_path, "known"))
    assert files(tmp_path) == ["file"]
