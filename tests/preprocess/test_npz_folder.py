"""One file an image: arrays come out of the store bit for bit in every layout, damaged files are told by name."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

from preprocess.npz_folder import Config, main
from xmodal.data import RegionStore

DIM = 16


def arrays(seed, count=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, DIM)).astype("f4"), rng.uniform(0, 99, (count, 4)).astype("f4")


def write_bottom_up_pytorch(path, features, boxes):
    info = {"objects": np.arange(5)}  # an object array, pickled: it is never read
    np.savez(f"{path}.npz", x=features, bbox=boxes, num_bbox=len(boxes), image_h=480, image_w=640, info=info)


def write_mcan(path, features, boxes):
    np.savez_compressed(f"{path}.jpg.npz", x=features.T, bbox=boxes, num_bbox=len(boxes), image_h=480, image_w=640)


def write_renamed(path, features, boxes):
    np.savez(f"{path}.npz", features=features, boxes=boxes, image_height=480, image_width=640)


def write_pythia(path, features, boxes):
    np.save(f"{path}.npy", features)
    info = {"bbox": boxes, "num_boxes": len(boxes), "image_width": np.int64(640), "image_height": 480, "objects": [1]}
    np.save(f"{path}_info.npy", np.array(info))


def convert(folder, **options):
    main(Config(input=folder, output=folder / "out.h5", dim=DIM, **options))
    return RegionStore(folder / "out.h5")


@pytest.mark.parametrize("write", [write_bottom_up_pytorch, write_mcan, write_renamed, write_pythia])
def test_round_trip_is_exact(tmp_path, write):
    (tmp_path / "val").mkdir()
    images = {"12": arrays(0), "val/7": arrays(1)}
    for name, (features, boxes) in images.items():
        write(tmp_path / name, features, boxes)
    store = convert(tmp_path)
    assert store.image_id == ["12", "7"]
    for index, (features, boxes) in enumerate(images.values()):
        assert store[index].numpy().tobytes() == features.tobytes()
        assert store.boxes(index).numpy().tobytes() == boxes.tobytes()
        assert store.image_size(index) == (640, 480)


def test_arrays_alone_will_do(tmp_path):
    np.save(tmp_path / "a.npy", arrays(0)[0])
    store = convert(tmp_path)
    assert store[0].numpy().tobytes() == arrays(0)[0].tobytes()
    with pytest.raises(KeyError, match="holds no boxes"):
        store.boxes(0)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def damage(path, kind):
    features, boxes = arrays(3)
    write_bottom_up_pytorch(path, features, boxes)
    file = path.with_name(f"{path.name}.npz")
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-50])
    elif kind == "text":
        file.write_text("not an archive")
    elif kind == "no features":
        np.savez(file, bbox=boxes)
    elif kind == "counts":
        np.savez(file, x=features, bbox=boxes[:4])
    elif kind == "number":
        np.savez(file, x=features, bbox=boxes, num_bbox=9)
    elif kind == "width":
        np.savez(file, x=features[:, :8], bbox=boxes)
    elif kind == "pickle":
        file.unlink()
        write_pythia(path, features, boxes)
        np.save(f"{path}_info.npy", np.array({"bbox": Harmful()}))
    elif kind == "text called npy":
        file.unlink()
        path.with_name(f"{path.name}.npy").write_text("not an array")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cut", r"b\.npz\tnot a whole \.npz file"),
        ("text", r"b\.npz\tnot a whole \.npz file"),
        ("no features", r"b\.npz\tno array called x or features"),
        ("counts", r"b\.npz\tthe numbers of regions differ: \{'boxes': 4, 'features': 5\}"),
        ("number", r"the numbers of regions differ: \{'count': 9, 'boxes': 5, 'features': 5\}"),
        ("width", r"features have shape \(5, 8\), wanted \(region, 16\)"),
        ("pickle", r"b\.npy\tnot a whole \.npy file of numbers \(it wants to call posix\.mkdir"),
        ("text called npy", r"b\.npy\tnot a whole \.npy file of numbers"),
    ],
)
def test_damaged_files_are_listed_and_good_ones_kept(tmp_path, monkeypatch, kind, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in "ac":
        write_bottom_up_pytorch(tmp_path / "data" / name, *arrays(1))
    damage(tmp_path / "data" / "b", kind)
    with pytest.raises(SystemExit, match=r"out\.h5: 2 images; 1 left out"):
        convert(tmp_path / "data")
    assert RegionStore(tmp_path / "data" / "out.h5").image_id == ["a", "c"]
    assert re.search(reason, (tmp_path / "data" / "out.h5.skipped.txt").read_text())
    assert not (tmp_path / "harmed").exists()
    assert len(convert(tmp_path / "data", skip_bad=True, overwrite=True)) == 2


def test_a_folder_without_arrays_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no \.npz or \.npy file"):
        convert(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder at"):
        main(Config(input=tmp_path / "none", output=tmp_path / "out.h5"))


def good(seed):
    features, boxes = arrays(seed)
    return {"x": features, "bbox": boxes, "image_w": 640, "image_h": 480}


BAD_FIRST = {
    "NaN of another dim": lambda: {**good(0), "x": np.full((5, 4), np.nan, "f4")},
    "NaN without boxes": lambda: {"x": np.full((5, DIM), np.nan, "f4")},
    "boxes that are infinite": lambda: {**good(0), "bbox": np.full((5, 4), np.inf, "f4"), "x": np.ones((5, 4), "f4")},
    "relative boxes and a size that is none": lambda: {
        "x": good(0)["x"],
        "norm_bb": np.zeros((5, 4), "f4"),
        "image_w": 2**33,
        "image_h": 480,
    },
    "too many regions": lambda: {**good(0), "x": np.full((90, DIM), np.inf, "f4"), "bbox": np.ones((90, 4), "f4")},
}


@pytest.mark.parametrize("first", BAD_FIRST)
@pytest.mark.parametrize("a_part", [3, 99])
def test_a_bad_first_image_decides_nothing(tmp_path, monkeypatch, first, a_part):
    monkeypatch.setattr("preprocess.precomputed.RECORDS_A_PART", a_part)
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "0.npz", **BAD_FIRST[first]())
    for number in range(1, 8):
        np.savez(folder / f"{number}.npz", **good(number))
    main(Config(input=folder, output=tmp_path / "out.h5", skip_bad=True))
    store = RegionStore(tmp_path / "out.h5")
    assert store.image_id == [str(number) for number in range(1, 8)]
    assert (store.dim, store.max_regions, store.attributes["box_convention"]) == (DIM, 36, "xyxy pixels")
    assert all(store[place].numpy().tobytes() == good(place + 1)["x"].tobytes() for place in range(7))
    assert [line.split("\t")[0] for line in (tmp_path / "out.h5.skipped.txt").read_text().splitlines()] == [
        str(folder / "0.npz")
    ]


def test_only_a_dict_beside_an_array_is_no_image(tmp_path):
    write_pythia(tmp_path / "7", *arrays(0))
    np.save(tmp_path / "tourist_info.npy", arrays(1)[0])
    write_bottom_up_pytorch(tmp_path / "8_info", *arrays(2))
    np.savez(tmp_path / "8.npz", x=arrays(3)[0], bbox=arrays(3)[1], image_h=480, image_w=640)
    with pytest.raises(SystemExit, match="3 images; 1 left out"):  # an array without boxes, unlike the others
        convert(tmp_path)
    assert RegionStore(tmp_path / "out.h5").image_id == ["7", "8", "8_info"]
    assert "tourist_info.npy" in (tmp_path / "out.h5.skipped.txt").read_text()
