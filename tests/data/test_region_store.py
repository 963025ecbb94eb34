"""What goes into a region store comes out, in any order and any process; what should not go in is refused."""

from __future__ import annotations

import pickle

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.data.image_source import in_float32
from xmodal.data.joined import join_stores

DIM = 6
COUNTS = [3, 1, 5, 2, 5]


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [generator.normal(size=(count, DIM)).astype(np.float32) for count in COUNTS]


def boxes_of(count):
    return np.stack([[i, 2 * i, i + 3, 2 * i + 4] for i in range(count)]).astype(np.float32)


def write(path, images, **options):
    with RegionStoreWriter(path, **{"dim": DIM, "max_regions": 5, "extractor": "a test", **options}) as writer:
        for number, features in enumerate(images):
            writer.write(f"image {number}", features, boxes_of(len(features)), (40, 30 + number))


@pytest.fixture(scope="module")
def path(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("store") / "deep" / "train.h5"
    write(path, images, weights_hash="abc")
    return path


def test_round_trip_is_exact(path, images):
    store = RegionStore(path)
    assert len(store) == len(images)
    assert (store.dim, store.max_regions) == (DIM, 5)
    assert store.image_id == [f"image {i}" for i in range(len(images))]
    assert store.index("image 2") == 2
    for i, features in enumerate(images):
        torch.testing.assert_close(store[i], torch.from_numpy(features), rtol=0, atol=0)
        np.testing.assert_array_equal(store.boxes(i), boxes_of(len(features)))
        assert store.image_size(i) == (40, 30 + i)
    attributes = store.attributes
    assert (attributes["extractor"], attributes["weights_hash"]) == ("a test", "abc")
    assert attributes["box_convention"] == "xyxy pixels"
    assert attributes["created"]
    assert store.validate() == []
    assert [len(regions) for regions in store] == COUNTS  # a sequence: iterating ends


@pytest.mark.parametrize("layout", ["chunked", "compressed", "contiguous"])
@given(indices=st.lists(st.integers(0, len(COUNTS) - 1), min_size=1, max_size=12))
def test_batch_equals_single_images_padded(tmp_path_factory, images, path, layout, indices):
    if layout != "chunked":
        path = _rewritten(path, tmp_path_factory, layout)
    batch = RegionStore(path).batch(indices)
    longest = max(COUNTS[i] for i in indices)
    assert batch.regions.shape == (len(indices), longest, DIM)
    assert batch.region_mask.dtype == torch.bool
    for place, i in enumerate(indices):
        assert batch.region_mask[place].tolist() == [region < COUNTS[i] for region in range(longest)]
        np.testing.assert_array_equal(batch.regions[place, : COUNTS[i]], images[i])
        assert not batch.regions[place, COUNTS[i] :].any()


def _rewritten(path, tmp_path_factory, layout):
    """The same store with its features laid out in another way that the format allows."""
    copy = tmp_path_factory.getbasetemp() / f"{layout}.h5"
    if not copy.exists():
        copy.write_bytes(path.read_bytes())
        with h5py.File(copy, "r+") as file:
            features = file["features"][:]
            del file["features"]
            options = {"chunks": (1, 5, DIM), "compression": "gzip"} if layout == "compressed" else {}
            file.create_dataset("features", data=features, **options)
    return copy


def test_float16_is_half_the_size_and_comes_out_as_float32(tmp_path, images):
    write(tmp_path / "half.h5", images, dtype="float16")
    store = RegionStore(tmp_path / "half.h5")
    assert store[0].dtype == torch.float32
    np.testing.assert_array_equal(store[0], images[0].astype(np.float16).astype(np.float32))


def test_float16_comes_out_as_stored_where_asked(tmp_path, images):
    for dtype in ("float16", "float32"):
        write(tmp_path / f"{dtype}.h5", images, dtype=dtype)
        stored = pickle.loads(pickle.dumps(RegionStore(tmp_path / f"{dtype}.h5", "stored"))).batch([2, 0])
        assert stored.regions.dtype == getattr(torch, dtype)
        moved = in_float32(stored)
        assert moved.regions.dtype == torch.float32
        expected = RegionStore(tmp_path / f"{dtype}.h5").batch([2, 0])
        assert torch.equal(moved.regions, expected.regions)
        assert torch.equal(moved.region_mask, expected.region_mask)
    with pytest.raises(ValueError, match="dtype must be float32 or stored, got 'half'"):
        RegionStore(tmp_path / "float16.h5", "half")


def test_what_the_detector_said_and_how_it_was_built(tmp_path):
    options = {"max_regions": 5, "threshold": None}
    with RegionStoreWriter(tmp_path / "store.h5", dim=DIM, extractor="detr", extractor_options=options) as writer:
        writer.write("cat", np.ones((2, DIM)), class_id=[17, 3], confidence=[0.75, 0.5])
        writer.write("dog", np.ones((1, DIM)), class_id=[18], confidence=[0.25])
    store = RegionStore(tmp_path / "store.h5")
    assert store.class_id(0).tolist() == [17, 3]
    assert store.confidence(0).tolist() == [0.75, 0.5]
    assert (store.class_id(1).tolist(), store.confidence(1).tolist()) == ([18], [0.25])
    assert store.extractor == {"name": "detr", "max_regions": 5, "threshold": None}
    older = tmp_path / "older.h5"
    older.write_bytes(store.path.read_bytes())
    with h5py.File(older, "r+") as file:
        del file.attrs["extractor_options"]
    assert RegionStore(older).extractor == {"name": "detr"}


def test_a_batch_of_every_image(path, images):
    regions, mask, _ = RegionStore(path).batch(range(len(images)))
    np.testing.assert_array_equal(regions[mask], np.concatenate(images))


class Indices(torch.utils.data.Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, index):
        return self.store[index].sum()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_a_store_that_is_already_open(path, images, start):
    store = RegionStore(path)
    sums = torch.stack([store[i].sum() for i in range(len(store))])
    loader = DataLoader(Indices(store), batch_size=2, num_workers=1, multiprocessing_context=start)
    assert torch.equal(torch.cat(list(loader)), sums)


def test_a_pickled_store_is_a_name(path):
    pickled = pickle.dumps(RegionStore(path))
    assert len(pickled) < 1000
    assert len(pickle.loads(pickled)) == len(COUNTS)


NAN = np.full((2, DIM), np.nan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": NAN}, "'bad': features are NaN"),
        ({"features": np.full((2, DIM), 1e39)}, "infinite as float32"),
        ({"features": np.ones((2, DIM + 1))}, r"'bad': features have shape \(2, 7\), wanted \(region, 6\)"),
        ({"features": np.ones(DIM)}, "'bad': features have shape"),
        ({"features": np.ones((0, DIM))}, "'bad' has 0 regions, wanted 1 to 5"),
        ({"features": np.ones((6, DIM))}, "'bad' has 6 regions, wanted 1 to 5"),
        ({"image_id": "image 0"}, "'image 0' is in the store already"),
        ({"image_id": 17}, "17 is not a non-empty string"),
        ({"boxes": np.ones((3, 4))}, r"'bad': boxes has shape \(3, 4\), wanted \(2, 4\)"),
        ({"boxes": NAN[:, :4]}, "'bad': boxes is NaN"),
        ({"boxes": None}, "Give the same for every image"),
        ({"image_size": (40, 30, 3)}, "'bad': image_size has shape"),
        ({"image_size": (0, 30)}, r"'bad': image_size is \[0, 30\]; wanted whole numbers from 1 to 2147483647"),
        ({"image_size": (2**33 + 10, 30)}, r"image_size is \[8589934602, 30\]; wanted whole numbers from 1"),
        ({"image_size": (10.9, 30)}, r"image_size is \[10\.9, 30\.0\]; wanted whole numbers"),
        ({"class_id": [2**40 + 3, 1]}, r"class_id is \[1099511627779, 1\]; wanted whole numbers from -2147483648"),
        ({"class_id": [1.7, 1]}, r"class_id is \[1\.7, 1\.0\]; wanted whole numbers"),
        ({"confidence": [1e300, 1]}, "confidence is too large for float32"),
        ({"boxes": np.full((2, 4), 1e300)}, "boxes is too large for float32"),
        ({"features": [["a"] * DIM] * 2}, "features is <U1, wanted numbers"),
        ({"features": [[1], [1, 2]]}, "'bad': features is no array of numbers"),
    ],
)
def test_bad_images_are_refused_and_the_good_ones_kept(tmp_path, images, arguments, message):
    good = {"image_id": "bad", "features": np.ones((2, DIM)), "boxes": boxes_of(2), "image_size": (40, 30)}
    with RegionStoreWriter(tmp_path / "store.h5", dim=DIM, max_regions=5, extractor="a test") as writer:
        writer.write("image 0", images[0], boxes_of(3), (40, 30))
        with pytest.raises(ValueError, match=message):
            writer.write(**{**good, **arguments})
    assert RegionStore(tmp_path / "store.h5").image_id == ["image 0"]


def test_tensors_of_any_type_are_written(tmp_path):
    values = [[1.5, -2.0], [0.25, 3.0]]  # exact in every type
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        with RegionStoreWriter(tmp_path / "store.h5", dim=2, extractor="a test", overwrite=True) as writer:
            boxes = torch.tensor([[0, 0, 1, 1]] * 2, dtype=dtype)
            writer.write("7", torch.tensor(values, dtype=dtype, requires_grad=True), boxes, (4, 4))
        store = RegionStore(tmp_path / "store.h5")
        assert store[0].tolist() == values
        assert store.boxes(0).tolist() == boxes.tolist()


def test_writer_refuses_bad_arguments(tmp_path):
    for options in ({"dim": 0}, {"dtype": "float64"}, {"box_convention": "xywh"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}"):
            RegionStoreWriter(tmp_path / "store.h5", **{"dim": DIM, "extractor": "a test", **options})
    with pytest.raises(ValueError, match="no image was written"):
        write(tmp_path / "store.h5", [])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_store_is_replaced_only_on_demand(tmp_path, images):
    write(tmp_path / "store.h5", images)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(tmp_path / "store.h5", images[:1])
    assert len(RegionStore(tmp_path / "store.h5")) == len(images)
    write(tmp_path / "store.h5", images[:1], overwrite=True)
    assert len(RegionStore(tmp_path / "store.h5")) == 1


def test_an_interrupted_writer_leaves_nothing(tmp_path, images):
    def write_half():
        with RegionStoreWriter(tmp_path / "store.h5", dim=DIM, extractor="a test") as writer:
            writer.write("image 0", images[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_missing_things_are_named(tmp_path, images):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.h5"):
        RegionStore(tmp_path / "nowhere.h5")
    with RegionStoreWriter(tmp_path / "store.h5", dim=DIM, extractor="a test") as writer:
        writer.write("image 0", images[0])
    store = RegionStore(tmp_path / "store.h5")
    with pytest.raises(KeyError, match="holds no boxes"):
        store.boxes(0)
    with pytest.raises(KeyError, match="holds no image_size"):
        store.image_size(0)
    with pytest.raises(KeyError, match="holds no class_id"):
        store.class_id(0)
    with pytest.raises(KeyError, match="holds no confidence"):
        store.confidence(0)
    with pytest.raises(KeyError, match="'cat' is not in"):
        store.index("cat")
    with pytest.raises(IndexError, match="holds 1 images"):
        store.batch([0, 1])
    with pytest.raises(IndexError, match="holds 1 images"):
        store[-1]
    with pytest.raises(ValueError, match="at least one index"):
        store.batch([])


def test_damaged_files_are_refused(path, tmp_path):
    cut = tmp_path / "cut.h5"
    cut.write_bytes(path.read_bytes()[:-500])
    text = tmp_path / "text.h5"
    text.write_text("not HDF5")
    for damaged in (cut, text):
        with pytest.raises(ValueError, match=f"{damaged.name} is not an HDF5 file, or was cut off"):
            RegionStore(damaged)


def change_format(file):
    file.attrs["format"] = "something else"


def change_version(file):
    file.attrs["format_version"] = 99


def drop_counts(file):
    del file["num_regions"]


def drop_a_count(file):
    counts = file["num_regions"][:-1]
    del file["num_regions"]
    file["num_regions"] = counts


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_format, "not a region store"),
        (change_version, "version 99"),
        (drop_counts, "lacks .*num_regions"),
        (drop_a_count, "different lengths"),
    ],
)
def test_other_files_are_refused(path, tmp_path, damage, message):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        damage(file)
    with pytest.raises(ValueError, match=f"copy.h5.*{message}"):
        RegionStore(copy)


def test_validate_finds_what_a_foreign_writer_did_wrong(path, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        features = file["features"][:]
        features[0, 1, 2] = np.nan
        features[1, 0] = 0
        del file["features"]
        file.create_dataset("features", data=features, chunks=(2, 2, 2))
        file["image_id"][3] = "image 2"
        file["boxes"][4, 0] = [30, 2, 44, 5]
    problems = "\n".join(RegionStore(copy).validate())
    assert "1 image ('image 2') more than once" in problems
    assert "chunks of (2, 2, 2)" in problems
    assert "1 image ('image 0') with NaN" in problems
    assert "1 image ('image 1') with a region whose features are all zero" in problems
    assert "1 image ('image 4') with a box that is empty or reaches outside" in problems


def test_an_image_without_pixels_has_no_boxes(path, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        del file["crc32"]
        file["image_size"][1] = 0
        file["boxes"][1] = 0
    (problem,) = RegionStore(copy).validate()
    assert problem == "1 image ('image 1') with a box that is empty or reaches outside the image"


def test_names_that_come_twice_name_nothing(path, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["image_id"][3] = "image 2"
    with pytest.raises(ValueError, match=r"copy\.h5 has 'image 2' more than once"):
        RegionStore(copy).index("image 1")


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("convention", ["xyxy pixels", "xyxy relative"])
def test_what_a_foreign_file_has_after_the_last_region_never_comes_out(tmp_path, convention, compression):
    path = tmp_path / "foreign.h5"
    with RegionStoreWriter(path, dim=2, max_regions=3, extractor="a test", box_convention=convention) as writer:
        for name, count in (("7", 3), ("8", 1)):
            writer.write(name, np.ones((count, 2)), np.ones((count, 4)), (1, 1))
    with h5py.File(path, "r+") as file:
        features = file["features"][:]
        features[1, 1:] = np.nan
        file["boxes"][1, 1:] = np.inf
        del file["features"], file["crc32"]
        file.create_dataset("features", data=features, chunks=(1, 3, 2), compression=compression)
    batch = RegionStore(path).batch([0, 1, 1])
    for values in (batch.regions, batch.boxes):
        assert values[~batch.region_mask].tolist() == torch.zeros(4, values.shape[-1]).tolist()
        assert values[batch.region_mask].eq(1).all()


@pytest.mark.parametrize("convention", ["xyxy pixels", "xyxy relative"])
@pytest.mark.parametrize("layout", ["as written", "chunked", "joined"])
def test_batches_carry_boxes_as_shares_of_the_image(tmp_path, convention, layout):
    path = tmp_path / "boxes.h5"
    shares = np.array([[0.25, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 0.75, 1.0]], np.float32)
    with RegionStoreWriter(path, dim=2, extractor="a test", box_convention=convention) as writer:
        for count, size in ((1, (40, 20)), (3, (80, 60)), (2, (8, 16))):
            scale = 1 if "relative" in convention else np.tile(size, 2)
            writer.write(str(count), np.ones((count, 2)), shares[:count] * scale, size)
    if layout == "chunked":
        with h5py.File(path, "a") as file:
            boxes = file["boxes"][:]
            del file["boxes"]
            file.create_dataset("boxes", data=boxes, chunks=(1, 36, 4), compression="gzip")
    if layout == "joined":
        join_stores([path], tmp_path / "joined.h5")
        path = tmp_path / "joined.h5"
    batch = RegionStore(path).batch([2, 0, 1, 2])
    for row, count in enumerate((2, 1, 3, 2)):
        np.testing.assert_allclose(batch.boxes[row, :count], shares[:count], atol=1e-6)
        assert not batch.boxes[row, count:].any()


def test_boxes_that_cannot_be_related_to_the_image_are_none(tmp_path):
    for name, options in (("bare", {}), ("of unknown images", {"boxes": [[0, 0, 9, 9]]})):
        with RegionStoreWriter(tmp_path / f"{name}.h5", dim=2, extractor="a test") as writer:
            writer.write("7", [[1, 0]], **options)
        assert RegionStore(tmp_path / f"{name}.h5").batch([0]).boxes is None


@pytest.mark.parametrize("names", [["über", "狗", "café"], ["café", b"caf\xe9".decode("utf-8", "surrogateescape")]])
def test_ids_of_any_script_come_back(tmp_path, names):
    """They are those of captions, whatever other names a file has."""
    with RegionStoreWriter(tmp_path / "train.h5", dim=2, extractor="by hand") as writer:
        for name in names:
            writer.write(name, [[1, 0]])
    store = RegionStore(tmp_path / "train.h5")
    store.validate()
    assert store.image_id == names


def test_ids_of_any_script_that_are_said_to_be_ascii_come_back(tmp_path):
    """As stores were written before, where every letter beyond ASCII came back as the bytes that it is made of."""
    with RegionStoreWriter(tmp_path / "train.h5", dim=2, extractor="by hand") as writer:
        writer.write("über", [[1, 0]])
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        del file["image_id"]
        file["image_id"] = ["über".encode()]
    store = RegionStore(tmp_path / "train.h5")
    store.validate()
    assert store.image_id == ["über"]
