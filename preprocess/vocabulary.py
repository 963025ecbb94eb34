"""Count the words of a captions file and number those that are frequent enough.

    python -m preprocess.vocabulary --captions DIR/captions.jsonl --output DIR/vocabulary.json

Words are split as the published code does, at spaces. Chinese, Japanese or Thai has none between words: --segmenter
characters takes every character for a word, --segmenter jieba finds the words of Chinese. The vocabulary file says how,
and training and scoring split captions in the same way. (A transformer as text encoder brings its own tokenizer, and
needs no vocabulary file.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Literal, NamedTuple

from xmodal.data import Vocabulary, load_captions
from xmodal.data.atomic import refuse_inputs
from xmodal.data.segmenters import SEGMENTERS, is_unspaced
from xmodal.entry import run_program

from .manifest import note_written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xmodal.data import Caption

Segmenter = Literal["words", "characters", "jieba"]

USELESS = 0.5
"""The share of captions that are one word, or of words that are unknown, from which on a vocabulary tells nothing."""


@dataclass(frozen=True)
class Config:
    """What to count."""

    captions: Path
    """The captions file."""
    output: Path
    """The vocabulary file to write."""
    splits: tuple[str, ...] = ()
    """Splits whose captions count. Without: train and, where there is one, dev, as in the published vocabularies."""
    min_count: int = 4
    """How often a word must come."""
    segmenter: Segmenter = "words"
    """words: as published, at spaces and punctuation. characters: every Chinese, Japanese, Thai, Lao, Khmer or Burmese
    character is a word. jieba: the words of Chinese (pip install jieba)."""


COUNTED = ("train", "dev")
"""Splits whose captions count if nothing else is said."""


class Shares(NamedTuple):
    """What a vocabulary makes of captions, as shares from 0 to 1."""

    one_word: float
    """Captions of a single word."""
    unknown: float
    """Words, as often as they come, that are not in the vocabulary."""
    unspaced: float
    """Captions in a script without spaces between words."""


def main(config: Config) -> None:
    """Build and write the vocabulary; warn if it tells nothing about these captions.

    Raises:
        FileNotFoundError: there is no captions file.
        ValueError: no word is frequent enough, no caption is in a split, or the output is the captions file.
    """
    refuse_inputs(config.output, [config.captions])
    captions = [caption.caption for caption in _counted(config)]
    try:
        vocabulary = Vocabulary.build(captions, config.min_count, config.segmenter)
    except ValueError as error:
        raise ValueError(f"{config.captions}: {error}{_advice(captions, config.segmenter)}") from error
    vocabulary.save(config.output)
    note_written(config.output)
    shares = measure(vocabulary, captions)
    print(
        f"{config.output}: {len(vocabulary)} words of {len(captions)} captions; {shares.one_word:.1%} of the captions "
        f"are one word, {shares.unknown:.1%} of all words are unknown"
    )
    if max(shares[:2]) >= USELESS or (config.segmenter == "words" and shares.unspaced >= USELESS):
        print(
            f"WARNING: this vocabulary tells little about these captions: {shares.one_word:.1%} are one word, "
            f"{shares.unknown:.1%} of all words are unknown.{_advice(captions, config.segmenter)}"
        )


def _counted(config: Config) -> list[Caption]:
    """The captions of the splits that count."""
    known = {caption.split for caption in load_captions(config.captions)}
    if not config.splits and not known & {*COUNTED}:
        raise ValueError(
            f"{config.captions} has no caption of split {' or '.join(COUNTED)}; its splits are {sorted(known)}. Say "
            "which count: --splits"
        )
    splits = config.splits or [split for split in COUNTED if split in known]
    return [caption for split in splits for caption in load_captions(config.captions, split)]


def measure(vocabulary: Vocabulary, captions: Sequence[str]) -> Shares:
    """What a vocabulary makes of captions.

    >>> measure(Vocabulary(["a", "dog"]), ["a dog", "a cat", "一只狗在跑", "dog"])
    Shares(one_word=0.5, unknown=0.3333333333333333, unspaced=0.25)
    """
    words: Counter[bool] = Counter()
    one_word = 0
    for caption in captions:
        split = vocabulary.split(caption)
        one_word += len(split) == 1
        words.update(word in vocabulary for word in split)
    unspaced = sum(map(is_unspaced, captions))
    return Shares(one_word / len(captions), words[False] / max(1, words.total()), unspaced / len(captions))


def _advice(captions: Sequence[str], segmenter: str) -> str:
    """What to do about it: another segmenter for scripts without spaces, else fewer occurrences."""
    unspaced = sum(map(is_unspaced, captions))
    if segmenter == "words" and unspaced:
        return (
            f" {unspaced} of {len(captions)} captions are in a script without spaces between words: choose "
            f"--segmenter {' or '.join(name for name in SEGMENTERS if name != segmenter)}, or a transformer as text "
            "encoder, which brings its tokenizer."
        )
    return " Lower --min-count, or take the vocabulary of a larger set of captions."


if __name__ == "__main__":
    run_program(main)
