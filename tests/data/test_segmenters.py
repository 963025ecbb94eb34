"""Scripts without spaces between words are split into something that comes again."""

from __future__ import annotations

import pytest

from xmodal.data.segmenters import is_unspaced, split_characters, split_chinese, tokenize


@pytest.mark.parametrize("text", ["A man's dog doesn't run.", 'He says "go!" (twice)', "CAFÉ Ölberg", ""])
def test_spaced_scripts_are_split_as_ever(text):
    assert split_characters(text) == tokenize(text)
    assert not is_unspaced(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("一只狗在跑。", "一 只 狗 在 跑 。"),
        ("2只狗, an iPod", "2 只 狗 , an ipod"),
        ("犬がボールを追う", "犬 が ボ ー ル を 追 う"),
        ("สุนัขวิ่ง", "สุ นั ข วิ่ ง"),  # vowels and tones stay on their consonant
    ],
)
def test_characters(text, words):
    assert tokenize(text) != words.split()
    assert split_characters(text) == words.split()
    assert is_unspaced(text) == (text != "2只狗, an iPod")


def test_chinese_words():
    pytest.importorskip("jieba")
    assert split_chinese("两只狗在草地上玩 Frisbee。") == ["两只", "狗", "在", "草地", "上", "玩", "frisbee", "。"]
