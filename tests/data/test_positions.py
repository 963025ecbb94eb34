"""Whatever gives batches takes positions from 0 and nothing else: no place from the end, no mask, no fraction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.data import (
    Caption,
    LabelledFeatures,
    LabelledImages,
    PairDataset,
    RegionStore,
    RegionStoreWriter,
    Vocabulary,
    image_transform,
)
from xmodal.data.labelled import LabelledImage
from xmodal.data.pixels import PixelFolder
from xmodal.data.split import SomeImages

NAMES = ["cat", "dog"]


def source(kind, folder):
    """What takes a list of positions of two images."""
    with RegionStoreWriter(folder / "a.h5", dim=2, extractor="a test", overwrite=True) as writer:
        for place, name in enumerate(NAMES):
            writer.write(name, [[1, place]])
            Image.new("RGB", (9, 9)).save(folder / f"{name}.png")
    store = RegionStore(folder / "a.h5")
    captions = [Caption(name, name, name, "train") for name in NAMES]
    photographs = [LabelledImage(folder / f"{name}.png", name, "train") for name in NAMES]
    return {
        "regions": lambda: store.batch,
        "pixels": lambda: PixelFolder(folder, NAMES, size=8).batch,
        "some": lambda: SomeImages(store, [1, 0]).batch,
        "pairs": lambda: PairDataset(store, captions, Vocabulary(NAMES)).__getitems__,
        "features": lambda: LabelledFeatures(torch.eye(2), NAMES, NAMES, ["train"] * 2).__getitems__,
        "images": lambda: LabelledImages(photographs, image_transform(train=True, resize=8, crop=8)).__getitems__,
    }[kind]()


@pytest.mark.parametrize("kind", ["regions", "pixels", "some", "pairs", "features", "images"])
def test_positions_count_from_the_beginning(tmp_path, kind):
    take = source(kind, tmp_path)
    for good in ([1, 0], torch.tensor([1, 0]), np.array([1, 0], np.uint8), range(2), [np.int64(0), np.int64(1)]):
        assert len(take(good)[0] if kind != "pairs" else take(good).tokens) == 2
    for outside in ([-1], [0, 2], torch.tensor([-1, 0]), np.array([2**63], np.uint64)):
        with pytest.raises(IndexError, match="holds 2"):
            take(outside)
    for strange in ([0.9], [False, True], torch.tensor([True, True]), [[0, 1]], ["0"]):
        with pytest.raises(ValueError, match=r"indices of .* are .*; wanted a list of whole numbers"):
            take(strange)
    with pytest.raises(ValueError, match="at least one index"):
        take([])


def test_columns_of_an_image_are_by_position(tmp_path):
    source("regions", tmp_path)
    with RegionStoreWriter(tmp_path / "b.h5", dim=2, extractor="a test") as writer:
        for name, size in (("cat", (4, 3)), ("dog", (5, 6))):
            writer.write(name, [[1, 0]], [[0, 0, 1, 1]], size)
    store = RegionStore(tmp_path / "b.h5")
    assert store.image_size(1) == (5, 6)
    for wrong, error in ((-1, IndexError), (2, IndexError), (True, ValueError), (0.5, ValueError)):
        for read in (store.image_size, store.boxes, store.__getitem__):
            with pytest.raises(error):
                read(wrong)


def test_a_selection_is_by_position_and_a_seed_is_no_negative_number(tmp_path):
    source("regions", tmp_path)
    with pytest.raises(IndexError, match="holds 2 images"):
        SomeImages(RegionStore(tmp_path / "a.h5"), [-1])
    with pytest.raises(ValueError, match="seed is -1"):
        LabelledImages([LabelledImage(tmp_path / "cat.png", "cat", "train")], image_transform(train=True), seed=-1)
