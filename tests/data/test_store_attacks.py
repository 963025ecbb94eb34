"""A region store reads only itself, believes no size that it does not hold, and notices what was changed in it."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.data.joined import join_stores

DIM, REGIONS = 4, 3
SECRET = b"the bytes of a file that is none of the store's business, long enough to be features" * 20


def write(path, names="abcd", seed=0, overwrite=False, **options):
    numbers = np.random.default_rng(seed)
    options = {"dim": DIM, "max_regions": REGIONS, "extractor": "by hand", "overwrite": overwrite, **options}
    with RegionStoreWriter(path, **options) as writer:
        for name in names:
            boxes, size = [[0, 0, 5, 5]] * 2, (10, 10)
            writer.write(name, numbers.standard_normal((2, DIM)), boxes=boxes, image_size=size, confidence=[0.5, 0.7])
    return path


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "data" / "train.h5")


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def replace(file, name, **options):
    """Make a dataset anew, with the same contents if no others are given."""
    options = {"data": file[name][:], **options} if "shape" not in options else options
    del file[name]
    return file.create_dataset(name, **options)


def external_storage(file, secret):
    replace(file, "features", shape=(4, REGIONS, DIM), dtype="f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def external_storage_of_boxes(file, secret):
    replace(file, "boxes", shape=(4, REGIONS, 4), dtype="f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def external_link(file, secret):
    with h5py.File(secret, "w") as other:
        other["features"] = file["features"][:]
    del file["features"]
    file["features"] = h5py.ExternalLink(str(secret), "/features")


def soft_link(file, secret):
    file["elsewhere"] = file["features"][:]
    del file["features"]
    file["features"] = h5py.SoftLink("/elsewhere")


def virtual(name):
    def attack(file, secret):
        write(secret, overwrite=True)
        layout = h5py.VirtualLayout((4, REGIONS, DIM), "f4")
        layout[:] = h5py.VirtualSource(name(secret), "features", (4, REGIONS, DIM), "f4")
        del file["features"]
        file.create_virtual_dataset("features", layout)

    return attack


def virtual_boxes(file, secret):
    layout = h5py.VirtualLayout((4, REGIONS, 4), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "boxes", (4, REGIONS, 4), "f4")
    del file["boxes"]
    file.create_virtual_dataset("boxes", layout)


def link_in_the_folder(file, secret):
    Path(file.filename).with_name("part.h5").symlink_to(secret)
    virtual(lambda secret: "part.h5")(file, secret)


ATTACKS = {
    "external storage": (external_storage, "features lies in another file"),
    "external storage of boxes": (external_storage_of_boxes, "boxes lies in another file"),
    "external link": (external_link, "features is a link"),
    "soft link": (soft_link, "features is a link"),
    "absolute virtual source": (virtual(str), "not in its folder or below"),
    "virtual source above": (virtual(lambda secret: "../secret"), "not in its folder or below"),
    "virtual source around": (virtual(lambda secret: "below/../../secret"), "not in its folder or below"),
    "virtual source by a link": (link_in_the_folder, "not in its folder or below"),
    "virtual boxes": (virtual_boxes, "boxes is virtual"),
}


@pytest.mark.parametrize(("attack", "message"), ATTACKS.values(), ids=ATTACKS)
def test_no_other_file_is_read(store, secret, attack, message):
    with h5py.File(store, "r+") as file:
        attack(file, secret)
    with pytest.raises(ValueError, match=rf"train\.h5 .*{message}"):
        RegionStore(store)


def test_a_store_is_no_part_of_itself(store):
    def virtual_of(path, name):
        with h5py.File(path, "r+") as file:
            layout = h5py.VirtualLayout((4, REGIONS, DIM), "f4")
            layout[:] = h5py.VirtualSource(name, "features", (4, REGIONS, DIM), "f4")
            del file["features"]
            file.create_virtual_dataset("features", layout)

    other = Path(shutil.copy(store, store.with_name("other.h5")))
    virtual_of(store, "other.h5")
    RegionStore(store)
    virtual_of(other, "train.h5")
    with pytest.raises(ValueError, match=r"joined of itself, by way of .*train\.h5"):
        RegionStore(store)
    virtual_of(other, "other.h5")
    with pytest.raises(ValueError, match=r"joined of itself, by way of .*other\.h5"):
        RegionStore(other)
    virtual_of(other, ".")
    with pytest.raises(ValueError, match="not in its folder or below"):
        RegionStore(other)


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "folder.h5").mkdir()
    for path in (tmp_path / "pipe.h5", tmp_path / "folder.h5", Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"{path.name} is no ordinary file; wanted a region store"):
            RegionStore(path)


def many_images(file):
    replace(file, "features", shape=(10**9, REGIONS, DIM), dtype="f4", chunks=(1, REGIONS, DIM))


def many_counts(file):
    replace(file, "num_regions", shape=(10**10,), dtype="i4", chunks=(1000,))


def much_in_a_chunk(file):
    replace(file, "features", shape=(4, 10**6, 10**3), dtype="f4", chunks=(1, 10**6, 10**3), compression="gzip")


def a_large_chunk(file):
    replace(file, "num_regions", data=np.full(4, 2), chunks=(1 << 28,), maxshape=(None,), compression="gzip")


def missing_chunks(file):
    dataset = replace(file, "features", shape=(4, REGIONS, DIM), dtype="f4", chunks=(1, REGIONS, DIM))
    dataset[0] = 1


def not_numbers(file):
    replace(file, "features", data=np.zeros((4, REGIONS, DIM), "S8"))


def doubles(file):
    replace(file, "features", data=file["features"][:].astype(np.float64))


def flat(file):
    replace(file, "features", data=file["features"][:].reshape(4, -1))


def narrow_boxes(file):
    replace(file, "boxes", data=file["boxes"][..., :3])


def a_scalar(file):
    replace(file, "num_regions", data=np.int32(2))


def fractions(file):
    replace(file, "num_regions", data=np.full(4, 1.5))


def numbered(file):
    replace(file, "image_id", data=np.arange(4))


def a_group(file):
    del file["boxes"]
    file.create_group("boxes")


def too_many(file):
    file["num_regions"][1] = 7


def none_at_all(file):
    file["num_regions"][1] = 0


def attribute(name, value):
    def damage(file):
        file.attrs[name] = value

    return damage


CLAIMS = {
    "many images": (many_images, "different lengths|claims"),
    "many counts": (many_counts, "different lengths|claims"),
    "much in a chunk": (much_in_a_chunk, "more than any network gives"),
    "a large chunk": (a_large_chunk, "larger than all of it"),
    "missing chunks": (missing_chunks, "features claims 192 bytes, of which 48 are stored"),
    "not numbers": (not_numbers, r"features are \(4, 3, 4\) \|S8"),
    "doubles": (doubles, "float64; wanted"),
    "flat": (flat, r"features are \(4, 12\)"),
    "narrow boxes": (narrow_boxes, r"boxes is \(4, 3, 3\); wanted \(4, 3, 4\)"),
    "a scalar": (a_scalar, "different lengths"),
    "fractions": (fractions, "num_regions is float64; wanted numbers"),
    "numbered": (numbered, "image_id is int64; wanted strings"),
    "a group": (a_group, "boxes is a group"),
    "too many": (too_many, r"1 image \('b'\) with a count outside 1\.\.3"),
    "none at all": (none_at_all, r"1 image \('b'\) with a count outside 1\.\.3"),
    "an array for the format": (attribute("format", np.zeros(3)), "cannot be read"),
    "another box convention": (attribute("box_convention", "xywh"), "box_convention is 'xywh'; wanted one of"),
    "options that are no JSON": (attribute("extractor_options", "{"), "cannot be read"),
    "options that are no object": (attribute("extractor_options", "[]"), "wanted an object"),
}


@pytest.mark.parametrize(("damage", "message"), CLAIMS.values(), ids=CLAIMS)
def test_what_cannot_be_is_refused_on_opening(store, damage, message):
    with h5py.File(store, "r+") as file:
        damage(file)
    with pytest.raises(ValueError, match=message) as error:
        RegionStore(store)
    assert "train.h5" in str(error.value)


def test_every_changed_number_of_an_image_is_noticed(tmp_path):
    """Each byte of each dataset that tells something of an image, one at a time."""
    path = write(tmp_path / "train.h5")
    whole = path.read_bytes()
    with h5py.File(path) as file:
        places = {name: file[name].id.get_offset() for name in ("boxes", "image_size", "confidence", "crc32")}
        sizes = {name: file[name].nbytes for name in places}
        file["features"].id.chunk_iter(
            lambda chunk: places.setdefault(f"features {chunk.byte_offset}", chunk.byte_offset)
        )
    for name, start in places.items():
        for offset in range(0, sizes.get(name, REGIONS * DIM * 4), 5):
            damaged = bytearray(whole)
            damaged[start + offset] ^= 1 << offset % 8
            path.write_bytes(damaged)
            assert "checksum is wrong" in "\n".join(RegionStore(path).validate()), (name, offset)


def test_a_joined_store_keeps_the_checksums(tmp_path):
    for name in ("ab", "cd"):
        write(tmp_path / f"{name}.h5", name)
    join_stores([tmp_path / "ab.h5", tmp_path / "cd.h5"], tmp_path / "all.h5")
    assert RegionStore(tmp_path / "all.h5").validate() == []
    damaged = bytearray((tmp_path / "cd.h5").read_bytes())
    with h5py.File(tmp_path / "cd.h5") as file:
        place = []
        file["features"].id.chunk_iter(lambda chunk: place.append(chunk.byte_offset))
    damaged[place[1] + 3] ^= 1
    (tmp_path / "cd.h5").write_bytes(damaged)
    (problem,) = RegionStore(tmp_path / "all.h5").validate()
    assert problem.startswith("1 image ('d') whose checksum is wrong")


def test_stores_from_before_there_were_checksums_are_read_and_joined(tmp_path):
    for name in ("ab", "cd"):
        write(tmp_path / f"{name}.h5", name)
    with h5py.File(tmp_path / "ab.h5", "r+") as file:
        del file["crc32"]
    assert RegionStore(tmp_path / "ab.h5").validate() == []
    join_stores([tmp_path / "ab.h5", tmp_path / "cd.h5"], tmp_path / "all.h5")
    assert RegionStore(tmp_path / "all.h5").validate() == []


def test_damaged_compressed_features_are_named(tmp_path):
    path = write(tmp_path / "train.h5")
    with h5py.File(path, "r+") as file:
        dataset = replace(file, "features", chunks=(1, REGIONS, DIM), compression="gzip", fletcher32=True)
        place = []
        dataset.id.chunk_iter(lambda chunk: place.append(chunk.byte_offset))
    damaged = bytearray(path.read_bytes())
    damaged[place[2] + 8] ^= 1
    path.write_bytes(damaged)
    store = RegionStore(path)
    with pytest.raises(ValueError, match=r"train\.h5 cannot be read"):
        store.batch([2])
    assert any("1 image ('c') that cannot be read" in problem for problem in store.validate())


@pytest.mark.parametrize("checksums", [True, False])
def test_a_store_that_is_replaced_while_it_is_used_is_noticed(tmp_path, checksums):
    path = write(tmp_path / "train.h5")
    if not checksums:
        with h5py.File(path, "r+") as file:
            del file["crc32"]
    store = RegionStore(path)
    parcel = pickle.dumps(store)
    moved = pickle.loads(parcel)
    assert moved.batch([0]).regions.equal(store.batch([0]).regions)
    write(path, seed=1, overwrite=True)
    with pytest.raises(ValueError, match="was replaced by another store while it was in use"):
        pickle.loads(parcel).batch([0])
    if checksums:  # which also tell that a copy elsewhere is the same
        assert pickle.loads(pickle.dumps(RegionStore(path))).image_id == store.image_id


def test_mutants_are_read_right_or_refused_by_name(tmp_path):
    """Bytes changed at random: a reader says what is wrong, or reads what was written, or validation tells."""
    path = write(tmp_path / "train.h5")
    whole, store = path.read_bytes(), RegionStore(path)
    wanted = store.batch(range(len(store)))
    numbers = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(numbers.choice([1, 1, 4, 40])):
            damaged[numbers.randrange(len(damaged))] = numbers.randrange(256)
        path.write_bytes(damaged)
        refusal = None
        try:
            store = RegionStore(path)
            found = store.batch(range(len(store)))
            problems = store.validate()
        except (ValueError, FileNotFoundError) as error:
            refusal = str(error)
        if refusal is None:
            same = found.regions.equal(wanted.regions) and found.region_mask.equal(wanted.region_mask)
            assert same or problems
        else:
            assert "train.h5" in refusal
