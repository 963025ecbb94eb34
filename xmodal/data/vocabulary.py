"""Words and their numbers, as SCAN, BFAN and VSRN were trained with them."""

from __future__ import annotations

import json
import string
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from xmodal.data.atomic import written_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jaxtyping import Bool, Int
    from torch import Tensor

PAD, START, END, UNKNOWN = SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")

# The published code lower-cased utf-8 bytes in Python 2, which changes ASCII letters only.
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class TokenBatch(NamedTuple):
    """The words of some captions as numbers, padded to the longest of them."""

    tokens: Int[Tensor, "caption word"]
    word_mask: Bool[Tensor, "caption word"]


def tokenize(text: str) -> list[str]:
    """Split a caption into words like the published pipeline: ASCII lower case, then nltk's `word_tokenize`.

    nltk itself would download its sentence splitter on first use; here its parameters come with a package.

    Raises:
        TypeError: `text` is not a string. Bytes above all: made a string by `str`, they put "b'" into the first word.

    >>> tokenize("A man's dog runs. It doesn't stop!")
    ['a', 'man', "'s", 'dog', 'runs', '.', 'it', 'does', "n't", 'stop', '!']
    """
    if not isinstance(text, str):
        raise TypeError(f"wanted a string, got {type(text).__name__}. Decode bytes with .decode('utf-8').")
    split_sentences, split_words = _nltk()
    return [word for sentence in split_sentences(text.translate(_ASCII_LOWER)) for word in split_words(sentence)]


@cache
def _nltk() -> tuple[Callable[[str], Iterable[str]], Callable[[str], list[str]]]:
    """The two halves of nltk's `word_tokenize`: text to sentences, sentence to words."""
    import punkt
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    english = punkt.load_model("english")
    parameters = PunktParameters()
    parameters.abbrev_types = set(english.abbrev_types)
    parameters.collocations = set(english.collocations)
    parameters.sent_starters = set(english.sent_starters)
    parameters.ortho_context.update(english.ortho_context)
    # Not punkt's own splitter: it differs from nltk's at runs like "?!".
    return PunktSentenceTokenizer(parameters).tokenize, NLTKWordTokenizer().tokenize


class Vocabulary:
    """The words a model knows, numbered from 0. Calling it turns captions into padded numbers.

    Args:
        words: every word once, in order of its number. Without any of the special words `<pad> <start> <end> <unk>`
            these come first, in this order; with them, all four must be there and keep their place.

    Raises:
        ValueError: a word comes twice, or only some of the special words are there.

    >>> vocabulary = Vocabulary(["a", "dog", "runs"])
    >>> vocabulary.encode("A dog sleeps")
    [1, 4, 5, 3, 2]
    >>> vocabulary(["A dog runs", "Dog"]).tokens
    tensor([[1, 4, 5, 6, 2],
            [1, 5, 2, 0, 0]])
    """

    def __init__(self, words: Sequence[str]) -> None:
        absent = [word for word in SPECIAL_WORDS if word not in words]
        if len(absent) == len(SPECIAL_WORDS):
            words = [*SPECIAL_WORDS, *words]
        elif absent:
            raise ValueError(f"the special words {absent} are missing, while others of {SPECIAL_WORDS} are there")
        self._number = {word: number for number, word in enumerate(words)}
        if len(self._number) < len(words):
            twice = [word for word, count in Counter(words).items() if count > 1]
            raise ValueError(f"{len(twice)} words come more than once, {twice[0]!r} for one")

    def __len__(self) -> int:
        return len(self._number)

    def __contains__(self, word: str) -> bool:
        return word in self._number

    @property
    def words(self) -> list[str]:
        """Every word, in order of its number."""
        return list(self._number)

    def encode(self, text: str) -> list[int]:
        """The numbers of a caption's words between those of `<start>` and `<end>`.

        Raises:
            ValueError: the caption has no words.
        """
        words = tokenize(text)
        if not words:
            raise ValueError(f"the caption {text!r} has no words")
        unknown = self._number[UNKNOWN]
        return [self._number[START], *(self._number.get(word, unknown) for word in words), self._number[END]]

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Encode captions and pad them to the longest.

        Raises:
            ValueError: there is no caption, or one has no words.
        """
        if len(texts) == 0:
            raise ValueError("there is no caption to encode")
        rows = [torch.tensor(self.encode(text)) for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = pad_sequence(rows, batch_first=True, padding_value=self._number[PAD])
        return TokenBatch(tokens, torch.arange(tokens.shape[1]) < lengths[:, None])

    @classmethod
    def build(cls, texts: Iterable[str], min_count: int = 4) -> Vocabulary:
        """The words that come at least `min_count` times: the most frequent first, equals in alphabetical order.

        The published vocabularies are in the order of a Python 2 dictionary, which nothing can reproduce: to use a
        released model, load its vocabulary file.

        Raises:
            ValueError: no word is frequent enough.
        """
        count: Counter[str] = Counter()
        for text in tqdm(texts, desc="counting words", unit="caption", delay=2):
            count.update(tokenize(text))
        frequent = [word for word in count if count[word] >= min_count]
        if not frequent:
            raise ValueError(f"none of the {len(count)} words comes {min_count} times or more. Lower min_count.")
        return cls(sorted(frequent, key=lambda word: (-count[word], word)))

    def save(self, path: str | Path) -> None:
        """Write the published JSON form: `word2idx`, `idx2word` and `idx`, the number of words."""
        record = {
            "word2idx": self._number,
            "idx2word": {str(number): word for word, number in self._number.items()},
            "idx": len(self),
        }
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read the JSON form. Only `word2idx` is needed, and every word keeps its number, the special ones too.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no vocabulary, or its numbers are not 0, 1, 2, ...
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no vocabulary at {path}. `xmodal prepare vocabulary --help` makes one.")
        try:
            words = _ordered(json.loads(path.read_text(encoding="utf-8")))
            if not set(SPECIAL_WORDS) <= set(words):
                raise ValueError(f"it lacks some of the special words {SPECIAL_WORDS}")
            return cls(words)
        except ValueError as error:
            raise ValueError(f"{path} is not a vocabulary: {error}") from error


def _ordered(record: Any) -> list[str]:
    """The words of a JSON vocabulary in order of their numbers."""
    number = record.get("word2idx") if isinstance(record, dict) else None
    if not isinstance(number, dict):
        raise ValueError("it has no `word2idx` object")
    if {value for value in number.values() if isinstance(value, int)} != set(range(len(number))):
        raise ValueError(f"the numbers of its {len(number)} words are not 0 to {len(number) - 1}, each once")
    return sorted(number, key=number.__getitem__)
