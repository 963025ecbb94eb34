"""The words of the chosen splits are counted, and no others."""

from __future__ import annotations

import pytest

from preprocess import captions
from preprocess.vocabulary import Config, main
from xmodal.data import Caption, Vocabulary, save_captions


def test_only_the_chosen_splits_count(tmp_path):
    texts = {"train": "Dog dog dog", "dev": "a dog", "test": "cat cat cat cat"}
    save_captions(tmp_path / "captions.jsonl", [Caption(split, split, text, split) for split, text in texts.items()])
    main(Config(tmp_path / "captions.jsonl", tmp_path / "vocabulary.json"))
    assert Vocabulary.load(tmp_path / "vocabulary.json").words[4:] == ["dog"]
    main(Config(tmp_path / "captions.jsonl", tmp_path / "vocabulary.json", splits=("test",), min_count=1))
    assert Vocabulary.load(tmp_path / "vocabulary.json").words[4:] == ["cat"]
    with pytest.raises(ValueError, match="no caption of split 'val'"):
        main(Config(tmp_path / "captions.jsonl", tmp_path / "vocabulary.json", splits=("train", "val")))


def test_a_table_without_splits_has_a_vocabulary(tmp_path):
    """The chain that the documents give: all of it is train, and there is no dev."""
    (tmp_path / "mine.csv").write_text("image,caption\n" + "7.jpg,A dog.\n" * 5)
    captions.main(captions.Table(tmp_path / "mine.csv", tmp_path / "captions.jsonl"))
    main(Config(tmp_path / "captions.jsonl", tmp_path / "vocabulary.json"))
    assert set(Vocabulary.load(tmp_path / "vocabulary.json").words[4:]) == {"a", "dog", "."}
    save_captions(tmp_path / "captions.jsonl", [Caption("7", "7", "dog", "test")])
    with pytest.raises(ValueError, match=r"no caption of split train or dev; its splits are \['test'\]\. .* --splits"):
        main(Config(tmp_path / "captions.jsonl", tmp_path / "vocabulary.json"))


CHINESE = ["一只狗在草地上跑。", "两只猫在睡觉。", "一只狗睡觉。", "草地上有两只猫。"]


def written(tmp_path, texts):
    save_captions(tmp_path / "captions.jsonl", [Caption(str(n), str(n), text, "train") for n, text in enumerate(texts)])
    return {"captions": tmp_path / "captions.jsonl", "output": tmp_path / "vocabulary.json", "splits": ("train",)}


def test_an_unbroken_script_is_told_with_numbers(tmp_path, capsys):
    paths = written(tmp_path, CHINESE)
    with pytest.raises(ValueError, match=r"4 of 4 captions are in a script without spaces .* --segmenter characters"):
        main(Config(**paths, min_count=2))
    main(Config(**paths, min_count=1))
    told = capsys.readouterr().out
    assert "100.0% of the captions are one word, 0.0% of all words are unknown" in told
    assert "WARNING: this vocabulary tells little" in told
    assert "choose --segmenter characters or jieba" in told


@pytest.mark.parametrize("segmenter", ["characters", "jieba"])
def test_a_segmenter_mends_it(tmp_path, capsys, segmenter):
    pytest.importorskip("jieba")
    main(Config(**written(tmp_path, CHINESE), min_count=2, segmenter=segmenter))
    told = capsys.readouterr().out
    assert "0.0% of the captions are one word" in told
    assert "WARNING" not in told
    assert Vocabulary.load(tmp_path / "vocabulary.json").segmenter == segmenter


def test_unknown_words_are_told(tmp_path, capsys):
    main(Config(**written(tmp_path, ["a dog", "a cat", "a cow runs far away"]), min_count=3))
    told = capsys.readouterr().out
    assert "66.7% of all words are unknown" in told
    assert "WARNING" in told
    assert "Lower --min-count" in told
