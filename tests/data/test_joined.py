"""A joined store reads as one store of all images would, wherever its folder is, and never without its parts."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.data.joined import join_stores

COUNTS = [[3, 1], [5], [2, 4, 1]]
"""Regions of the images of three parts."""


def write(path, images, **options):
    with RegionStoreWriter(path, **{"dim": 4, "max_regions": 5, "extractor": "a test", **options}) as writer:
        for name, features in images:
            boxes = np.tile([1, 2, 3, 4], (len(features), 1))
            writer.write(name, features, boxes, (9, 8), confidence=features[:, 0], class_id=np.arange(len(features)))


@pytest.fixture
def folder(tmp_path):
    """A folder with the same images joined and in one store."""
    generator = np.random.default_rng(0)
    together = []
    for number, counts in enumerate(COUNTS):
        images = [(f"{number} {i}", generator.normal(size=(c, 4)).astype("f4")) for i, c in enumerate(counts)]
        write(tmp_path / "store" / "parts" / f"{number}.h5", images)
        together += images
    write(tmp_path / "store" / "whole.h5", together)
    join_stores(sorted((tmp_path / "store" / "parts").glob("*.h5")), tmp_path / "store" / "joined.h5")
    return tmp_path / "store"


def assert_same(joined, whole):
    one, other = RegionStore(joined), RegionStore(whole)
    assert one.image_id == other.image_id
    assert one.attributes.keys() == other.attributes.keys()
    for index in range(len(other)):
        assert torch.equal(one[index], other[index])
        assert torch.equal(one.boxes(index), other.boxes(index))
        assert torch.equal(one.confidence(index), other.confidence(index))
        assert torch.equal(one.class_id(index), other.class_id(index))
    assert one.validate() == other.validate() == []


def test_joined_is_the_same_as_whole_and_moves_with_its_folder(folder, tmp_path, monkeypatch):
    assert_same(folder / "joined.h5", folder / "whole.h5")
    moved = folder.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert_same(moved / "joined.h5", moved / "whole.h5")
    with h5py.File("elsewhere/joined.h5") as joined, h5py.File("elsewhere/whole.h5") as whole:
        for name in whole:  # as any program reads it
            np.testing.assert_array_equal(joined[name][:], whole[name][:])


@pytest.mark.parametrize("layout", ["plain", "compressed"])
@given(indices=st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_batches(tmp_path_factory, layout, indices):
    folder = tmp_path_factory.getbasetemp() / f"joined {layout}"
    if not folder.exists():
        for number, count in enumerate((2, 4)):
            write(folder / f"{number}.h5", [(f"{number} {i}", np.full((3, 4), 10 * number + i)) for i in range(count)])
        if layout == "compressed":
            with h5py.File(folder / "1.h5", "r+") as file:
                features = file["features"][:]
                del file["features"]
                file.create_dataset("features", data=features, chunks=(1, 5, 4), compression="gzip")
        join_stores([folder / "0.h5", folder / "1.h5"], folder / "joined.h5")
    batch = RegionStore(folder / "joined.h5").batch(indices)
    assert batch.regions[:, 0, 0].tolist() == [[0, 1, 10, 11, 12, 13][index] for index in indices]


def test_joined_stores_can_be_joined(folder):
    write(folder / "more.h5", [("more", np.ones((2, 4)))])
    join_stores([folder / "joined.h5", folder / "more.h5"], folder / "all.h5")
    store = RegionStore(folder / "all.h5")
    assert store.image_id[-2:] == ["2 2", "more"]
    assert torch.equal(store[5], RegionStore(folder / "whole.h5")[5])
    (folder / "parts" / "1.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"parts.1\.h5 is missing"):
        RegionStore(folder / "all.h5")


def test_a_missing_part_is_named_for_hdf5_would_read_zeros(folder):
    part = folder / "parts" / "1.h5"
    part.rename(folder / "1.h5")
    with h5py.File(folder / "joined.h5") as file:
        assert not file["features"][2].any(), "the trap"
    with pytest.raises(FileNotFoundError, match=r"joined\.h5 is joined of other files, and .*parts.1\.h5 is missing"):
        RegionStore(folder / "joined.h5")


def cut(part):
    part.write_bytes(part.read_bytes()[:2000])


def replace_by_another(part):
    shutil.copy(part.with_name("0.h5"), part)


def shorten(part):
    write(part, [("2 0", np.ones((1, 4)))], overwrite=True)


def change_type(part):
    images = [(f"2 {i}", np.ones((1, 4))) for i in range(3)]
    write(part, images, overwrite=True, dtype="float16")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is not an HDF5 file, or was cut off"),
        (replace_by_another, "holds other images than when"),
        (shorten, "holds other images than when"),
        (change_type, r"holds features \(5, 4\) float16, wanted \(5, 4\) float32"),
    ],
)
def test_a_changed_part_is_named(folder, damage, message):
    damage(folder / "parts" / "2.h5")
    with pytest.raises(ValueError, match=rf"parts.2\.h5 {message}"):
        RegionStore(folder / "joined.h5")


def test_a_store_is_not_joined_of_itself(folder):
    """Nor of a store that is joined of it, nor by way of a link: its features would be gone."""
    parts = folder / "parts"
    part = parts / "0.h5"
    (parts / "link.h5").symlink_to(part)
    join_stores([part], parts / "virtual.h5")
    before = {path: path.read_bytes() for path in parts.iterdir()}
    for chosen in ([part, parts / "1.h5"], [parts / "1.h5", parts / "virtual.h5"], [parts / "link.h5"]):
        with pytest.raises(ValueError, match=r"0\.h5 would be overwritten, and is read: .*\.h5"):
            join_stores(chosen, part, overwrite=True)
    assert before == {path: path.read_bytes() for path in parts.iterdir()}
    assert RegionStore(part).validate() == []


def test_what_does_not_go_together_is_not_joined(folder, tmp_path):
    first, joined = folder / "parts" / "0.h5", folder / "new.h5"
    with pytest.raises(ValueError, match="nothing to join"):
        join_stores([], joined)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        join_stores([first], folder / "joined.h5")
    with pytest.raises(ValueError, match=r"2 images \('0 0', '0 1'\) in more than one part"):
        join_stores([first, first], joined)
    write(folder / "other.h5", [("x", np.ones((1, 4)))], extractor="another")
    with pytest.raises(ValueError, match=r"other\.h5 was not made like .*0\.h5: .*'another'"):
        join_stores([first, folder / "other.h5"], joined)
    write(tmp_path / "outside.h5", [("x", np.ones((1, 4)))])
    with pytest.raises(ValueError, match=r"outside\.h5 is not in .* or a folder in it"):
        join_stores([first, tmp_path / "outside.h5"], joined)
    assert not joined.exists()
