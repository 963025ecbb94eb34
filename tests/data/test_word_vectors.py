"""Word vectors are read from the text format that GloVe, word2vec and fastText share."""

from __future__ import annotations

import gzip

import pytest
import torch

from xmodal.data import Vocabulary
from xmodal.data.word_vectors import load_word_vectors

VOCABULARY = Vocabulary(["cat", "dog", "ape"])


@pytest.fixture
def write(tmp_path):
    def written(text):
        path = tmp_path / "vectors.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return written


@pytest.mark.parametrize("header", ["", "5 3\n"])
def test_the_words_of_the_vocabulary_are_found(write, header):
    path = write(header + "dog 1 2 3.5\nzebra 7 7 7\ncat -1e-3 0 4\ndog 9 9 9\n")
    vectors, found = load_word_vectors(path, VOCABULARY)
    cat, dog, ape = (VOCABULARY.words.index(word) for word in ("cat", "dog", "ape"))
    assert vectors.shape == (len(VOCABULARY), 3)
    assert vectors[dog].tolist() == [1, 2, 3.5]
    torch.testing.assert_close(vectors[cat], torch.tensor([-1e-3, 0, 4]))
    assert found.nonzero().flatten().tolist() == [cat, dog]
    assert not vectors[ape].any()


@pytest.mark.parametrize("heading", ["", "8 3\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_words_may_hold_spaces_as_in_gloves_largest_file(write, heading, packed):
    """Words of glove.840B.300d with spaces: each line's numbers are its last ones, whatever comes before them."""
    lines = {",": 0.1, ".": 0.5, "at": 4, "at name@domain.com": 7, ". . .": 1, ". .": 2, "1/2 \u2028 a": 5, "dog": 9}
    text = heading + "".join(f"{word} {value} {value} {value}\n" for word, value in lines.items())
    vocabulary = Vocabulary([".", "at", "dog", "1/2"])
    vectors, found = load_word_vectors(write(gzip.compress(text.encode()) if packed else text), vocabulary)
    known = {word: vectors[vocabulary.words.index(word)].tolist() for word in (".", "at", "dog")}
    assert known == {".": [0.5] * 3, "at": [4] * 3, "dog": [9] * 3}
    assert found.sum() == 3


def test_strange_bytes_in_other_words_do_no_harm(write):
    assert load_word_vectors(write(b"\xff\xfe 1 2\ncat 3 4\n"), VOCABULARY).found.sum() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 1 2\ndog 1 2 3\n", "line 2: 3 numbers, the first line says 2"),
        ("cat 1 2 3\ndog 1 2\n", "line 2: 2 numbers, the first line says 3"),
        ("2 3\ndog 1 2\n", "line 2: 2 numbers, the first line says 3"),
        ("cat 1 2\ndog nan 2\n", "line 2: 'dog' has numbers that are not finite"),
        ("cat 1 2\ndog 1 1e60\n", "line 2: 'dog' has numbers that are not finite"),
        ("cat 1 2\ndog one 2\n", "line 2: 'dog' is not followed by numbers only"),
        (b"PK\x03\x04 1 2\n", "is a zip archive; unpack it"),
        (gzip.compress(b"cat 1 2\n" * 9999, mtime=0)[:60], "line .*: .*ended before"),
        ("cat 1 two\n", "line 1: 'cat' is not followed by numbers only"),
        ("zebra 1 2\n", "holds none of the 7 words"),
        ("", "holds none of the 7 words"),
    ],
)
def test_a_damaged_file_is_refused(write, text, message):
    with pytest.raises(ValueError, match=rf"vectors\.txt.*{message}"):
        load_word_vectors(write(text), VOCABULARY)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        load_word_vectors(tmp_path / "nowhere.txt", VOCABULARY)
