"""From a caption to its words: the published way, and ways for scripts that put no space between words."""

from __future__ import annotations

import re
import string
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import jieba

# The published code lower-cased utf-8 bytes in Python 2, which changes ASCII letters only.
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u2e80-\u2fdf\u3000-\u30ff\u31f0-\u31ff"  # radicals; punctuation and kana of Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese characters
    "\uff00-\uffef\U00020000-\U0003ffff"  # full and half width forms; rarer Chinese characters
)
"""Characters of scripts that are written without spaces between words, as the inside of a regular expression's []."""

MARKS = "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u17b4-\u17d3\u3099\u309a"
"""Those of them that are marks on the character before, such as the vowels and tones of Thai."""


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


def split_characters(text: str) -> list[str]:
    """Every character of an unspaced script by itself, with the marks on it; what is between them as `tokenize` does.

    >>> split_characters("一只狗在跑。 A dog")
    ['一', '只', '狗', '在', '跑', '。', 'a', 'dog']
    >>> split_characters("ที่นี่")
    ['ที่', 'นี่']
    """
    return tokenize(_CHARACTER.sub(r" \g<0> ", text))


_CHARACTER = re.compile(f"[{UNSPACED}][{MARKS}]*")


def split_chinese(text: str) -> list[str]:
    """Chinese words, as the jieba package cuts them by its dictionary (`pip install jieba`); ASCII is lower-cased.

    Raises:
        ImportError: jieba is not installed.

    >>> split_chinese("一只狗在草地上跑。")
    ['一只', '狗', '在', '草地', '上', '跑', '。']
    """
    # Without the hidden Markov model, which joins characters that no dictionary joins.
    return [word for word in _jieba().cut(text.translate(_ASCII_LOWER), HMM=False) if not word.isspace()]


@cache
def _jieba() -> jieba.Tokenizer:
    try:
        import jieba
    except ImportError as error:
        raise ImportError("segmenter 'jieba' needs the package jieba: pip install 'xmodal[chinese]'") from error

    jieba.setLogLevel("WARNING")
    return jieba.Tokenizer()


SEGMENTERS: dict[str, Callable[[str], list[str]]] = {
    "words": tokenize,
    "characters": split_characters,
    "jieba": split_chinese,
}
"""How a vocabulary's captions are split, by the name that its file stores."""


def is_unspaced(text: str) -> bool:
    """Whether a text has four characters of an unspaced script in a row, which `tokenize` takes for one word.

    >>> is_unspaced("一只狗在跑。"), is_unspaced("A dog 狗 runs.")
    (True, False)
    """
    return _RUN.search(text) is not None


_RUN = re.compile(f"[{UNSPACED}]{{4}}")
