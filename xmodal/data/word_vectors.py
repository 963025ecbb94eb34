"""Pretrained word vectors in the text format of GloVe, word2vec and fastText."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.data.vocabulary import Vocabulary


class WordVectors(NamedTuple):
    """A vector for every word of a vocabulary that was found; zeros for the others."""

    vectors: Float[Tensor, "word word_dim"]
    found: Bool[Tensor, " word"]


def load_word_vectors(path: str | Path, vocabulary: Vocabulary) -> WordVectors:
    """Read the vectors of a vocabulary's words: a word and its numbers a line, a first line with counts is skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another number of values than the first, or no word of the vocabulary is in the file.

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
    number = {word: index for index, word in enumerate(vocabulary.words)}
    rows: dict[int, np.ndarray] = {}
    dim = None
    # With utf-8-sig a byte order mark is no part of the first word.
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for line_number, line in enumerate(tqdm(lines, desc="word vectors", unit="word", delay=2), start=1):
            word, _, values = line.rstrip().partition(" ")
            if line_number == 1 and values.isdigit():
                continue  # word2vec's header: how many words, how many dims
            if word not in number:
                continue
            try:
                vector = np.array(values.split(" "), dtype=np.float32)
            except ValueError as error:
                raise ValueError(f"{path}, line {line_number}: {word!r} is not followed by numbers only") from error
            dim = dim or len(vector)
            if len(vector) != dim:
                raise ValueError(f"{path}, line {line_number}: {len(vector)} numbers, the lines before have {dim}")
            rows.setdefault(number[word], vector)
    if dim is None:
        raise ValueError(f"{path} holds none of the {len(number)} words of the vocabulary")
    vectors, found = torch.zeros(len(number), dim), torch.zeros(len(number), dtype=torch.bool)
    for index, vector in rows.items():
        vectors[index], found[index] = torch.from_numpy(vector), True
    return WordVectors(vectors, found)
