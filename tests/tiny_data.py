"""A data folder small enough to train on in a second: scenes of one to five things, told in two to five captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xmodal.data import Caption, RegionStoreWriter, Vocabulary, save_captions

if TYPE_CHECKING:
    from pathlib import Path

THINGS = ("cat", "dog", "car", "tree", "boat", "bird", "horse", "lamp")
DIM = 8


def make_data(folder: Path, *, train: int = 25, dev: int = 10) -> Path:
    """Write `train.h5`, `dev.h5`, `captions.jsonl` and `vocabulary.json`; always the same."""
    generator = np.random.default_rng(0)
    captions = []
    for split, images in (("train", train), ("dev", dev)):
        with RegionStoreWriter(folder / f"{split}.h5", dim=DIM, max_regions=6, extractor="by hand") as writer:
            for image in range(images):
                things = generator.choice(len(THINGS), size=generator.integers(1, 6), replace=False)
                features = np.eye(DIM)[things] + 0.2 * generator.normal(size=(len(things), DIM))
                writer.write(f"{split}-{image}", features)
                for number in range(generator.integers(2, 6)):
                    told = generator.permutation(things)[: generator.integers(1, 6)]
                    sentence = " and ".join(f"a {THINGS[thing]}" for thing in told)
                    captions.append(Caption(f"{split}-{image}", f"{split}-{image}-{number}", sentence, split))
    save_captions(folder / "captions.jsonl", captions)
    Vocabulary(["a", "and", *THINGS]).save(folder / "vocabulary.json")
    return folder
