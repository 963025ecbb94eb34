"""Count the words of a captions file and number those that are frequent enough.

python -m preprocess.vocabulary --captions DIR/captions.jsonl --output DIR/vocabulary.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)

from xmodal.data import Vocabulary, load_captions
from xmodal.entry import run_program


@dataclass(frozen=True)
class Config:
    """What to count."""

    captions: Path
    """The captions file."""
    output: Path
    """The vocabulary file to write."""
    splits: tuple[str, ...] = ("train", "dev")
    """Splits whose captions count. The published vocabularies count train and dev."""
    min_count: int = 4
    """How often a word must come."""


def main(config: Config) -> None:
    """Build and write the vocabulary."""
    captions = [caption.caption for split in config.splits for caption in load_captions(config.captions, split)]
    vocabulary = Vocabulary.build(captions, config.min_count)
    vocabulary.save(config.output)
    print(f"{config.output}: {len(vocabulary)} words of {len(captions)} captions")


if __name__ == "__main__":
    run_program(main)
