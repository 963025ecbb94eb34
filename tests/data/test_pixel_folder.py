"""Photographs as a source: found by id, read when asked for, the same in every worker."""

from __future__ import annotations

import pickle

import pytest
import torch
from PIL import Image

from xmodal.data.pixels import PixelFolder, PixelTransform

COLORS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "391895": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "more").mkdir()
    for name, path in (("cat", "cat.png"), ("dog", "more/dog.PNG"), ("391895", "more/COCO_val2014_000000391895.png")):
        Image.new("RGB", (40, 30), COLORS[name]).save(tmp_path / path)
    return tmp_path


def test_images_come_by_position_whatever_their_files_are_called(folder):
    source = PixelFolder(folder, ["391895", "cat", "dog"], size=14)
    assert source.image_id == ["391895", "cat", "dog"]
    assert len(source) == 3
    batch = source.batch([2, 0, 2])
    assert batch.pixels.shape == (3, 3, 14, 14)
    assert [tuple(image[:, 7, 7].tolist()) for image in batch.pixels] == [COLORS[n] for n in ("dog", "391895", "dog")]


def test_the_center_is_kept_of_what_the_shorter_side_is_resized_to():
    picture = Image.new("RGB", (60, 20), "black")
    picture.paste((255, 255, 255), (20, 0, 40, 20))
    assert (PixelTransform(size=20, resize=20)(picture) == 255).all()
    stretched = PixelTransform(size=20, resize=20, square=True)(picture)
    assert stretched[0, 10, 10] == 255
    assert stretched[0, 10, 1] == 0


def test_files_are_read_when_they_are_asked_for(folder):
    source = PixelFolder(folder, ["cat", "dog"], size=14)
    (folder / "cat.png").write_bytes(b"no image")
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.batch([1]).pixels, source.batch([1]).pixels)
    with pytest.raises(ValueError, match=r"cannot read .*cat\.png"):
        copy.batch([1, 0])


def test_what_cannot_be_given_is_refused(folder):
    with pytest.raises(FileNotFoundError, match="no image 'owl'"):
        PixelFolder(folder, ["cat", "owl"])
    with pytest.raises(FileNotFoundError, match="no folder of images at"):
        PixelFolder(folder / "nowhere", ["cat"])
    with pytest.raises(ValueError, match="crop is 0"):
        PixelFolder(folder, ["cat"], size=0)
    source = PixelFolder(folder, ["cat"], size=14)
    with pytest.raises(IndexError, match="indices run from 0 to 1; the folder holds 1 images"):
        source.batch([0, 1])
    with pytest.raises(ValueError, match="at least one index"):
        source.batch([])
