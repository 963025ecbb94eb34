"""A small file of every kind that the programs and `xmodal.data` read, and what reads it: for damaging them."""

from __future__ import annotations

import gzip
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from PIL import Image
from test_foreign_features import COUNTS, arrays, write_ban, write_tsv
from test_labelled_datasets import save_mat
from tiny_data import make_data

from xmodal.data import RegionStore, Vocabulary, load_captions
from xmodal.data.images import read_image
from xmodal.data.labelled import LabelledSet, load_index, load_labelled, save_features
from xmodal.data.word_vectors import load_word_vectors
from xmodal.training.config import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Readable:
    """A file of a folder of inputs, and what reads it."""

    file: str
    command: str = ""
    """Of `xmodal`, run in the folder; everything it writes is in `out`."""
    read: Callable[[Path], Any] | None = None
    """Or a function of the file."""
    rarely: bool = False
    """Whether to damage it a few times only, because a process of its own reads it."""

    @property
    def title(self) -> str:
        """The file and who reads it."""
        return f"{self.file}: {self.command or getattr(self.read, '__name__', 'read')}"


def _features(file: str, options: str = "") -> Readable:
    return Readable(file, f"prepare features --input {file.split(';')[0]} --output out/train.h5 {options}")


def _captions(kind: str, file: str, options: str = "") -> Readable:
    return Readable(file, f"prepare captions {kind} --input {file} --output out/captions.jsonl {options}")


PHOTOGRAPHS = ("a.png", "b.jpg", "c.tif", "d.gif", "e.webp", "f.bmp", "g.ppm", "h.png", "i.tif")

READABLE = [
    Readable("photos/b.jpg", "prepare regions --images photos --extractor mean-color --output out/train.h5"),
    *(Readable(f"photos/{name}", read=read_image) for name in PHOTOGRAPHS),
    *(
        Readable(file, f"prepare regions --images photos --extractor mean-color --output out/a.h5 --captions {file}")
        for file in ("of_photos.jsonl", "karpathy.json", "coco.json")
    ),
    _captions("karpathy", "karpathy.json"),
    _captions("coco", "coco.json"),
    _captions("flickr", "flickr.token"),
    Readable(
        "lists/train.txt",
        "prepare captions flickr --input flickr.token --output out/captions.jsonl --split-lists train lists/train.txt",
    ),
    *(_captions("table", f"table.{suffix}") for suffix in ("csv", "tsv", "json", "jsonl", "csv.gz", "utf16.csv")),
    _captions("images", "images.jsonl"),
    Readable("data/captions.jsonl", "prepare vocabulary --captions data/captions.jsonl --output out/vocabulary.json"),
    Readable("data/captions.jsonl", "prepare verify data"),
    Readable("data/dev.h5", "prepare verify data"),
    *(
        Readable(f"scan/train_{name}", "prepare scan-npy --input scan --output out")
        for name in ("ims.npy", "caps.txt", "ids.txt")
    ),
    Readable("bottom-up.tsv", "prepare bottom-up-tsv --input bottom-up.tsv --dim 16 --output out/train.h5"),
    *(
        Readable(f"npz/{name}", "prepare npz-folder --input npz --dim 16 --output out/train.h5")
        for name in ("9.npz", "7.npy", "7_info.npy")
    ),
    *(_features(f"{layout}.tsv") for layout in ("bottom-up", "lxmert", "vilbert", "vl-bert", "vinvl")),
    _features("objects.tsv"),
    _features("headed.tsv"),
    *(_features(name) for name in ("visdial.h5", "m2.hdf5", "groups.h5")),
    _features("ban.hdf5"),
    Readable("ban_imgid2idx.pkl", "prepare features --input ban.hdf5 --output out/train.h5"),
    Readable("ids.json", "prepare features --input ban.hdf5 --ids ids.json --output out/train.h5"),
    Readable("dicts/7.npy", "prepare features --input dicts --output out/train.h5"),
    Readable("cocobu_box/7.npy", "prepare features --input cocobu_att --output out/train.h5"),
    Readable("cocobu_att/7.npz", "prepare features --input cocobu_att --output out/train.h5"),
    *(
        Readable(
            file,
            "prepare coco-annotations official --instances instances.json --captions coco.json --output out "
            "--dev 0 --test 0",
        )
        for file in ("instances.json", "coco.json")
    ),
    *(
        Readable(f"cub/{name}.txt", "prepare labelled cub --input cub --output out/index.jsonl")
        for name in ("images", "image_class_labels", "classes")
    ),
    Readable("cars/cars_annos.mat", "prepare labelled cars --input cars --output out/index.jsonl", rarely=True),
    Readable("sop/Ebay_train.txt", "prepare labelled sop --input sop --output out/index.jsonl"),
    Readable(
        "in_shop/Eval/list_eval_partition.txt", "prepare labelled in-shop --input in_shop --output out/index.jsonl"
    ),
    Readable(
        "vocabulary.json",
        "prepare import-checkpoint --checkpoint model.pth.tar --vocabulary vocabulary.json --architecture scan "
        "--output out/model",
    ),
    Readable(
        "vocabulary.pkl",
        "prepare import-checkpoint --checkpoint model.pth.tar --vocabulary vocabulary.pkl --architecture scan "
        "--output out/model",
    ),
    Readable(
        "model.pth.tar",
        "prepare import-checkpoint --checkpoint model.pth.tar --vocabulary vocabulary.json --architecture scan "
        "--output out/model",
    ),
    Readable("data/dev.h5", read=lambda path: _whole_store(path)),
    Readable("data/captions.jsonl", read=load_captions),
    Readable("data/vocabulary.json", read=Vocabulary.load),
    Readable("index.jsonl", read=load_index),
    Readable("features.h5", read=lambda path: _rows(load_labelled(path))),
    Readable("others.h5", read=lambda path: _rows(load_labelled(path))),
    Readable("vectors.txt", read=lambda path: load_word_vectors(path, Vocabulary(["dog", "cat"]))),
    Readable("recipe.yaml", read=load_recipe),
]
"""Every kind of file, by every reader of it."""


def _whole_store(path: Path) -> Any:
    store = RegionStore(path)
    if problems := store.validate():
        raise ValueError(f"{path}: {problems}")
    return store.batch(range(len(store)))


def _rows(images: Any) -> Any:
    return images.__getitems__(range(len(images)))


def make_files(home: Path) -> None:
    """Write all of them; every reader is content."""
    for make in (_photographs, _captions_files, _features_of_others, _labelled, _checkpoints):
        make(home)
    make_data(_folder(home / "data"), train=4, dev=3)
    (home / "vectors.txt").write_text("2 3\ndog 1 2 3.5\ncat -1e-3 0 4\n")
    (home / "recipe.yaml").write_text("base: scan_t2i_lse_f30k\nepochs: 3\nmodel: {head: {temperature: 4.0}}\n")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _photographs(home: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    _folder(home / "photos")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "by hand"
    for name in PHOTOGRAPHS[:7]:
        Image.fromarray(pixels).save(home / "photos" / name, **({"exif": exif} if name == "b.jpg" else {}))
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(home / "photos" / "h.png")
    Image.fromarray(pixels[:, :, 0].astype(np.float32) / 255).save(home / "photos" / "i.tif", compression="tiff_lzw")


def _captions_files(home: Path) -> None:
    said = [("a", "0", "a dog", "train"), ("b", "1", "two cats, asleep", "train"), ("b", "2", "cats", "train")]
    keys = ("image_id", "caption_id", "caption", "split")
    lines = [json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in said]
    for name in ("of_photos.jsonl", "table.jsonl"):
        (home / name).write_text("".join(lines))
    (home / "table.json").write_text(json.dumps([json.loads(line) for line in lines]))
    comma = "image,caption,split\\n" + "".join(f'{image}.jpg,"{text}",{split}\\n' for image, _, text, split in said)
    comma = comma.replace("\\n", "\n")
    (home / "table.csv").write_text(comma)
    (home / "table.csv.gz").write_bytes(gzip.compress(comma.encode()))
    (home / "table.utf16.csv").write_text(comma, encoding="utf-16")
    (home / "table.tsv").write_text("image\tcaption\n" + "".join(f"{row[0]}\t{row[2]}\n" for row in said))
    (home / "flickr.token").write_text("".join(f"{row[0]}.jpg#{row[1]}\t{row[2]}\n" for row in said))
    _folder(home / "lists")
    (home / "lists" / "train.txt").write_text("a.jpg\nb.jpg\n")
    sentences = [{"raw": row[2], "tokens": row[2].split(), "sentid": int(row[1]), "imgid": 0} for row in said]
    images = [
        {"filename": "a.png", "imgid": 0, "split": "train", "sentids": [0], "sentences": sentences[:1]},
        {"filename": "b.jpg", "imgid": 1, "split": "val", "sentids": [1, 2], "sentences": sentences[1:]},
    ]
    (home / "karpathy.json").write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
    (home / "images.jsonl").write_text(
        "".join(json.dumps({"image": name, "split": "train", "captions": ["a dog", "it runs"]}) + "\n" for name in "ab")
    )
    coco = {
        "images": [
            {"id": n, "width": 9, "height": 9, "file_name": f"{name}"} for n, name in ((7, "a.png"), (8, "b.jpg"))
        ],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": 7 + n % 2, "caption": "a dog", "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0}
            for n in range(4)
        ],
    }
    for name in ("coco.json", "instances.json"):
        (home / name).write_text(json.dumps(coco))


def _features_of_others(home: Path) -> None:
    for layout in ("bottom-up", "lxmert", "vilbert", "vl-bert", "vinvl"):
        write_tsv(home / f"{layout}.tsv", layout)
    write_tsv(home / "objects.tsv", "vinvl objects")
    write_tsv(home / "headed.tsv", "bottom-up", ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"])
    write_ban(home / "ban.hdf5", adaptive=True)
    ids = {int(name): number for number, name in enumerate(COUNTS)}
    (home / "ban_imgid2idx.pkl").write_bytes(pickle.dumps(ids, 2))
    (home / "ids.json").write_text(json.dumps(ids))
    longest = max(COUNTS.values())
    with h5py.File(home / "visdial.h5", "w") as file:
        file["image_id"] = list(COUNTS)
        for key, column in (("features", 0), ("boxes", 1)):
            file[key] = np.stack([np.pad(arrays(n)[column], ((0, longest - COUNTS[n]), (0, 0))) for n in COUNTS])
        file["num_boxes"], file["image_w"], file["image_h"] = list(COUNTS.values()), [640, 640], [480, 480]
    with h5py.File(home / "m2.hdf5", "w") as one, h5py.File(home / "groups.h5", "w") as other:
        for name in COUNTS:
            for key, value in zip(("features", "boxes", "cls_prob"), arrays(name), strict=True):
                one[f"{name}_{key}"] = value
                other[f"{name}/{key}"] = value
            other[name].attrs["image_w"], other[name].attrs["image_h"] = 640, 480
    for name in ("scan", "npz", "dicts", "cocobu_att", "cocobu_box"):
        _folder(home / name)
    np.save(
        home / "scan" / "train_ims.npy",
        np.stack([np.pad(arrays(n)[0], ((0, longest - COUNTS[n]), (0, 0))) for n in COUNTS]),
    )
    (home / "scan" / "train_caps.txt").write_text("a dog\n" * 10)
    (home / "scan" / "train_ids.txt").write_text("9\n7\n")
    for name in COUNTS:
        features, boxes, _ = arrays(name)
        values = {"image_id": name, "image_h": np.int64(480), "image_w": 640, "boxes": boxes, "features": features}
        np.save(home / "dicts" / f"{name}.npy", values)
        np.savez_compressed(home / "cocobu_att" / f"{name}.npz", feat=features)
        np.save(home / "cocobu_box" / f"{name}.npy", boxes)
    np.savez(home / "npz" / "9.npz", x=arrays("9")[0], bbox=arrays("9")[1], image_w=640, image_h=480, num_bbox=3)
    np.save(home / "npz" / "7.npy", arrays("7")[0])
    np.save(home / "npz" / "7_info.npy", {"bbox": arrays("7")[1], "image_width": 640, "image_height": 480})


def _labelled(home: Path) -> None:
    for name in ("cub", "cars", "sop", "in_shop/Eval", "in_shop/Img"):
        _folder(home / name)
    (home / "cub" / "images.txt").write_text("1 001.Gull/1.jpg\n2 002.Wren/2.jpg\n")
    (home / "cub" / "image_class_labels.txt").write_text("1 1\n2 2\n")
    (home / "cub" / "classes.txt").write_text("1 001.Gull\n2 002.Wren\n")
    save_mat(home / "cars" / "cars_annos.mat", "relative_im_path", ["car_ims/1.jpg", "car_ims/2.jpg"], [1, 2])
    for split in ("train", "test"):
        (home / "sop" / f"Ebay_{split}.txt").write_text("image_id class_id super_class_id path\n1 1 1 bike/1.JPG\n")
    partition = "2\nimage_name item_id evaluation_status\nimg/1.jpg id_1 train\nimg/2.jpg id_2 query\n"
    (home / "in_shop" / "Eval" / "list_eval_partition.txt").write_text(partition)
    (home / "index.jsonl").write_text('{"path": "a.png", "class": "a", "split": "train"}\n' * 3)
    labelled = LabelledSet([f"{number}.png" for number in range(8)], ["0", "1"] * 4, ["test"] * 8)
    save_features(home / "features.h5", torch.rand(8, 3), labelled, {})
    with h5py.File(home / "others.h5", "w") as file:
        file["features"] = np.arange(6, dtype=np.float16).reshape(3, 2)
        file["label"], file["image_id"] = [12.0, 3.0, 12.0], [4, 5, 6]


def _checkpoints(home: Path) -> None:
    checkpoint = GOLDEN / "s1_scan_basic.pth.tar"
    (home / "model.pth.tar").write_bytes(checkpoint.read_bytes())
    words = len(torch.load(checkpoint, weights_only=False)["model"][1]["embed.weight"])
    vocabulary = Vocabulary([f"word{number}" for number in range(words - 4)])
    vocabulary.save(home / "vocabulary.json")
    numbers = {word: number for number, word in enumerate(vocabulary.words)}
    (home / "vocabulary.pkl").write_bytes(pickle.dumps({"word2idx": numbers, "idx": words}))
