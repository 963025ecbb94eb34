"""A data set of scenes that is trained on within seconds."""

from __future__ import annotations

import numpy as np
import pytest

from xmodal.data import Caption, RegionStoreWriter, Vocabulary, save_captions

WORDS = ("cat", "dog", "car", "tree")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of scenes: one to four things, and a region for the whole image, first, in all but the last image."""
    folder = tmp_path_factory.mktemp("data") / "coco_objects"
    generator, captions = np.random.default_rng(0), []
    for split, images in (("train", 24), ("dev", 6), ("test", 6)):
        with RegionStoreWriter(
            folder / f"{split}.h5", dim=5, max_regions=5, extractor="by hand", box_convention="xyxy relative"
        ) as writer:
            for image in range(images):
                things = generator.choice(4, size=generator.integers(1, 5), replace=False)
                features = np.eye(5)[things] + 0.1 * generator.normal(size=(len(things), 5))
                boxes = np.tile([0.1, 0.1, 0.6, 0.9], (len(things), 1))
                if image < images - 1:
                    features, boxes = np.vstack([np.ones(5), features]), np.vstack([[0, 0, 1, 1], boxes])
                writer.write(f"{split}-{image}", features, boxes=boxes)
                for number in range(2):
                    sentence = " and ".join(WORDS[thing] for thing in generator.permutation(things))
                    captions.append(Caption(f"{split}-{image}", f"{split}-{image}-{number}", sentence, split))
    save_captions(folder / "captions.jsonl", captions)
    Vocabulary(["and", *WORDS]).save(folder / "vocabulary.json")
    return folder.parent
