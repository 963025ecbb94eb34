"""The words of the chosen splits are counted, and no others."""

from __future__ import annotations

import pytest

from preprocess.vocabulary import Config, main
from xmodal.data import Caption, Vocabulary, save_captions


def test_only_the_chosen_splits_count(tmp_path):
    texts = {"train": "Dog dog dog", "dev": "a dog", "test": "cat cat cat cat"}
    captions = [Caption(split, split, text, split) for split, text in texts.items()]
    save_captions(tmp_path / "captions.jsonl", captions)
    main(Config(tmp_path / "captions.jsonl", tmp_path / "vocabulary.json"))
    assert Vocabulary.load(tmp_path / "vocabulary.json").words[4:] == ["dog"]
    main(Config(tmp_path / "captions.jsonl", tmp_path / "vocabulary.json", splits=("test",), min_count=1))
    assert Vocabulary.load(tmp_path / "vocabulary.json").words[4:] == ["cat"]
    with pytest.raises(ValueError, match="no caption of split 'val'"):
        main(Config(tmp_path / "captions.jsonl", tmp_path / "vocabulary.json", splits=("train", "val")))
