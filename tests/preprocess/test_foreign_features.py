"""Every layout of `preprocess.layouts`: a file is written as its project writes it, and comes back bit for bit.

Each test has the same two images. Padding, headings and damage are tested below, for all readers alike.
"""

from __future__ import annotations

import base64
import json
import pickle

import h5py
import numpy as np
import pytest

from preprocess import scan_npy
from preprocess.features import Config, kind_of, main
from preprocess.layouts import layout_names
from xmodal.data import RegionStore, load_captions

DIM, CLASSES = 16, 7
SIZE = (640, 480)
COUNTS = {"9": 3, "7": 5}


def arrays(name):
    """An image's features, boxes and probabilities of classes."""
    rng = np.random.default_rng(COUNTS[name])
    features = rng.normal(size=(COUNTS[name], DIM)).astype("<f4")
    corners = np.sort(rng.uniform(0, 99, (COUNTS[name], 2, 2)), axis=1)  # the upper left one first
    return features, corners.reshape(-1, 4).astype("<f4"), rng.random((COUNTS[name], CLASSES), dtype="f4")


def text(array):
    return base64.b64encode(array.tobytes()).decode()


def convert(tmp_path, *inputs, **options):
    main(Config(input=inputs, output=tmp_path / "out" / "train.h5", overwrite=True, **options))
    return RegionStore(tmp_path / "out" / "train.h5")


def check(store, *, boxes=True, size=True, classes=False, relative=False):
    """The store holds both images, bit for bit, with what the layout has beside features."""
    assert sorted(store.image_id) == ["7", "9"]
    assert store.attributes["box_convention"] == ("xyxy relative" if relative else "xyxy pixels")
    for name in COUNTS:
        features, its_boxes, probabilities = arrays(name)
        index = store.index(name)
        assert store[index].numpy().tobytes() == features.tobytes()
        if boxes:
            assert store.boxes(index).numpy().tobytes() == its_boxes.tobytes()
        if size:
            assert store.image_size(index) == SIZE
        if classes:
            np.testing.assert_array_equal(store.class_id(index), probabilities.argmax(axis=1))
            np.testing.assert_array_equal(store.confidence(index), probabilities.max(axis=1))
    assert store.validate() == []


def rows(layout):
    """The rows of a TSV file."""
    for name in COUNTS:
        features, boxes, probabilities = arrays(name)
        start, end = [name, "640", "480"], [str(len(boxes)), text(boxes), text(features)]
        turned = [name, "480", "640"]
        ids, sure = probabilities.argmax(axis=1).astype("<i8"), probabilities.max(axis=1)
        objects = [{"rect": b.tolist(), "conf": float(c), "class": "dog", "feature": text(f)}
                   for f, b, c in zip(features, boxes, sure, strict=True)]  # fmt: skip
        yield {
            "bottom-up": [*start, *end],
            "lxmert": [*turned, text(ids), text(sure), text(ids), text(sure), *end],
            "vilbert": [*start, *end, text(probabilities)],
            "vl-bert": [*turned, *end, text(probabilities), text(ids)],
            "bottom-up-classes": [*start, *end, text(ids), text(ids)],
            "vinvl": [name, json.dumps({"num_boxes": len(boxes), "features": text(features)})],
            "vinvl objects": [name, json.dumps({"image_w": 640, "image_h": 480, "objects": objects})],
        }[layout]


def write_tsv(path, layout, heading=None):
    lines = [heading] if heading else []
    path.write_text("\n".join(["\t".join(line) for line in [*lines, *rows(layout)]]) + "\n")
    return path


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("layout", ["bottom-up", "lxmert", "vilbert", "vl-bert", "bottom-up-classes"])
def test_tsv(tmp_path, layout, named):
    path = write_tsv(tmp_path / "features.tsv", layout)
    store = convert(tmp_path, path, layout=layout if named else "auto")
    check(store, classes=layout in ("lxmert", "vilbert", "vl-bert"))


def test_vinvl(tmp_path):
    check(convert(tmp_path, write_tsv(tmp_path / "features.tsv", "vinvl")), boxes=False, size=False)
    store = convert(tmp_path, write_tsv(tmp_path / "predictions.tsv", "vinvl objects"))
    check(store)
    np.testing.assert_array_equal(store.confidence(0), arrays(store.image_id[0])[2].max(axis=1))


HEADINGS = {
    "bottom-up": "image_id image_w image_h num_boxes boxes features",
    "lxmert": "img_id img_h img_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features",
    "vilbert": "\ufeffimage_id image_w image_h num_boxes boxes features cls_prob",
}


@pytest.mark.parametrize("layout", HEADINGS)
def test_a_heading_is_no_damage(tmp_path, layout):
    path = write_tsv(tmp_path / "features.tsv", layout, HEADINGS[layout].split())
    check(convert(tmp_path, path))


def test_a_heading_says_the_order(tmp_path):
    heading = ["features", "num_boxes", "image_id"]
    lines = [[text(arrays(name)[0]), str(COUNTS[name]), f"val2014/{name}.jpg"] for name in COUNTS]
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(line) for line in [heading, *lines]))
    check(convert(tmp_path, tmp_path / "a.tsv"), boxes=False, size=False)


def write_ban(path, *, adaptive, pixels=True):
    images = [arrays(name) for name in COUNTS]
    longest = max(COUNTS.values())
    with h5py.File(path, "w") as file:
        for key, column in (("image_features", 0), ("image_bb", 1)):
            parts = [image[column] for image in images]
            padded = [np.pad(part, ((0, longest - len(part)), (0, 0))) for part in parts]
            file[key] = np.concatenate(parts) if adaptive else np.stack(padded)
        # x1 y1 x2 y2 width height, as shares
        shares = file["image_bb"][()] / 100
        file["spatial_features"] = np.concatenate([shares, shares[..., 2:] - shares[..., :2]], axis=-1)
        if not pixels:
            del file["image_bb"]
        if adaptive:
            ends = np.cumsum([len(image[0]) for image in images])
            file["pos_boxes"] = np.stack([ends - list(COUNTS.values()), ends], axis=1)


@pytest.mark.parametrize("adaptive", [False, True])
def test_ban(tmp_path, adaptive):
    write_ban(tmp_path / "train36.hdf5", adaptive=adaptive)
    with pytest.raises(
        FileNotFoundError, match=r"train36\.hdf5 does not name its images, and there is no .*36_imgid2i"
    ):
        convert(tmp_path, tmp_path / "train36.hdf5")
    ids = {int(name): number for number, name in enumerate(COUNTS)}
    (tmp_path / "train36_imgid2idx.pkl").write_bytes(pickle.dumps(ids, 2))
    check(convert(tmp_path, tmp_path / "train36.hdf5"), size=False)
    (tmp_path / "ids.txt").write_text("9.jpg\n7.jpg\n")
    check(convert(tmp_path, tmp_path / "train36.hdf5", ids=tmp_path / "ids.txt"), size=False)
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    check(convert(tmp_path, tmp_path / "train36.hdf5", ids=tmp_path / "ids.json"), size=False)


def test_ban_with_relative_boxes_alone(tmp_path):
    write_ban(tmp_path / "train36.hdf5", adaptive=True, pixels=False)
    (tmp_path / "train36_imgid2idx.pkl").write_bytes(pickle.dumps({name: n for n, name in enumerate(COUNTS)}))
    store = convert(tmp_path, tmp_path / "train36.hdf5")
    check(store, boxes=False, size=False, relative=True)
    np.testing.assert_array_equal(store.boxes(store.index("9")), arrays("9")[1] / 100)


@pytest.mark.parametrize("kind", ["i8", "S20", "O"])
def test_visdial(tmp_path, kind):
    longest = max(COUNTS.values())
    with h5py.File(tmp_path / "features_faster_rcnn_x101_val.h5", "w") as file:
        names = list(COUNTS) if kind == "O" else np.array(list(COUNTS)).astype(kind)
        file["image_id"] = names
        for key, column in (("features", 0), ("boxes", 1)):
            padded = [np.pad(arrays(n)[column], ((0, longest - COUNTS[n]), (0, 0))) for n in COUNTS]
            file[key] = np.stack(padded)
        file["num_boxes"], file["image_w"], file["image_h"] = list(COUNTS.values()), [640, 640], [480, 480]
    check(convert(tmp_path, tmp_path / "features_faster_rcnn_x101_val.h5"))


@pytest.mark.parametrize("counted", [False, True])
def test_nocaps(tmp_path, counted):
    """Rows of a length of their own are flat in HDF5; the number of boxes need not be there."""
    with h5py.File(tmp_path / "nocaps_val_vg_detector_features_adaptive.h5", "w") as file:
        file["image_id"] = [int(name) for name in COUNTS]
        for key, column in (("features", 0), ("boxes", 1)):
            file.create_dataset(key, (len(COUNTS),), h5py.vlen_dtype(np.float32))
            for row, name in enumerate(COUNTS):
                file[key][row] = arrays(name)[column].reshape(-1)
        file["width"], file["height"] = np.float32([640, 640]), np.float32([480, 480])
        if counted:
            file["num_boxes"] = list(COUNTS.values())
    check(convert(tmp_path, tmp_path / "nocaps_val_vg_detector_features_adaptive.h5"))


def test_m2(tmp_path):
    with h5py.File(tmp_path / "coco_detections.hdf5", "w") as file:
        for name in COUNTS:
            for key, value in zip(("features", "boxes", "cls_prob"), arrays(name), strict=True):
                file[f"{name}_{key}"] = value
    check(convert(tmp_path, tmp_path / "coco_detections.hdf5"), size=False, classes=True)


@pytest.mark.parametrize("attributes", [False, True])
def test_groups(tmp_path, attributes):
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for name in COUNTS:
            group = file.create_group(f"{name}.jpg")
            group["features"], group["bbox"] = arrays(name)[:2]
            for key, value in (("image_w", 640), ("image_h", 480), ("num_boxes", COUNTS[name])):
                if attributes:
                    group.attrs[key] = value
                else:
                    group[key] = value
    check(convert(tmp_path, tmp_path / "features.h5"))


def test_a_pickled_dict(tmp_path):
    for name in COUNTS:
        features, boxes, probabilities = arrays(name)
        values = {"image_id": name, "image_h": np.int64(480), "image_w": 640, "num_boxes": len(boxes), "boxes": boxes,
                  "features": features, "cls_prob": probabilities}  # fmt: skip
        np.save(tmp_path / f"{name}.npy", values)
    check(convert(tmp_path, tmp_path), classes=True)


def test_sister_folders(tmp_path):
    for folder in ("cocobu_att", "cocobu_box", "cocobu_fc"):
        (tmp_path / folder).mkdir()
    for name in COUNTS:
        features, boxes, _ = arrays(name)
        np.savez_compressed(tmp_path / "cocobu_att" / f"{name}.npz", feat=features)
        np.save(tmp_path / "cocobu_box" / f"{name}.npy", boxes)
        np.save(tmp_path / "cocobu_fc" / f"{name}.npy", features.mean(axis=0))
    check(convert(tmp_path, tmp_path / "cocobu_att"), size=False)
    check(convert(tmp_path, tmp_path), size=False)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("dim_first", [False, True])
def test_grids(tmp_path, dim_first, batch):
    """Cells are regions row by row, and their boxes say where."""
    grid = np.random.default_rng(0).normal(size=(2, 3, DIM)).astype("f4")
    saved = np.moveaxis(grid, 2, 0) if dim_first else grid
    np.save(tmp_path / "7.npy", saved[None] if batch else saved)
    np.savez(tmp_path / "9.npz", feat=saved)
    store = convert(tmp_path, tmp_path)
    assert store.image_id == ["7", "9"]
    for index in range(2):
        np.testing.assert_array_equal(store[index], grid.reshape(6, DIM))
        np.testing.assert_allclose(
            store.boxes(index)[[0, 1, 5]], [[0, 0, 1 / 3, 1 / 2], [1 / 3, 0, 2 / 3, 1 / 2], [2 / 3, 1 / 2, 1, 1]]
        )
    assert store.attributes["box_convention"] == "xyxy relative"
    assert store.validate() == []


def test_published_grids_need_no_option(tmp_path):
    for name, shape in (("a", (2048, 7, 7)), ("b", (7, 7, 2048))):
        np.save(tmp_path / f"{name}.npy", np.ones(shape, "f4"))
    store = convert(tmp_path, tmp_path)
    assert (store.dim, store.max_regions, len(store[0]), len(store[1])) == (2048, 49, 49, 49)


def test_a_cube_is_ambiguous(tmp_path):
    np.save(tmp_path / "7.npy", np.ones((4, 4, 4), "f4"))
    with pytest.raises(ValueError, match=r"shape \(4, 4, 4\), wanted \(dim, height, width\) or .* give --dim"):
        convert(tmp_path, tmp_path)


@pytest.mark.parametrize("encoded", [False, True])
def test_lmdb(tmp_path, encoded):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "features.lmdb")) as database, database.begin(write=True) as transaction:
        for name in COUNTS:
            features, boxes, _ = arrays(name)
            coded = {"features": base64.b64encode(features), "boxes": base64.b64encode(boxes)}
            values = coded if encoded else {"features": features, "bbox": boxes}
            sizes = {"image_w": "640" if encoded else 640, "image_h": 480, "num_boxes": len(boxes)}
            transaction.put(f"coco/{name}.npy".removesuffix(".npy").encode(), pickle.dumps({**values, **sizes}))
        transaction.put(b"keys", pickle.dumps([name.encode() for name in COUNTS]))
    check(convert(tmp_path, tmp_path / "features.lmdb"))


def test_every_layout_has_a_test():
    tested = {
        "bottom-up",
        "lxmert",
        "vilbert",
        "vl-bert",
        "bottom-up-classes",
        "vinvl",
        "ban",
        "visdial",
        "m2",
        "groups",
    }
    assert tested | {"files", "lmdb"} == set(layout_names())


# Padding.


def padded(array, longest=8):
    return np.pad(array, ((0, longest - len(array)), (0, 0)))


@pytest.mark.parametrize("pad_boxes", [False, True])
@pytest.mark.parametrize("say_count", [False, True])
def test_padding_leaves_no_trace(tmp_path, capsys, pad_boxes, say_count):
    """A padded and an unpadded folder give the same store; a zero row in the middle stays."""
    stores = []
    for longest in (None, 8):
        folder = tmp_path / str(longest)
        folder.mkdir()
        for name in COUNTS:
            features, boxes, _ = arrays(name)
            features[1] = 0
            count = {"num_bbox": len(boxes)} if say_count else {}
            if longest:
                features, boxes = padded(features), padded(boxes) if pad_boxes else boxes
            np.savez(folder / f"{name}.npz", x=features, bbox=boxes, **count)
        stores.append(convert(folder, folder))
    assert "8 all-zero rows that pad 2 images to the length of others were left out" in capsys.readouterr().out
    for field in ("features", "num_regions", "boxes", "image_id"):
        np.testing.assert_array_equal(*(store._open().file[field][()] for store in stores))
    assert [len(store[0]) for store in stores] == [5, 5]
    assert not stores[0][0][1].any()


def test_padding_in_a_tsv(tmp_path):
    """The regions that num_boxes counts may be padding, too."""
    lines = []
    for name in COUNTS:
        features, boxes, _ = arrays(name)
        lines.append("\t".join([name, "640", "480", "8", text(padded(boxes)), text(padded(features))]))
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    check(convert(tmp_path, tmp_path / "a.tsv"))


def test_an_image_of_zeros_is_named(tmp_path):
    np.save(tmp_path / "7.npy", np.zeros((4, DIM), "f4"))
    np.save(tmp_path / "9.npy", np.ones((4, DIM), "f4"))
    with pytest.raises(SystemExit, match=r"1 left out.*7\.npy: image '7': all 4 regions are zeros"):
        convert(tmp_path, tmp_path)
    assert RegionStore(tmp_path / "out" / "train.h5").image_id == ["9"]


def write_scan(folder, longest, *, zeros=()):
    folder.mkdir()
    images = [padded(arrays(name)[0], longest) * (name not in zeros) for name in ("9", "7", "9", "7")]
    images[1][1] = 0
    np.save(folder / "dev_ims.npy", np.stack(images))
    (folder / "dev_caps.txt").write_text("".join(f"Dog number {n}.\n" for n in range(20)))
    (folder / "dev_ids.txt").write_text("3\n1\n0\n2\n")
    return folder


def test_padding_of_scan_arrays(tmp_path, capsys):
    stores = []
    for longest in (5, 8):
        folder = write_scan(tmp_path / str(longest), longest)
        scan_npy.main(scan_npy.Config(folder, folder / "out"))
        stores.append(RegionStore(folder / "out" / "dev.h5"))
    told = capsys.readouterr().out
    assert "4 all-zero rows that pad 2 images were left out" in told  # the shorter two of the unpadded array
    assert "16 all-zero rows that pad 4 images were left out" in told
    for field in ("features", "num_regions", "image_id"):
        np.testing.assert_array_equal(*(store._open().file[field][()] for store in stores))
    assert stores[1].max_regions == 5
    assert not stores[1][1][1].any()
    folder = write_scan(tmp_path / "zeros", 5, zeros=("9",))
    with pytest.raises(ValueError, match=r"dev_ims\.npy, row 0: all regions of image '3' are zeros"):
        scan_npy.main(scan_npy.Config(folder, folder / "out"))
    assert not (folder / "out" / "dev.h5").exists()


# Ids of SCAN's arrays.


def write_karpathy(path, first=0):
    images = [
        {"imgid": n, "cocoid": 100 + n, "filename": f"COCO_{n}.jpg", "split": "val", "sentences": [
            {"raw": f"Dog number {first + 5 * position}"}]}
        for position, n in enumerate((3, 1, 0, 2))
    ]  # fmt: skip
    path.write_text(json.dumps({"images": images}))


def test_karpathy_translates_scan_ids(tmp_path):
    folder = write_scan(tmp_path / "in", 5)
    write_karpathy(tmp_path / "dataset_coco.json")
    config = scan_npy.Config(folder, tmp_path / "out", karpathy=tmp_path / "dataset_coco.json", overwrite=True)
    scan_npy.main(config)
    assert RegionStore(tmp_path / "out" / "dev.h5").image_id == ["103", "101", "100", "102"]
    captions = load_captions(tmp_path / "out" / "captions.jsonl")
    assert [caption.image_id for caption in captions[::5]] == ["103", "101", "100", "102"]
    write_karpathy(tmp_path / "dataset_coco.json", first=1000)
    with pytest.raises(ValueError, match=r"dev_ids\.txt: only 0 of 4 images have their first caption in the JSON"):
        scan_npy.main(config)
    (folder / "dev_ids.txt").write_text("3\n1\n0\n77\n")
    with pytest.raises(ValueError, match=r"1 of 4 ids are no imgid of the JSON, '77' for one"):
        scan_npy.main(config)
    (folder / "dev_ids.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"--karpathy translates the ids in .*dev_ids\.txt"):
        scan_npy.main(config)
    (tmp_path / "dataset_coco.json").write_text('{"images": [{"filename": "a.jpg", "split": "val"}]}')
    with pytest.raises(ValueError, match=r"is not Karpathy's JSON .*KeyError\('sentences'\)"):
        scan_npy.main(config)


# What is not read.


def test_unknown_files_are_told_with_what_is_known(tmp_path):
    for name, magic in (("trainval.tsv.gz", b"\x1f\x8b\x08"), ("trainval.tsv.zip", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(magic + bytes(20))
        with pytest.raises(ValueError, match=f"{name} is of no known layout: .*; it is packed: unpack it first"):
            kind_of(tmp_path / name)
    (tmp_path / "a.bin").write_bytes(b"who knows\n")
    with pytest.raises(ValueError, match=r"a\.bin is of no known layout: .*TSV bottom-up, lxmert.*HDF5 ban, visdial"):
        convert(tmp_path, tmp_path / "a.bin")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["embeddings"] = np.ones(3)
    with pytest.raises(ValueError, match=r"a\.h5 has the keys \['embeddings'\]; they are of no layout\. Known: ban: "):
        convert(tmp_path, tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["image_features"], file["features"], file["image_id"] = np.ones((1, 2, 3)), np.ones((1, 2, 3)), [7]
    with pytest.raises(ValueError, match=r"its keys fit the layouts ban and visdial: give --layout"):
        convert(tmp_path, tmp_path / "b.h5")
    assert convert(tmp_path, tmp_path / "b.h5", layout="visdial").image_id == ["7"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no \.npz or \.npy file and no data\.mdb"):
        convert(tmp_path, tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no features at"):
        convert(tmp_path, tmp_path / "absent")
    with pytest.raises(ValueError, match="layout 'vlbert' is unknown; known: auto, bottom-up"):
        convert(tmp_path, tmp_path / "a.h5", layout="vlbert")
    with pytest.raises(ValueError, match=r"train\.h5 is a region store already"):
        main(Config(input=(tmp_path / "out" / "train.h5",), output=tmp_path / "again.h5"))


def test_damage_is_listed_and_good_images_are_kept(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in COUNTS:
            file[f"{name}_features"], file[f"{name}_boxes"] = arrays(name)[:2]
        file["3_features"], file["3_boxes"] = np.ones((4, DIM)), np.ones((3, 4))
        file["4_features"] = h5py.ExternalLink("elsewhere.h5", "/features")
        file["5_features"] = "text"
        file.create_dataset("6_features", (1 << 20, 1 << 20), "f4", chunks=(1, 1 << 10))
    with pytest.raises(SystemExit, match=r"2 images; 4 left out"):
        convert(tmp_path, tmp_path / "a.h5")
    reasons = (tmp_path / "out" / "train.h5.skipped.txt").read_text().splitlines()
    for reason, wanted in zip(
        reasons,
        (
            "image 3\tthe numbers of regions differ: {'boxes': 3, 'features': 4}",
            "image 4\t4_features is a link to elsewhere",
            "image 5\tfeatures holds",
            "image 6\t/6_features has",
        ),
        strict=True,
    ):
        assert wanted in reason
    check(RegionStore(tmp_path / "out" / "train.h5"), size=False)


@pytest.mark.parametrize(
    "content", ['{"num_boxes": 3}', '{"objects": []}', "[1]", '{"objects": [{"rect": [1]}]}', "{", "7"]
)
def test_damaged_json_rows_are_listed(tmp_path, content):
    path = write_tsv(tmp_path / "a.tsv", "vinvl")
    path.write_text(path.read_text() + f"3\t{content}\n")
    with pytest.raises(SystemExit, match=r"2 images; 1 left out.*a\.tsv, row 3"):
        convert(tmp_path, path)


class Runs:
    def __reduce__(self):
        import os

        return os.mkdir, ("harmed",)


def test_nothing_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_ban(tmp_path / "a.hdf5", adaptive=True)
    (tmp_path / "a_imgid2idx.pkl").write_bytes(pickle.dumps({"9": Runs()}))
    with pytest.raises(ValueError, match=r"a_imgid2idx\.pkl cannot be read .*it asks for posix\.mkdir"):
        convert(tmp_path, tmp_path / "a.hdf5")
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "a.lmdb")) as database, database.begin(write=True) as transaction:
        transaction.put(b"7", pickle.dumps({"features": Runs()}))
    with pytest.raises(ValueError, match=r"a\.lmdb, key 7: not a pickled dict of numbers \(it asks for posix\.mkdir"):
        convert(tmp_path, tmp_path / "a.lmdb")
    assert not (tmp_path / "harmed").exists()
