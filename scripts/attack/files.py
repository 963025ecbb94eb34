"""A file of every format that xmodal reads, how it is read, and whether a checksum covers it."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from PIL import Image

from scripts.attack.programs import contents
from scripts.attack.programs import make_npy as make_npy_folder
from scripts.attack.programs import make_tsv as make_tsv_folder
from xmodal.data import (
    Caption,
    RegionStore,
    RegionStoreWriter,
    Vocabulary,
    load_captions,
    load_relevance,
    save_captions,
)
from xmodal.data.labelled import LabelledImage, LabelledSet, load_index, load_labelled, save_features, save_index
from xmodal.data.word_vectors import load_word_vectors

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = ["a", "dog", "cat", "runs", "sleeps"]


@dataclass(frozen=True)
class Format:
    """How a file of one format is made and read; what reading gives can be compared with `==`."""

    name: str
    make: Callable[[Path], Any]
    """Writes the file, which has the name that is given."""
    read: Callable[[Path], Any]
    file: str
    """Name of the file to damage, in a folder of its own."""
    checked: bool = False
    """Whether a checksum covers it."""
    named: str = ""
    """What an error must name, where that is not the file."""
    cost: int = 1
    """By how much fewer mutants are tried, where reading one starts a process, say."""


def arrays(seed: int = 0) -> list[np.ndarray]:
    """Features of a few images.

    >>> [len(rows) for rows in arrays()]
    [3, 1, 2, 3]
    """
    numbers = np.random.default_rng(seed)
    return [numbers.standard_normal((count, 4)).astype(np.float32) for count in (3, 1, 2, 3)]


def _make_store(path: Path) -> None:
    with RegionStoreWriter(path, dim=4, max_regions=3, extractor="by hand") as writer:
        for number, rows in enumerate(arrays()):
            boxes = np.tile(np.array([0, 0, 5, 5], np.float32), (len(rows), 1))
            writer.write(f"image {number}", rows, boxes=boxes, image_size=(10, 10))


def _read_store(path: Path) -> Any:
    store = RegionStore(path)
    problems = store.validate()
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    regions, mask, boxes = store.batch(range(len(store)))
    return regions.tolist(), mask.tolist(), None if boxes is None else boxes.tolist(), list(store.image_id)


def _captions() -> list[Caption]:
    sentences = ["a dog runs", "a cat sleeps", "a dog sleeps", "a cat runs"]
    return [Caption(f"image {n}", str(n), sentence, "train") for n, sentence in enumerate(sentences)]


def _make_model(path: Path) -> None:
    from xmodal.model import Matcher

    torch.manual_seed(0)
    image, text = {"name": "regions", "input_dim": 4, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    Matcher(image, text, {"name": "scan"}, vocabulary=WORDS).save_pretrained(path.parent)


def _read_model(path: Path) -> Any:
    from xmodal.model import Matcher

    matcher = Matcher.from_pretrained(path.parent)
    state = {name: tensor.tolist() for name, tensor in matcher.state_dict().items()}
    return state, repr(matcher), matcher.tokenizer.words


def _make_checkpoint(path: Path) -> None:
    from xmodal.training.checkpoints import save_checkpoint

    save_checkpoint(path.parent, {"step": 3, "weights": torch.arange(100.0), "config": {"epochs": 3}})


def _read_checkpoint(path: Path) -> Any:
    from xmodal.training.checkpoints import load_checkpoint

    state = load_checkpoint(path.parent)
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def _make_recipe(path: Path) -> None:
    path.write_text("epochs: 3\nmodel:\n  head: {name: scan, temperature: 9.0}\noptimizer: {learning_rate: 2e-4}\n")


def _read_recipe(path: Path) -> Any:
    from xmodal.training.config import load_recipe, to_dict

    return to_dict(load_recipe(path))


def _make_released(path: Path) -> None:
    import argparse

    weights = [{"fc.weight": torch.ones(4, 8)}, {"embed.weight": torch.ones(10, 3)}]
    torch.save({"model": weights, "opt": argparse.Namespace(lambda_softmax=9.0), "epoch": 3}, path)


def _read_released(path: Path) -> Any:
    from xmodal.data.legacy import load_checkpoint

    checkpoint = load_checkpoint(path)
    return {name: value.tolist() for name, value in checkpoint.weights.items()}, checkpoint.options


def _make_pickled_vocabulary(path: Path) -> None:
    words = ["<pad>", "<start>", "<end>", "<unk>", *WORDS]
    numbers = "".join(f"S'{word}'\nI{number}\ns" for number, word in enumerate(words))
    path.write_text(f"(i__main__\nVocabulary\n(dS'word2idx'\n(d{numbers}sb.")


def _read_pickled_vocabulary(path: Path) -> Any:
    from xmodal.data.legacy import load_vocabulary

    return load_vocabulary(path).words


def _make_image(mode: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)

    return make


def _read_image(path: Path) -> Any:
    from xmodal.data.images import read_image

    return np.asarray(read_image(path)).tolist()


def _converted(program: str, config: Callable[[Path, Path], Any]) -> Callable[[Path], Any]:
    """Reads what a program of `preprocess` makes of a file."""

    def read(path: Path) -> Any:
        output = path.parent.with_name(f"{path.parent.name}.converted")
        shutil.rmtree(output, ignore_errors=True)
        try:
            import_module(f"preprocess.{program}").main(config(path, output))
            return {name: content for name, content in contents(output).items() if not name.endswith(".skipped.txt")}
        finally:
            shutil.rmtree(output, ignore_errors=True)

    return read


def _npy(path: Path, output: Path) -> Any:
    return import_module("preprocess.scan_npy").Config(path.parent, output, splits=("train",))


def _features(path: Path, output: Path) -> Any:
    features = import_module("preprocess.features")
    kept = path.suffix in (".npz", ".npy")
    return features.Config(input=(path.parent if kept else path,), output=output / "train.h5")


def _make_npy(path: Path) -> None:
    make_npy_folder(path.parent)


def _make_tsv(path: Path) -> None:
    make_tsv_folder(path.parent, damaged=False)


def _make_npz(path: Path) -> None:
    np.savez(path, x=arrays()[0], bbox=np.ones((3, 4)), image_w=9, image_h=9)


def _make_pythia(path: Path) -> None:
    np.save(path.with_name("7.npy"), arrays()[0])
    info: Any = {"bbox": np.ones((3, 4), "f4"), "image_width": 9, "image_height": 9}
    np.save(path, info, allow_pickle=True)


def _make_ban(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["image_features"] = np.stack([arrays()[0], arrays()[3]])
        file["image_bb"] = np.ones((2, 3, 4), "f4")
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps({7: 0, 8: 1}, 2))


def _make_ban_ids(path: Path) -> None:
    _make_ban(path.with_name("train.hdf5"))


def _ban_of_ids(path: Path, output: Path) -> Any:
    return _features(path.with_name("train.hdf5"), output)


def _make_groups(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for number, rows in enumerate(arrays()):
            file[f"{number}/features"], file[f"{number}/boxes"] = rows, np.ones((len(rows), 4))


def _make_lmdb(path: Path) -> None:
    import lmdb

    with lmdb.open(str(path.parent), map_size=1 << 20) as database, database.begin(write=True) as transaction:
        for number, rows in enumerate(arrays()):
            transaction.put(str(number).encode(), pickle.dumps({"features": rows, "image_id": str(number)}))


def _lmdb(path: Path, output: Path) -> Any:
    return import_module("preprocess.features").Config(input=(path.parent,), output=output / "train.h5")


def _captions_of(kind: str) -> Callable[[Path, Path], Any]:
    def config(path: Path, output: Path) -> Any:
        return getattr(import_module("preprocess.captions"), kind)(path, output / "captions.jsonl")

    return config


def _make_karpathy(path: Path) -> None:
    sentences = [{"raw": raw, "tokens": raw.split(), "sentid": n} for n, raw in enumerate(("a dog", "a cat"))]
    images = [{"filename": "1.jpg", "imgid": 0, "split": "train", "sentids": [0, 1], "sentences": sentences}]
    path.write_text(json.dumps({"images": images, "dataset": "flickr8k"}))


def _make_coco(path: Path) -> None:
    images = [{"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "height": 9, "width": 9}]
    annotations = [{"id": n, "image_id": 9, "caption": caption} for n, caption in enumerate(("a dog", "a cat"))]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


def _make_table(path: Path) -> None:
    path.write_text('image,caption,split\n1.jpg,A dog runs.,train\n2.jpg,"A cat, asleep.",test\n')


def _make_word_vectors(path: Path) -> None:
    path.write_text("".join(f"{word} 0.5 {n}.25 -1e-3\n" for n, word in enumerate(WORDS)))


def _read_word_vectors(path: Path) -> Any:
    vectors, found = load_word_vectors(path, Vocabulary(WORDS))
    return vectors.tolist(), found.tolist()


def _make_judgements(path: Path) -> None:
    lines = [{"image_id": "7", "caption_id": "70", "grade": 0.5}, {"image_id": "8", "caption_id": "71"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_judgements(path: Path) -> Any:
    relevance = load_relevance(path, ["7", "8"], ["70", "71"])
    return relevance.image.tolist(), relevance.caption.tolist(), relevance.grade.tolist()


def _make_labelled_features(path: Path) -> None:
    birds = LabelledSet(["1.jpg", "2.jpg", "3.jpg"], ["wren", "gull", "wren"], ["train", "test", "test"])
    save_features(path, torch.eye(3), birds, {"backbone": "by hand"})


def _read_labelled_features(path: Path) -> Any:
    found: Any = load_labelled(path)
    return found.features.tolist(), found.image_id, found.class_names, found.labels.tolist(), found.splits


def _make_index(path: Path) -> None:
    save_index(path, [LabelledImage(Path(f"{n}.jpg"), f"class {n % 2}", "train") for n in range(4)])


def _make_mat(path: Path) -> None:
    from scipy.io import savemat

    kinds = [("relative_im_path", "O"), ("class", "O")]
    savemat(path, {"annotations": np.array([(f"car_ims/{n}.jpg", n) for n in range(1, 5)], kinds)})


def _read_mat(path: Path) -> Any:
    from preprocess.mat_annotations import read_annotations

    return read_annotations(path, "relative_im_path")


def _make_list(path: Path) -> None:
    path.write_text("image_id class_id super_class_id path\n" + "".join(f"{n} {n} 1 a/{n}.jpg\n" for n in range(1, 5)))


def _read_list(path: Path) -> Any:
    labelled = import_module("preprocess.labelled_datasets")
    sop = labelled.SOP(input=path.parent, output=path)
    return list(labelled._rows(path, 4, sop, "image_id class_id super_class_id path"))


def _make_ids(path: Path) -> None:
    lines = [{"image_id": str(n), "split": "train"} for n in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_ids(path: Path) -> Any:
    from preprocess.image_ids import read_image_names

    return read_image_names(path, "train")


def _make_log(path: Path) -> None:
    path.write_text("".join(json.dumps({"step": n, "loss": 1.5}) + "\n" for n in range(1, 6)))


def _read_log(path: Path) -> Any:
    from xmodal.training.checkpoints import Log

    with Log(path.parent, step=5):
        pass
    return path.read_text()


FORMATS = [
    Format("region store", _make_store, _read_store, "train.h5", checked=True),
    Format(
        "captions",
        lambda path: save_captions(path, _captions()),
        lambda path: load_captions(path, "train"),
        "captions.jsonl",
    ),
    Format(
        "vocabulary",
        lambda path: Vocabulary(WORDS).save(path),
        lambda path: Vocabulary.load(path).words,
        "vocabulary.json",
    ),
    Format("weights of a model", _make_model, _read_model, "model.safetensors", checked=True),
    Format("configuration of a model", _make_model, _read_model, "config.json", named="config.json"),
    Format("checkpoint", _make_checkpoint, _read_checkpoint, "checkpoint.pt", checked=True),
    Format("log", _make_log, _read_log, "log.jsonl"),
    Format("recipe", _make_recipe, _read_recipe, "recipe.yaml"),
    Format("released checkpoint", _make_released, _read_released, "model_best.pth.tar", checked=True),
    Format("pickled vocabulary", _make_pickled_vocabulary, _read_pickled_vocabulary, "vocab.pkl"),
    Format("SCAN's array", _make_npy, _converted("scan_npy", _npy), "train_ims.npy"),
    Format("SCAN's captions", _make_npy, _converted("scan_npy", _npy), "train_caps.txt"),
    Format("npz of an image", _make_npz, _converted("features", _features), "7.npz"),
    Format("npy of a dict", _make_pythia, _converted("features", _features), "7_info.npy", named="7.npy"),
    Format("TSV", _make_tsv, _converted("features", _features), "images.tsv"),
    Format("HDF5 of ban-vqa", _make_ban, _converted("features", _features), "train.hdf5"),
    Format("ids of ban-vqa", _make_ban_ids, _converted("features", _ban_of_ids), "train_imgid2idx.pkl"),
    Format("HDF5 of groups", _make_groups, _converted("features", _features), "train.hdf5"),
    Format("lmdb", _make_lmdb, _converted("features", _lmdb), "data.mdb", named="mutant", cost=2),
    Format("Karpathy's JSON", _make_karpathy, _converted("captions", _captions_of("Karpathy")), "dataset.json"),
    Format("COCO's JSON", _make_coco, _converted("captions", _captions_of("Coco")), "captions_val2014.json"),
    Format("table of captions", _make_table, _converted("captions", _captions_of("Table")), "captions.csv"),
    Format("word vectors", _make_word_vectors, _read_word_vectors, "vectors.txt"),
    Format("judgements", _make_judgements, _read_judgements, "judgements.jsonl"),
    Format("labelled features", _make_labelled_features, _read_labelled_features, "birds.h5"),
    Format("labelled index", _make_index, load_index, "birds.jsonl"),
    Format("MATLAB", _make_mat, _read_mat, "cars_annos.mat", cost=4),
    Format("list of images", _make_list, _read_list, "Ebay_train.txt"),
    Format("names of images", _make_ids, _read_ids, "images.jsonl"),
    Format("PNG", _make_image("RGBA"), _read_image, "image.png"),
    Format("JPEG", _make_image("RGB"), _read_image, "image.jpg"),
    Format("TIFF", _make_image("I;16"), _read_image, "image.tif"),
    Format("GIF", _make_image("P"), _read_image, "image.gif"),
]
