"""Words and their numbers, as SCAN, BFAN and VSRN were trained with them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from xmodal.data.atomic import written_whole
from xmodal.data.segmenters import SEGMENTERS, tokenize
from xmodal.data.strings import refuse_string
from xmodal.data.text import parse_json, read_text
from xmodal.data.tokenized import tokenizer_identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Bool, Int
    from torch import Tensor

__all__ = ["END", "PAD", "SPECIAL_WORDS", "START", "UNKNOWN", "TokenBatch", "Vocabulary", "tokenize"]

PAD, START, END, UNKNOWN = SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")


class TokenBatch(NamedTuple):
    """The words of some captions as numbers, padded to the longest of them."""

    tokens: Int[Tensor, "caption word"]
    word_mask: Bool[Tensor, "caption word"]


class Vocabulary:
    """The words a model knows, numbered from 0. Calling it turns captions into padded numbers.

    Args:
        words: every word once, in order of its number. Without any of the special words `<pad> <start> <end> <unk>`
            these come first, in this order; with them, all four must be there and keep their place.
        segmenter: how captions are split into words: `words`, as published; `characters` or `jieba` for scripts without
            spaces between words, see `xmodal.data.segmenters`.

    Raises:
        ValueError: a word comes twice, only some of the special words are there, or there is no such segmenter.

    >>> vocabulary = Vocabulary(["a", "dog", "runs"])
    >>> vocabulary.encode("A dog sleeps")
    [1, 4, 5, 3, 2]
    >>> vocabulary(["A dog runs", "Dog"]).tokens
    tensor([[1, 4, 5, 6, 2],
            [1, 5, 2, 0, 0]])
    """

    def __init__(self, words: Sequence[str], segmenter: str = "words") -> None:
        if not isinstance(segmenter, str) or segmenter not in SEGMENTERS:
            raise ValueError(f"segmenter {segmenter!r} is unknown; known: {', '.join(SEGMENTERS)}")
        refuse_string("words", words, "words")
        self.segmenter = segmenter
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

    def identity(self) -> str:
        """A hash of all that the numbers of a caption depend on."""
        library = {"jieba": "jieba"}.get(self.segmenter, "nltk")
        return tokenizer_identity(library, self.segmenter, *self.words)

    @property
    def config(self) -> list[str] | dict[str, Any]:
        """What `from_config` makes this vocabulary of; a saved model stores it."""
        return self.words if self.segmenter == "words" else {"words": self.words, "segmenter": self.segmenter}

    @classmethod
    def from_config(cls, config: Sequence[str] | dict[str, Any]) -> Vocabulary:
        """A vocabulary of its words, or of a dict with `words` and `segmenter`."""
        return cls(**config) if isinstance(config, dict) else cls(config)

    def split(self, text: str) -> list[str]:
        """The words of a caption, known or not."""
        return SEGMENTERS[self.segmenter](text)

    def encode(self, text: str) -> list[int]:
        """The numbers of a caption's words between those of `<start>` and `<end>`.

        Raises:
            ValueError: the caption has no words.
        """
        words = self.split(text)
        if not words:
            raise ValueError(f"the caption {text!r} has no words")
        unknown = self._number[UNKNOWN]
        return [self._number[START], *(self._number.get(word, unknown) for word in words), self._number[END]]

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Encode captions and pad them to the longest.

        Raises:
            ValueError: there is no caption, or one has no words; or one string, which is no list of captions.
        """
        refuse_string("texts", texts, "captions")
        if len(texts) == 0:
            raise ValueError("there is no caption to encode")
        rows = [torch.tensor(self.encode(text)) for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = pad_sequence(rows, batch_first=True, padding_value=self._number[PAD])
        return TokenBatch(tokens, torch.arange(tokens.shape[1]) < lengths[:, None])

    @classmethod
    def build(cls, texts: Iterable[str], min_count: int = 4, segmenter: str = "words") -> Vocabulary:
        """The words that come at least `min_count` times: the most frequent first, equals in alphabetical order.

        The published vocabularies are in the order of a Python 2 dictionary, which nothing can reproduce: to use a
        released model, load its vocabulary file.

        Raises:
            ValueError: no word is frequent enough, or there is no such segmenter.
        """
        refuse_string("texts", texts, "captions")
        split = cls([], segmenter).split
        count: Counter[str] = Counter()
        for text in tqdm(texts, desc="counting words", unit="caption", delay=2):
            count.update(split(text))
        frequent = [word for word in count if count[word] >= min_count]
        if not frequent:
            raise ValueError(f"none of the {len(count)} words comes {min_count} times or more. Lower min_count.")
        return cls(sorted(frequent, key=lambda word: (-count[word], word)), segmenter)

    def save(self, path: str | Path) -> None:
        """Write the published JSON form: `word2idx`, `idx2word` and `idx`, the number of words.

        A `segmenter` other than the published one is stored besides.
        """
        record: dict[str, Any] = {
            "word2idx": self._number,
            "idx2word": {str(number): word for word, number in self._number.items()},
            "idx": len(self),
        }
        if self.segmenter != "words":
            record["segmenter"] = self.segmenter
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read the JSON form. Only `word2idx` is needed, or its words and numbers alone; every word keeps its number.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no vocabulary, or its numbers are not 0, 1, 2, ...
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no vocabulary at {path}. `xmodal prepare vocabulary --help` makes one.")
        try:
            record = parse_json(read_text(path), "it")
            words = in_order(record.get("word2idx", record) if isinstance(record, dict) else None)
            if not set(SPECIAL_WORDS) <= set(words):
                raise ValueError(f"it lacks some of the special words {SPECIAL_WORDS}")
            return cls(words, record.get("segmenter", "words") if "word2idx" in record else "words")
        except ValueError as error:
            raise ValueError(f"{path} is not a vocabulary: {error}") from error


def in_order(number: Any) -> list[str]:
    """The words of a file in order of their numbers.

    Raises:
        ValueError: these are no words with the numbers 0, 1, 2, ...

    >>> in_order({"dog": 1, "a": 0})
    ['a', 'dog']
    """
    if not isinstance(number, dict) or not all(isinstance(word, str) for word in number):
        raise ValueError("it has no `word2idx` that numbers its words")
    # Of Python, numpy or a pickle of Python 2; but a truth value is no number.
    whole = {int(value) for value in number.values() if hasattr(value, "__index__") and not isinstance(value, bool)}
    if not number or whole != set(range(len(number))):
        raise ValueError(
            "`word2idx` must number its words 0, 1, 2, ...; "
            f"the numbers of its {len(number)} words are not 0 to {len(number) - 1}, each once"
        )
    return sorted(number, key=number.__getitem__)
