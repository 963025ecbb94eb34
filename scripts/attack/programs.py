"""What the package does to files, small enough to be done a hundred times: the programs that are killed and starved."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from PIL import Image

from xmodal.data import Caption, RegionStoreWriter, Vocabulary, save_captions
from xmodal.data.torch_files import load_torch

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, REGIONS, IMAGES = 8, 4, 6
WORDS = ("a", "and", "cat", "dog", "car", "tree", "boat", "bird")


@dataclass(frozen=True)
class Program:
    """Something that writes files.

    >>> Program("note", lambda folder: None, lambda _, output: (output / "note").touch()).name
    'note'
    """

    name: str
    make: Callable[[Path], None]
    """Writes what it reads into a folder."""
    run: Callable[[Path, Path], None]
    """Reads from a folder and writes into another; a second run goes on where the first was killed."""
    replaces: bool = False
    """Whether the output is there before, and at every moment must be the old or the new one."""
    cost: int = 1
    """By how much less often it is done than others, for it takes longer."""


def prepared(program: Program, folder: Path) -> tuple[Path, Path, Path]:
    """Folders of what a program reads and of what is there before it runs, and one, as that, where it is to run first.

    >>> inputs, before, whole = prepared(Program("none", lambda folder: None, lambda inputs, output: None), Path("try"))
    >>> [path.name for path in (inputs, before, whole)]
    ['inputs', 'before', 'whole']
    """
    inputs, before, whole = folder / "inputs", folder / "before", folder / "whole"
    for each in (inputs, whole):
        each.mkdir(parents=True)
    program.make(inputs)
    if program.replaces:
        program.run(inputs, whole)
    shutil.copytree(whole, before)
    return inputs, before, whole


def contents(output: Path) -> dict[str, Any]:
    """What a program left, by file: all that is in it that does not depend on when and where.

    >>> _ = Path("note.txt").write_text("hello")
    >>> contents(Path("."))
    {'note.txt': b'hello'}
    """
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and not OF_A_RUN.search(path.name)]
    return {str(path.relative_to(output)): _content(path, output) for path in files}


OF_A_RUN = re.compile(r"^(events\.out\.|environment\.json$|checkpoint\.\d)")
"""Files that are never the same twice."""


def _content(path: Path, output: Path) -> Any:
    if path.suffix == ".h5":
        with h5py.File(path, "r", locking=False) as file:
            datasets = {name: np.asarray(file[name]).tolist() for name in file}
            return datasets, {name: str(value) for name, value in file.attrs.items() if name != "created"}
    if path.name == "checkpoint.pt":
        state = load_torch(path)["step_module"]
        return {name: tensor.tolist() for name, tensor in state.items()}
    if path.name == "log.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in line.items() if "second" not in key} for line in lines]
    return path.read_bytes().replace(str(output).encode(), b"OUTPUT")


def features(seed: int = 0) -> dict[str, np.ndarray]:
    """Regions of a few images.

    >>> {name: rows.shape for name, rows in features().items()}["image 1"]
    (2, 8)
    """
    numbers = np.random.default_rng(seed)
    return {f"image {n}": numbers.standard_normal((1 + n % REGIONS, DIM)).astype("f4") for n in range(IMAGES)}


def make_data(folder: Path, splits: tuple[str, ...] = ("train", "dev")) -> None:
    """Write stores, captions and a vocabulary.

    >>> make_data(Path("data"))
    >>> sorted(path.name for path in Path("data").glob("*.h5"))
    ['dev.h5', 'train.h5']
    """
    folder.mkdir(parents=True, exist_ok=True)
    captions = []
    for seed, split in enumerate(splits):
        with RegionStoreWriter(folder / f"{split}.h5", dim=DIM, max_regions=REGIONS, extractor="by hand") as writer:
            for number, (name, rows) in enumerate(features(seed).items()):
                writer.write(f"{split} {name}", rows)
                said = [f"a {WORDS[2 + (number + word) % 6]} and a {WORDS[2 + word]}" for word in range(2)]
                ids = [f"{split} {number} {word}" for word in range(2)]
                captions += [
                    Caption(f"{split} {name}", caption_id, sentence, split)
                    for caption_id, sentence in zip(ids, said, strict=True)
                ]
    save_captions(folder / "captions.jsonl", captions)
    Vocabulary(WORDS).save(folder / "vocabulary.json")


def make_model(folder: Path, seed: int = 0) -> None:
    """Save a small matcher.

    >>> make_model(Path("model"))
    >>> Path("model/model.safetensors").exists()
    True
    """
    from xmodal.model import Matcher

    torch.manual_seed(seed)
    image, text = {"name": "regions", "input_dim": DIM, "dim": 8}, {"name": "gru", "dim": 8, "word_dim": 4}
    Matcher(image, text, {"name": "scan"}, vocabulary=Vocabulary(WORDS).words).save_pretrained(folder)


def _train(folder: Path, output: Path) -> None:
    from xmodal.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
    from xmodal.training.trainer import train

    os.environ["ACCELERATE_USE_CPU"] = "1"
    model = ModelConfig(
        image={"name": "regions", "dim": 8}, text={"name": "gru", "dim": 8, "word_dim": 4}, head={"name": "scan"}
    )
    config = TrainConfig(
        output=output / "run",
        data=DataConfig(folder=folder),
        model=model,
        optimizer=OptimizerConfig(learning_rate=0.01),
        epochs=2,
        batch_size=4,
        progress=False,
        resume_if_present=True,
    )
    with quiet():
        train(config)


def _save(folder: Path, output: Path) -> None:
    from xmodal.model import Matcher

    Matcher.from_pretrained(folder / ("old" if not (output / "model").exists() else "new")).save_pretrained(
        output / "model"
    )


def _make_models(folder: Path) -> None:
    make_model(folder / "old", 0)
    make_model(folder / "new", 1)


def _score(folder: Path, output: Path) -> None:
    from xmodal.heads import SCAN
    from xmodal.scoring import score_all

    torch.manual_seed(0)
    regions, words = torch.randn(9, 3, 8), torch.randn(11, 4, 8)
    score_all(SCAN(), regions, words, budget_bytes=1 << 14, out=output / "scores.npy", overwrite=True)


def _make_evaluation(folder: Path) -> None:
    make_data(folder / "data")
    make_model(folder / "model")


def _evaluate(folder: Path, output: Path) -> None:
    from xmodal.cli import main

    outputs = {name: output / f"dev.{name}" for name in ("json", "ranks", "report")}
    for path in outputs.values():
        path.unlink(missing_ok=True)
    (output / "scores").mkdir(parents=True, exist_ok=True)
    (output / "scores" / "scores.npy").unlink(missing_ok=True)
    options = [word for name, path in outputs.items() for word in (f"--{name}", str(path))]
    data = [
        "--data.folder",
        str(folder / "data"),
        "--data.split",
        "dev",
        "--scores",
        str(output / "scores" / "scores.npy"),
    ]
    with quiet():
        main(["evaluate", str(folder / "model"), *data, *options])


def _make_photographs(folder: Path) -> None:
    numbers = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = numbers.integers(0, 255, (20, 24 + number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])


class MeanColor:
    """An extractor: the whole image, described by its mean color.

    >>> [found.features.shape for found in MeanColor()([Image.new("RGB", (8, 8))])]
    [torch.Size([1, 3])]
    """

    name, dim, max_regions, weights_hash = "mean-color", 3, 1, "none"

    def __call__(self, images: list[Image.Image]) -> list[Any]:
        """One region an image."""
        from xmodal.encoders.region_extractor import Regions

        colors = [torch.tensor([image.resize((1, 1)).getpixel((0, 0))]).float() for image in images]
        return [
            Regions(color, torch.tensor([[0.0, 0.0, *image.size]])) for color, image in zip(colors, images, strict=True)
        ]


def _extract(join: Any) -> Callable[[Path, Path], None]:
    def run(folder: Path, output: Path) -> None:
        from preprocess.regions import RegionsConfig, extract

        config = RegionsConfig(folder, output / "train.h5", batch_size=2, join=join)
        extract(config, MeanColor(), {})  # type: ignore[arg-type]

    return run


def make_tsv(folder: Path, *, damaged: bool = True) -> None:
    """Write a file as bottom-up attention did, perhaps with a damaged row.

    >>> make_tsv(Path("."))
    >>> len(Path("images.tsv").read_bytes().splitlines())
    7
    """
    rows = []
    for number, values in enumerate(features().values()):
        columns = [base64.b64encode(array.astype("<f4").tobytes()) for array in (np.ones((len(values), 4)), values)]
        rows.append(b"\t".join([str(number).encode(), b"9", b"9", str(len(values)).encode(), *columns]))
    if damaged:
        rows.insert(2, b"damaged\trow")
    (folder / "images.tsv").write_bytes(b"\n".join(rows))


def _convert_tsv(folder: Path, output: Path) -> None:
    from preprocess import bottom_up_tsv

    config = bottom_up_tsv.Config(input=(folder / "images.tsv",), output=output / "train.h5", skip_bad=True)
    _in_small_parts(lambda: bottom_up_tsv.main(config))


def _make_npz(folder: Path) -> None:
    for name, rows in features().items():
        np.savez(folder / f"{name}.npz", x=rows, bbox=np.ones((len(rows), 4)), image_w=9, image_h=9)
    (folder / "image 3.npz").write_bytes(b"damaged")


def _convert_npz(folder: Path, output: Path) -> None:
    from preprocess import npz_folder

    config = npz_folder.Config(input=folder, output=output / "train.h5", skip_bad=True)
    _in_small_parts(lambda: npz_folder.main(config))


def _make_hdf5(folder: Path) -> None:
    with h5py.File(folder / "images.hdf5", "w") as file:
        for number, rows in enumerate(features().values()):
            file[f"{number}_features"], file[f"{number}_boxes"] = rows, np.ones((len(rows), 4))


def _convert_hdf5(folder: Path, output: Path) -> None:
    from preprocess import features

    config = features.Config(input=(folder / "images.hdf5",), output=output / "train.h5", skip_bad=True)
    _in_small_parts(lambda: features.main(config))


def make_npy(folder: Path) -> None:
    """Write arrays and captions as SCAN has them.

    >>> make_npy(Path("."))
    >>> np.load("dev_ims.npy").shape
    (6, 4, 8)
    """
    for seed, split in enumerate(("train", "dev")):
        padded = [np.pad(rows, ((0, REGIONS - len(rows)), (0, 0))) for rows in features(seed).values()]
        np.save(folder / f"{split}_ims.npy", np.stack(padded))
        (folder / f"{split}_caps.txt").write_text("".join(f"a dog {n}\n" for n in range(5 * IMAGES)))


def _convert_npy(folder: Path, output: Path) -> None:
    from preprocess import scan_npy

    _in_small_parts(lambda: scan_npy.main(scan_npy.Config(folder, output)))


def _in_small_parts(run: Callable[[], None]) -> None:
    """Run a conversion whose parts are of two images, so that there are several."""
    from preprocess import precomputed, scan_npy

    usual = precomputed.RECORDS_A_PART
    precomputed.RECORDS_A_PART = scan_npy.RECORDS_A_PART = 2
    try:
        with quiet(), contextlib.suppress(SystemExit):
            run()
    finally:
        precomputed.RECORDS_A_PART = scan_npy.RECORDS_A_PART = usual


@contextlib.contextmanager
def quiet() -> Any:
    """What is printed meanwhile is not.

    >>> with quiet():
    ...     print("hello")
    """
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


PROGRAMS = {
    program.name: program
    for program in (
        Program("train", make_data, _train, cost=4),
        Program("save_pretrained", _make_models, _save, replaces=True),
        Program("score_all(out=)", lambda folder: None, _score, replaces=True),
        Program("evaluate", _make_evaluation, _evaluate, cost=2),
        Program("prepare regions", _make_photographs, _extract("copy")),
        Program("prepare regions, virtual", _make_photographs, _extract("virtual")),
        Program("prepare bottom-up-tsv", make_tsv, _convert_tsv),
        Program("prepare npz-folder", _make_npz, _convert_npz),
        Program("prepare features", _make_hdf5, _convert_hdf5),
        Program("prepare scan-npy", make_npy, _convert_npy),
    )
}
"""By name; all are killed, starved and run twice at once."""


def warm_up() -> None:
    """Import what programs need, so that not every child process does."""
    for name in ("xmodal.training.trainer", "xmodal.evaluation.matchers", "xmodal.scoring", "preprocess.regions"):
        import_module(name)
