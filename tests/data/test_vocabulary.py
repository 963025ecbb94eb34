"""Tokens equal the published pipeline's, and a vocabulary keeps its numbers through every file form."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from xmodal.data import Vocabulary, tokenize


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog doesn't run.", "a man 's dog does n't run ."),
        # The sentence splitter at work: a period inside the text is cut off only where a sentence ends.
        ("A dog runs. A cat sleeps.", "a dog runs . a cat sleeps ."),
        ("Dr. Smith sits on st. james street", "dr. smith sits on st. james street"),
        ("a man wearing no. 5 jumps", "a man wearing no . 5 jumps"),
        ('He says "go!" (twice), at 3.5 mph...', "he says `` go ! '' ( twice ) , at 3.5 mph ..."),
        ("really?! yes", "really ? ! yes"),
        # Only ASCII is lower-cased, as Python 2 did with bytes.
        ("CAFÉ Ölberg", "cafÉ Ölberg"),
        ("two\ndogs ", "two dogs"),
        ("cannot gonna", "can not gon na"),
        ("", ""),
    ],
)
def test_tokens(text, words):
    assert tokenize(text) == words.split()


def test_bytes_do_not_become_words(tmp_path):
    """str(bytes) under Python 3 puts "b'" before every caption, which cost people five points of R@1."""
    with pytest.raises(TypeError, match="decode"):
        tokenize(b"A dog")  # type: ignore[arg-type]
    path = tmp_path / "train_caps.txt"
    path.write_text("A dog's bone\n")
    words = [word for line in path.read_bytes().splitlines() for word in tokenize(line.decode("utf-8"))]
    assert words == ["a", "dog", "'s", "bone"]
    assert not any(word.startswith("b'") for word in words)


def test_encode_is_start_words_end():
    vocabulary = Vocabulary(["dog", "a"])
    assert vocabulary.words == ["<pad>", "<start>", "<end>", "<unk>", "dog", "a"]
    assert len(vocabulary) == 6
    assert "dog" in vocabulary
    assert "cat" not in vocabulary
    assert vocabulary.encode("A dog sees <pad>") == [1, 5, 4, 3, 3, 3, 3, 2]  # "<", "pad", ">": not the padding


def test_a_batch_is_single_captions_padded():
    vocabulary = Vocabulary(["<pad>", "<unk>", "<start>", "<end>", "a", "dog"])
    texts = ["a dog", "a", "dog cat dog a"]
    tokens, mask = vocabulary(texts)
    assert tokens.dtype == torch.long
    assert tokens.shape == mask.shape == (3, 6)
    for text, row, real in zip(texts, tokens, mask, strict=True):
        assert row[real].tolist() == vocabulary.encode(text)
        assert real.tolist() == sorted(real.tolist(), reverse=True)
        assert (row[~real] == 0).all()


@pytest.mark.parametrize("text", ["", " \n"])
def test_wordless_captions_are_refused(text):
    with pytest.raises(ValueError, match="has no words"):
        Vocabulary(["dog"])(["a dog", text])
    with pytest.raises(ValueError, match="no caption"):
        Vocabulary(["dog"])([])


def test_build_counts_and_orders():
    texts = ["b b a", "c a B", "z"]
    assert Vocabulary.build(texts, min_count=1).words[4:] == ["b", "a", "c", "z"]
    assert Vocabulary.build(reversed(texts), min_count=2).words[4:] == ["b", "a"]
    counted = Counter(word for text in texts for word in tokenize(text))
    assert set(Vocabulary.build(texts, min_count=2).words[4:]) == {word for word in counted if counted[word] >= 2}
    with pytest.raises(ValueError, match="Lower min_count"):
        Vocabulary.build(texts)


def test_round_trip_in_the_published_form(tmp_path):
    vocabulary = Vocabulary(["dog", "é"])
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json").words == vocabulary.words
    assert Vocabulary(vocabulary.words).words == vocabulary.words
    record = json.loads((tmp_path / "vocabulary.json").read_text(encoding="utf-8"))
    assert record["word2idx"] == {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4, "é": 5}
    assert record["idx2word"] == {str(number): word for word, number in record["word2idx"].items()}
    assert record["idx"] == 6


def test_other_special_orders_keep_their_numbers(tmp_path):
    """The files of ADAPT and NAAF number <unk> before <start> and <end>, and list words in any order."""
    numbers = {"dog": 5, "<pad>": 0, "<end>": 3, "a": 4, "<unk>": 1, "<start>": 2}
    (tmp_path / "other.json").write_text(json.dumps({"word2idx": numbers, "char_level": False, "max_len": 9}))
    vocabulary = Vocabulary.load(tmp_path / "other.json")
    assert vocabulary.encode("a dog naps") == [2, 4, 5, 1, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no `word2idx`"),
        ("{", "is not a vocabulary"),
        ('{"word2idx": {"a": 0, "b": 2}}', "not 0 to 1, each once"),
        ('{"word2idx": {"a": 0, "b": "1"}}', "not 0 to 1, each once"),
        ('{"word2idx": {"a": 0, "b": 1}}', "special words"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"bad\.json.*{message}"):
        Vocabulary.load(path)


def test_bad_words_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        Vocabulary.load(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="'dog' for one"):
        Vocabulary(["dog", "dog"])
    with pytest.raises(ValueError, match="are missing"):
        Vocabulary(["<pad>", "dog"])


CHINESE = ["一只狗在草地上跑。", "两只猫在睡觉。", "一只狗睡觉"]


def test_a_segmenter_is_stored_and_used(tmp_path):
    vocabulary = Vocabulary.build(CHINESE, min_count=2, segmenter="characters")
    assert set(vocabulary.words[4:]) == set("一只狗在睡觉。")
    assert vocabulary.encode("猫在") == [1, 3, vocabulary.words.index("在"), 2]
    vocabulary.save(tmp_path / "vocabulary.json")
    assert json.loads((tmp_path / "vocabulary.json").read_text("utf-8"))["segmenter"] == "characters"
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded.segmenter == "characters"
    for again in (loaded, Vocabulary.from_config(vocabulary.config)):
        assert again.encode(CHINESE[0]) == vocabulary.encode(CHINESE[0])
    with pytest.raises(ValueError, match=r"segmenter \['x'\] is unknown; known: words"):
        Vocabulary(["a"], ["x"])
    with pytest.raises(ValueError, match="segmenter 'thai' is unknown; known: words, characters, jieba"):
        Vocabulary(["a"], "thai")


def test_files_and_models_without_a_segmenter_are_as_they_were(tmp_path):
    vocabulary = Vocabulary(["dog"])
    vocabulary.save(tmp_path / "vocabulary.json")
    assert "segmenter" not in json.loads((tmp_path / "vocabulary.json").read_text())
    assert vocabulary.config == vocabulary.words


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_damage(tmp_path, encoding):
    text = json.dumps({"word2idx": {word: number for number, word in enumerate(Vocabulary(["é"]).words)}})
    (tmp_path / "vocabulary.json").write_text(text, encoding)
    assert Vocabulary.load(tmp_path / "vocabulary.json").words[-1] == "é"
