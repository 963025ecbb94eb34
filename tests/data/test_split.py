"""A split joins images and captions by id, in the order of each; its first images are those told of first."""

from __future__ import annotations

import pytest
import torch

from xmodal.data import Caption, RegionStore, RegionStoreWriter, save_captions
from xmodal.data.image_source import ImageSource
from xmodal.data.split import SomeImages, open_source, open_split

TOLD = [("dog", "a"), ("owl", "b"), ("dog", "c"), ("cat", "d"), ("owl", "e")]


@pytest.fixture
def folder(tmp_path):
    with RegionStoreWriter(tmp_path / "dev.h5", dim=2, extractor="by hand") as writer:
        for number, name in enumerate(("cat", "dog", "owl")):
            writer.write(name, [[number, 1]] * (number + 1))
    captions = [Caption(name, f"id {text}", text, "dev") for name, text in TOLD]
    save_captions(tmp_path / "captions.jsonl", [*captions, Caption("elk", "z", "an elk", "train")])
    return tmp_path


def test_a_split_is_images_captions_and_what_belongs_together(folder):
    split = open_split(folder, "dev")
    assert [caption.caption_id for caption in split.captions] == [f"id {text}" for _, text in TOLD]
    assert split.sentences == [text for _, text in TOLD]
    names = [split.source.image_id[image] for image in split.relevance.caption_image.tolist()]
    assert names == [name for name, _ in TOLD]


@pytest.mark.parametrize(("count", "names"), [(1, ["dog"]), (2, ["dog", "owl"]), (3, ["cat", "dog", "owl"])])
def test_the_first_images_are_those_that_captions_speak_of_first(folder, count, names):
    split = open_split(folder, "dev").first(count)
    assert split.source.image_id == names
    assert split.sentences == [text for name, text in TOLD if name in names]
    told = [split.source.image_id[image] for image in split.relevance.caption_image.tolist()]
    assert told == [name for name, _ in TOLD if name in names]
    assert split.relevance.images == len(names)


def test_some_images_are_those_of_the_source(folder):
    store = RegionStore(folder / "dev.h5")
    some = SomeImages(store, [2, 0])
    batch, wanted = some.batch([1, 0, 1]), store.batch([0, 2, 0])
    assert torch.equal(batch.regions, wanted.regions)
    assert torch.equal(batch.region_mask, wanted.region_mask)
    assert (some.sizes, some.extractor, some.has_regions) == (store.sizes, store.extractor, True)


def test_images_without_captions_are_refused_unless_training_allows_them(folder):
    with RegionStoreWriter(folder / "train.h5", dim=2, extractor="by hand") as writer:
        for name in ("elk", "fox"):
            writer.write(name, [[1, 1]])
    with pytest.raises(ValueError, match=r"1 of 2 images have no caption, image 'fox'"):
        open_split(folder, "train")
    assert len(open_split(folder, "train", every_image=False).source) == 2


class Numbers(ImageSource):
    """Images that are numbers."""

    def __init__(self, image_id, factor: int = 1):
        self.image_id, self.factor = image_id, factor

    def __len__(self):
        return len(self.image_id)

    def batch(self, indices):
        return torch.as_tensor(indices) * self.factor


def test_a_source_of_ones_own_goes_by_its_dotted_name(folder):
    source = open_source(folder, "dev", {"name": f"{__name__}:Numbers", "factor": 3})
    assert list(source.image_id) == ["dog", "owl", "cat"]
    assert source.batch([1, 2]).tolist() == [3, 6]
    assert (source.sizes, source.extractor, source.has_regions) == ({}, None, False)
    with pytest.raises(ValueError, match=r"unknown image source 'pixel' \(did you mean 'pixels'\?\)"):
        open_source(folder, "dev", {"name": "pixel"})


def test_a_split_that_is_not_there_is_told_with_those_that_are(folder):
    with pytest.raises(ValueError, match=r"captions\.jsonl has no caption of split 'val'; its splits are .*dev.*train"):
        open_split(folder, "val")
