"""Labelled images from an index, a folder or precomputed features: same labels, same pixels whoever reads them."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from xmodal.data.images import read_image
from xmodal.data.labelled import (
    LabelledImage,
    LabelledImages,
    check_class_disjoint,
    image_transform,
    list_folder,
    load_index,
    load_labelled,
    save_features,
    save_index,
)
from xmodal.data.pairs import whole_batch

CENTER = image_transform(train=False, resize=20, crop=16)
RANDOM = image_transform(train=True, resize=20, crop=16)


@pytest.fixture
def folder(tmp_path):
    """Two images of ants, three of bees, one of a cow, of different sizes."""
    generator = np.random.default_rng(0)
    for name, count in (("bee", 3), ("ant", 2), ("cow", 1)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 255, (24 + number, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def write_index(folder, path):
    split_of = {"ant": "train", "bee": "query", "cow": "gallery"}
    files = sorted(folder.rglob("*.png"), reverse=True)
    save_index(path, [LabelledImage(file, file.parent.name, split_of[file.parent.name]) for file in files])


def test_a_folder_is_read_by_class(folder):
    images = load_labelled(folder, transform=CENTER)
    assert images.class_names == ["ant", "bee", "cow"]
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 2]
    batch = images.__getitems__([5, 0])
    assert batch.images.shape == (2, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.tolist() == [2, 0]
    assert images.query is None
    assert torch.equal(images[5].images[0], batch.images[0])


def test_an_index_gives_splits_with_labels_of_their_own(folder, tmp_path):
    write_index(folder, tmp_path / "index.jsonl")
    train = load_labelled(tmp_path / "index.jsonl", "train", transform=CENTER)
    assert (train.class_names, train.labels.tolist()) == (["ant"], [0, 0])
    test = load_labelled(tmp_path / "index.jsonl", ["query", "gallery"], transform=CENTER)
    assert test.labels.tolist() == [1, 0, 0, 0]
    assert test.query is not None
    assert test.query.tolist() == [False, True, True, True]
    check_class_disjoint(train, test)


def test_paths_in_an_index_move_with_it(folder, tmp_path):
    write_index(folder, tmp_path / "index.jsonl")
    elsewhere = tmp_path / "elsewhere"
    write_index(folder, elsewhere / "index.jsonl")
    assert '"path": "images/cow/0.png"' in (tmp_path / "index.jsonl").read_text()
    assert f'"path": "{folder}/cow/0.png"' in (elsewhere / "index.jsonl").read_text()
    assert [image.path for image in load_index(tmp_path / "index.jsonl")] == [
        image.path for image in load_index(elsewhere / "index.jsonl")
    ]


def test_leaked_classes_are_named(folder, tmp_path):
    write_index(folder, tmp_path / "index.jsonl")
    everything = load_labelled(folder, transform=CENTER)
    with pytest.raises(ValueError, match=r"1 classes are in the training images .*: bee\."):
        check_class_disjoint(everything, load_labelled(tmp_path / "index.jsonl", "query", transform=CENTER))


def test_features_come_back_with_their_classes(folder, tmp_path):
    images = load_labelled(folder, transform=CENTER)
    features = torch.randn(6, 4)
    save_features(tmp_path / "features.h5", features, images, {"backbone": "none"})
    loaded = load_labelled(tmp_path / "features.h5", "all")
    assert loaded.class_names == images.class_names
    assert loaded.image_id == images.image_id
    assert loaded.dim == 4
    batch = loaded.__getitems__([4, 1])
    torch.testing.assert_close(batch.images, features[[4, 1]])
    assert batch.labels.tolist() == [1, 0]


def test_features_of_others_need_no_names(tmp_path):
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["features"] = np.arange(6, dtype=np.float16).reshape(3, 2)
        file["label"] = [12, 3, 12]
        file.create_dataset("image_id", data=["a", "b", "c"], dtype=h5py.string_dtype())
    loaded = load_labelled(tmp_path / "features.h5")
    assert loaded.labels.tolist() == [1, 0, 1]
    assert loaded[1].images.tolist() == [[2.0, 3.0]]
    assert loaded[1].images.dtype == torch.float32


@pytest.mark.parametrize("workers", [0, 2])
def test_random_crops_depend_on_seed_and_batch_alone(folder, workers):
    batches = [[0, 3], [5, 1], [2, 4]]

    def pixels(seed, batches, workers=0):
        images = load_labelled(folder, transform=RANDOM, seed=seed)
        loader = DataLoader(images, batch_sampler=batches, collate_fn=whole_batch, num_workers=workers)
        return [batch.images for batch in loader]

    torch.manual_seed(1)
    whole = pixels(0, batches)
    torch.manual_seed(2)
    assert all(map(torch.equal, whole[1:], pixels(0, batches[1:], workers)))
    assert not all(map(torch.equal, whole, pixels(1, batches)))


def test_an_image_that_comes_twice_is_cropped_twice(folder):
    images = load_labelled(folder, transform=RANDOM, seed=3).__getitems__([0] * 8).images
    assert len(images.unique(dim=0)) > 1


def test_reading_images_leaves_the_global_generator_alone(folder):
    images = load_labelled(folder, transform=RANDOM)
    before = torch.random.get_rng_state()
    images[0]
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_published_preprocessing(tmp_path):
    """The shorter side becomes 256; of it 227 x 227 remain: the center, or anywhere and maybe mirrored."""
    ramp = np.tile(np.arange(256, dtype=np.uint8), (512, 1))
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    center = image_transform(train=False, resize=256, crop=224)(image)
    assert center[0, 0].tolist() == list(range(16, 240))
    random = image_transform(train=True, resize=256, crop=227)
    rows = [random(image)[0, 0].int() for _ in range(20)]
    assert {row.shape for row in rows} == {(227,)}
    assert {int(row[1] - row[0]) for row in rows} == {1, -1}
    assert len({int(row.min()) for row in rows}) > 5
    square = image_transform(train=False, resize=64, crop=64, square=True)(image)
    assert square.shape == (3, 64, 64)
    with pytest.raises(ValueError, match="crop is 300 and resize 256"):
        image_transform(train=True, crop=300)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size", [(3, 50), (50, 3), (4, 33), (1, 40), (7, 120)])
def test_narrow_images_are_cut_before_they_are_resized(monkeypatch, size, train):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    transform = image_transform(train=train, resize=20, crop=16)
    for seed in range(5):
        crops = []
        for narrow in (8, 10**9):
            monkeypatch.setattr("xmodal.data.labelled.images.NARROW", narrow)
            torch.manual_seed(seed)
            crops.append(transform(Image.fromarray(pixels)).int())
        assert (crops[0] - crops[1]).abs().max() <= 1, "rounding, for the box of the crop is no whole pixels"


@pytest.mark.parametrize(("short", "long"), [(55, 500), (49, 444), (95, 900)])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("upright", [True, False])
def test_the_crop_of_a_narrow_image_is_where_torchvision_has_it(short, long, train, upright):
    size = (long, short, 3) if upright else (short, long, 3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8))
    for resize in (224, 225, 256):
        cut = v2.RandomCrop(200) if train else v2.CenterCrop(200)
        mirror = [v2.RandomHorizontalFlip()] if train else []
        oracle = v2.Compose([v2.Resize(resize), cut, *mirror, v2.PILToTensor()])
        ours = image_transform(train=train, resize=resize, crop=200)
        for seed in range(3):
            torch.manual_seed(seed)
            wanted = oracle(image).int()
            torch.manual_seed(seed)
            assert (ours(image).int() - wanted).abs().max() <= 1, (resize, seed)


def test_a_line_of_pixels_never_becomes_a_huge_picture(monkeypatch):
    resized = []
    usual = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *more: resized.append(size) or usual(self, size, *more)
    )
    for size in ((1, 3000), (3000, 1), (100_000, 2)):
        assert image_transform(train=False)(Image.new("RGB", size)).shape == (3, 224, 224)
    assert set(resized) == {(224, 224)}


def test_images_are_read_upright_in_color_and_on_white(tmp_path):
    image = Image.new("L", (10, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (4, 10)
    assert read_image(tmp_path / "turned.jpg").mode == "RGB"
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_an_image_that_cannot_be_read_is_named(folder):
    images = load_labelled(folder, transform=CENTER)
    path = folder / "ant" / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot read .*ant/0\.png"):
        images[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no image at .*ant/0\.png"):
        images[0]


def test_what_is_no_data_set_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no labelled images at"):
        load_labelled(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="need a transform"):
        load_labelled(folder)
    with pytest.raises(ValueError, match=r"no image of split 'test'; its splits are \{'all': 6\}"):
        load_labelled(folder, "test", transform=CENTER)
    with pytest.raises(ValueError, match="has no folders"):
        load_labelled(folder / "ant", transform=CENTER)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no image"):
        load_labelled(folder, transform=CENTER)
    index = tmp_path / "index.jsonl"
    index.touch()
    with pytest.raises(ValueError, match="is empty"):
        load_labelled(index, transform=CENTER)
    for line in ('{"path": "a.png", "class": 3, "split": "train"}', '{"path": "a.png"}', "[1]", "3", "{"):
        index.write_text(f'{{"path": "a.png", "class": "a", "split": "train"}}\n{line}\n')
        with pytest.raises(ValueError, match=r"index\.jsonl, line 2: wanted a JSON object with the strings path"):
            load_labelled(index, transform=CENTER)


def test_damaged_features_are_refused(folder, tmp_path):
    path = tmp_path / "features.h5"
    images = load_labelled(folder, transform=CENTER)
    features = torch.zeros(6, 4)

    def damage(change, message):
        save_features(path, features, images, {})
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(ValueError, match=message):
            load_labelled(path)

    def not_finite(file):
        file["features"][2, 1] = np.nan

    def out_of_range(file):
        file["label"][3] = 7

    def shorter(file):
        del file["image_id"]
        file.create_dataset("image_id", data=["a"], dtype=h5py.string_dtype())

    damage(not_finite, r"features of row 2 \(.*bee/0\.png\) are not finite")
    damage(out_of_range, "labels are 0 to 7; wanted 0 to 2")
    damage(shorter, "features has 6 rows and image_id 1")
    damage(lambda file: file.pop("label"), r"lacks the datasets \['label'\]")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not an HDF5 file, or is cut off"):
        load_labelled(path)


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (np.array([2.0, 0.0, 1.0]), ["000000", "000001", "000002"]),
        (np.array([2, 0, 1], np.uint8), ["000000", "000001", "000002"]),
        (np.array([b"wren", b"gull", b"owl"]), ["gull", "owl", "wren"]),
        (np.array([2, 0, 1], ">i4"), ["000000", "000001", "000002"]),
    ],
)
def test_features_of_others_keep_ids_and_labels_as_they_like(tmp_path, label, classes):
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["features"], file["label"], file["image_id"] = np.eye(3, dtype=np.float16), label, [10, 7, 12]
    images = load_labelled(tmp_path / "mine.h5")
    assert images.image_id == ["10", "7", "12"]
    assert images.class_names == classes
    assert images.labels.tolist() == [2, 0, 1]
    assert images[1].images.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    "ids", [np.array([2**63 + 5, 2**64 - 1, 7], np.uint64), np.array([1e22, 2.0, 7.0]), np.array([-5, 2**63 - 1, 0])]
)
def test_large_numbers_of_images_are_told_apart(tmp_path, ids):
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["features"], file["label"], file["image_id"] = np.eye(3), [0, 1, 1], ids
    assert load_labelled(tmp_path / "mine.h5").image_id == [str(int(number)) for number in ids]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "u1", "i8", "u4"])
def test_features_of_others_may_have_any_type(tmp_path, dtype):
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["features"], file["label"], file["image_id"] = np.array([[3], [1]], dtype), [0, 1], [10, 7]
    assert load_labelled(tmp_path / "mine.h5").__getitems__([1, 0]).images.tolist() == [[1.0], [3.0]]


def test_images_beside_the_folders_of_classes_are_counted(folder, caplog):
    for name in ("a.png", "b.JPG", ".c.png", "notes.txt"):
        (folder / name).touch()
    listed = list_folder(folder)
    assert all(image.path.parent.parent == folder for image in listed)
    assert f"{folder}: ignored 2 files: 2 beside the folders of classes" in caplog.text


def test_features_of_others_that_cannot_be_read_are_refused_by_name(tmp_path):
    good = {"features": np.eye(3), "label": [0, 1, 1], "image_id": [10, 7, 12]}
    for change, message in (
        ({"label": [0.5, 1, 1]}, r"mine\.h5: label has 0\.5; wanted texts or whole numbers"),
        ({"label": [np.nan, 1, 1]}, "label has nan"),
        ({"label": [0, np.inf, 1]}, "label has inf; wanted texts or whole numbers"),
        ({"label": [0, 3, 1], "class_name": ["wren", "gull"]}, "labels are 0 to 3; wanted 0 to 1"),
        ({"features": np.full((3, 2), 1e300)}, r"the features of row 0 \(10\) are not finite"),
        ({"label": [[0], [1], [1]]}, "label is no column but .*wanted one text or number an image"),
        ({"label": [True, False, True]}, "label is bool; wanted texts or whole numbers"),
        ({"label": [0, -1, 1]}, "labels are -1 to 1; wanted 0 or more"),
        ({"image_id": [0.5, 1, 1]}, "image_id has 0.5"),
        (
            {"features": np.zeros((3, 2, 2))},
            r"features are float64 of shape \(3, 2, 2\); wanted numbers, \(image, dim\)",
        ),
        ({"features": [b"a", b"b", b"c"]}, "features are .*wanted numbers"),
        ({"split": [1, 2]}, "features has 3 rows and split 2"),
    ):
        with h5py.File(tmp_path / "mine.h5", "w") as file:
            for name, values in {**good, **change}.items():
                file[name] = values
        with pytest.raises(ValueError, match=message):
            load_labelled(tmp_path / "mine.h5")
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["label"], file["image_id"] = good["label"], good["image_id"]
        file.create_group("features")
    with pytest.raises(ValueError, match="features are a group; wanted numbers"):
        load_labelled(tmp_path / "mine.h5")


def test_names_of_files_need_not_be_utf_8(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    (tmp_path / "gull").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "gull" / f"{name}.png")
    images = list_folder(tmp_path)
    save_index(tmp_path / "index.jsonl", images)
    assert load_index(tmp_path / "index.jsonl") == images
    read = load_labelled(tmp_path / "index.jsonl", transform=CENTER)
    save_features(tmp_path / "features.h5", read[0].images.flatten(1).float(), read, {})
    assert load_labelled(tmp_path / "features.h5").image_id == [str(images[0].path)]


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "validation", "dev"), ("test",)])
def test_folders_of_splits_are_no_classes(tmp_path, names):
    for name in names:
        (tmp_path / name / "gull").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has one folder a split .*, not one a class\. Give one of them, such as .*t"):
        list_folder(tmp_path)
    (tmp_path / "wren").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "wren" / "1.png")
    with pytest.raises(ValueError, match="has no image"):
        list_folder(tmp_path)


def test_what_is_no_photograph_is_no_class_and_no_image(tmp_path):
    for name in (
        "gull/1.JPG",
        "gull/._1.JPG",
        "gull/more/2.tif",
        "__MACOSX/gull/1.JPG",
        ".cache/1.jpg",
        "gull/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gull" / "nowhere.jpg").symlink_to("gone.jpg")
    assert [image.path.name for image in list_folder(tmp_path)] == ["1.JPG", "2.tif"]
    (tmp_path / "owl").mkdir()
    (tmp_path / "owl" / "a.txt").touch()
    with pytest.raises(
        ValueError, match=r"owl has no image \(ignored 1 files: 1 \.txt; known: .*\); remove the folder"
    ):
        list_folder(tmp_path)


def test_a_set_of_images_can_be_made_by_hand(folder):
    image = LabelledImage(folder / "ant" / "0.png", "ant", "train")
    assert len(LabelledImages([image], CENTER)) == 1


def test_labels_of_others_may_be_large(tmp_path):
    with h5py.File(tmp_path / "birds.h5", "w") as file:
        file["features"], file["label"], file["image_id"] = np.eye(2), [10**12, 5], ["a", "b"]
    images = load_labelled(tmp_path / "birds.h5")
    assert images.class_names == ["0000000000005", "1000000000000"]
    assert images.labels.tolist() == [1, 0]
