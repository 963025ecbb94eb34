"""Word vectors are read from the text format that GloVe, word2vec and fastText share."""

from __future__ import annotations

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


def test_strange_bytes_in_other_words_do_no_harm(write):
    assert load_word_vectors(write(b"\xff\xfe 1 2\ncat 3 4\n"), VOCABULARY).found.sum() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 1 2\ndog 1 2 3\n", "line 2: 3 numbers, the lines before have 2"),
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
