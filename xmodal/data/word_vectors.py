"""Pretrained word vectors in the text format of GloVe, word2vec and fastText."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from xmodal.data.text import DAMAGED_GZIP, ZIP_MAGIC, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.data.vocabulary import Vocabulary


class WordVectors(NamedTuple):
    """A vector for every word of a vocabulary that was found; zeros for the others."""

    vectors: Float[Tensor, "word word_dim"]
    found: Bool[Tensor, " word"]


def load_word_vectors(path: str | Path, vocabulary: Vocabulary) -> WordVectors:
    """Read the vectors of a vocabulary's words: a word and its numbers a line, a first line with counts is skipped.

    How many numbers a word has is what the first line says, or has. Words may hold spaces, as some of GloVe's largest
    file do, which may be gzipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another number of values than the first line says, or some that are no finite numbers; no
            word of the vocabulary is in the file; or it is packed in another way.

    >>> import tempfile
    >>> from xmodal.data.vocabulary import Vocabulary
    >>> path = Path(tempfile.mkdtemp()) / "vectors.txt"
    >>> _ = path.write_text("dog 1.0 2.0\\ncat 3.0 4.0\\n")
    >>> load_word_vectors(path, Vocabulary(["dog"])).vectors[-1]
    tensor([1., 2.])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no word vectors at {path}")
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
            raise ValueError(f"{path} is a zip archive; unpack it, and give the text file that is in it")
    number = {word: index for index, word in enumerate(vocabulary.words)}
    rows: dict[int, np.ndarray] = {}
    dim, line_number = 0, 0
    try:
        for line_number, line in enumerate(_lines(path), start=1):
            if line_number == 1:
                dim, is_heading = _first_line(line)
                if is_heading:
                    continue
            if line.partition(" ")[0] not in number:  # most lines; only words of other files hold spaces
                continue
            word, vector = _parsed(line, dim)
            if word in number:
                rows.setdefault(number[word], vector)
    except (ValueError, *DAMAGED_GZIP) as error:
        raise ValueError(f"{path}, line {line_number}: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds none of the {len(number)} words of the vocabulary; is it vectors as text?")
    vectors, found = torch.zeros(len(number), dim), torch.zeros(len(number), dtype=torch.bool)
    for index, vector in rows.items():
        vectors[index], found[index] = torch.from_numpy(vector), True
    return WordVectors(vectors, found)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file without what ends them."""
    # With utf-8-sig a byte order mark is no part of the first word. Only a newline ends a line: words may hold others.
    with unpacked(path) as file, io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="\n") as lines:
        for line in tqdm(lines, desc="word vectors", unit="word", delay=2):
            yield line.rstrip()


def _first_line(line: str) -> tuple[int, bool]:
    """How many numbers a word has, and whether the line is word2vec's heading: how many words, how many numbers."""
    word, _, values = line.partition(" ")
    if word.isdecimal() and values.isdecimal() and int(values):
        return int(values), True
    numbers = list(itertools.takewhile(_is_number, reversed(values.split(" "))))
    if not numbers:
        raise ValueError(f"{word!r} is not followed by numbers only")
    return len(numbers), False


def _parsed(line: str, dim: int) -> tuple[str, np.ndarray]:
    """The word of a line, all that comes before its numbers, and these."""
    fields = line.split(" ")
    word, values = " ".join(fields[:-dim]), fields[-dim:]
    if len(fields) <= dim or (len(fields) > dim + 1 and _is_number(fields[-dim - 1])):
        raise ValueError(f"{len(fields) - 1} numbers, the first line says {dim}")
    try:
        with np.errstate(over="ignore"):  # what does not fit is infinite and refused below
            vector = np.array(values, dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{word!r} is not followed by numbers only") from error
    if not np.isfinite(vector).all():
        raise ValueError(f"{word!r} has numbers that are not finite")
    return word, vector


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
