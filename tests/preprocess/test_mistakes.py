"""Ordinary mistakes end every program, the ones of `xmodal` too, with status 2 and one line that says what to do."""

from __future__ import annotations

import base64
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mean_color import MeanColor
from PIL import Image
from tiny_data import DIM, THINGS, make_data

from preprocess.programs import PROGRAMS
from xmodal import Embedder, Matcher, Vocabulary
from xmodal.cli import COMMANDS, main
from xmodal.data.labelled import LabelledImage, LabelledSet, save_features, save_index
from xmodal.encoders.extractors import EXTRACTORS

GOLDEN = Path(__file__).parents[1] / "golden"

INPUTS = """
prepare folder --images {} --captions data/captions.jsonl --output out
prepare folder --images photos --captions {} --output out
prepare regions --images {} --output out
prepare regions --images photos --captions {} --output out
prepare captions karpathy --input {} --output out
prepare captions coco --input {} --output out
prepare captions flickr --input {} --output out
prepare captions flickr --input flickr.token --output out --split-lists train {}
prepare captions table --input {} --output out
prepare captions images --input {} --output out
prepare vocabulary --captions {} --output out
prepare verify {}
prepare verify data --captions {}
prepare scan-npy --input {} --output out
prepare bottom-up-tsv --input {} --output out
prepare bottom-up-tsv --input a.tsv --output out --captions {} --split train
prepare npz-folder --input {} --output out
prepare npz-folder --input npz --output out --captions {} --split train
prepare features --input {} --output out
prepare features --input a.tsv --output out --captions {} --split train
prepare coco-annotations official --instances {} --captions coco.json --output out
prepare coco-annotations official --instances instances.json --captions {} --output out
prepare coco-annotations compact --input {} --output out
prepare labelled cub --input {} --output out
prepare labelled cars --input {} --output out
prepare labelled sop --input {} --output out
prepare labelled in-shop --input {} --output out
prepare labelled folder --input {} --output out --train-classes 1
prepare labelled features --input {} --output out
prepare import-checkpoint --checkpoint {} --vocabulary vocabulary.json --architecture scan --output out
prepare import-checkpoint --checkpoint model.pth.tar --vocabulary {} --architecture scan --output out
train --recipe {}
train --data.folder {} --output run
train --recipe daml_cub --data.path {} --output run
evaluate {} --data.folder data --data.split dev
evaluate model --data.folder {}
evaluate-embedder {} --path features.h5
evaluate-embedder embedder --path {}
search {} dog --data.folder data --data.split dev --images photos --output out
search model dog --data.folder {} --images photos --output out
search model dog --data.folder data --data.split dev --images {} --output out
explain {} dev-0 dog --data.folder data --data.split dev --images photos --output out
explain model dev-0 dog --data.folder data --data.split dev --images {} --output out
inspect {} --extractor mean-color --output out
inspect photos/dev-0.png --model {} --output out
index {} data/dev.h5 --output out
index model {} --output out
search model dog --index {} --images photos --output out
serve {} --model model
cluster {} servers.yaml --output out
cluster out {} --output out
export {} --output out
""".strip().splitlines()
"""Commands with one input left to name."""

FILES = """
prepare regions --images photos --extractor mean-color --output {}
prepare captions coco --input coco.json --output {}
prepare vocabulary --captions data/captions.jsonl --output {}
prepare bottom-up-tsv --input a.tsv --dim 2 --output {}
prepare npz-folder --input npz --dim 2 --output {}
prepare features --input a.tsv npz --output {}
prepare labelled folder --input classes --train-classes 1 --output {}
prepare import-checkpoint --checkpoint model.pth.tar --vocabulary vocabulary.json --architecture scan --output {}
evaluate model --data.folder data --data.split dev --json {}
evaluate model --data.folder data --data.split dev --report {}
evaluate-embedder embedder --path features.h5 --json {}
search model dog --data.folder data --data.split dev --images photos --output {}
explain model dev-0 dog --data.folder data --data.split dev --images photos --output {}
inspect photos/dev-0.png --extractor mean-color --output {}
""".strip().splitlines()
FOLDERS = """
prepare folder --images photos --captions data/captions.jsonl --output {}
prepare scan-npy --input scan --output {}
prepare coco-annotations official --instances instances.json --captions coco.json --dev 0 --test 0 --output {}
train --data.folder data --output {}
index model data/dev.h5 --output {}
export model --format torch --output {}
""".strip().splitlines()
"""Commands that are right but for the place of what they write, a file or several in a folder."""

UNWRITABLE = [
    *(command.format("file/out.png") for command in (*FILES, *FOLDERS)),
    *(command.format("folder.png") for command in FILES),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a right input for every program."""
    home = tmp_path_factory.mktemp("home")
    for name in ("photos", "npz", "scan", "data", "folder", "folder.png", "classes/0", "classes/1"):
        (home / name).mkdir(parents=True)
    (home / "file").write_text("neither this nor that\n")
    make_data(home / "data")
    for number in range(10):
        Image.new("RGB", (9, 9)).save(home / "photos" / f"dev-{number}.png")
        Image.new("RGB", (9, 9)).save(home / "classes" / str(number % 2) / f"{number}.png")
    np.savez(home / "npz" / "7.npz", x=np.ones((1, 2), "f4"))
    np.save(home / "scan" / "train_ims.npy", np.ones((1, 1, 2), "f4"))
    (home / "scan" / "train_caps.txt").write_text("a dog\n" * 5)
    arrays = [base64.b64encode(np.ones((1, dim), "<f4").tobytes()).decode() for dim in (4, 2)]
    (home / "a.tsv").write_text("\t".join(["7", "9", "9", "1", *arrays]) + "\n")
    (home / "flickr.token").write_text("7.jpg#0\ta dog\n")
    coco = {
        "images": [{"id": 7, "width": 9, "height": 9}],
        "categories": [{"id": 1}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "a dog", "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    (home / "coco.json").write_text(json.dumps(coco))
    (home / "instances.json").write_text(json.dumps(coco))
    checkpoint = GOLDEN / "s1_scan_basic.pth.tar"
    (home / "model.pth.tar").symlink_to(checkpoint)
    words = len(torch.load(checkpoint, weights_only=False)["model"][1]["embed.weight"])
    Vocabulary([f"word{number}" for number in range(words - 4)]).save(home / "vocabulary.json")
    text = {"name": "gru", "dim": 4, "word_dim": 4}
    image = {"name": "regions", "dim": 4, "input_dim": DIM}
    Matcher(image, text, {"name": "scan"}, Vocabulary(["a", "and", *THINGS]).words).save_pretrained(home / "model")
    Embedder({"name": "mlp", "input_dim": 3}, dim=4).save_pretrained(home / "embedder")
    (home / "mine.csv").write_text("image,caption\n7.jpg,a dog\n")
    (home / "list.txt").write_text("7.jpg\n")
    (home / "link.tsv").symlink_to("a.tsv")
    (home / "dangling.h5").symlink_to("nowhere/a.h5")
    (home / "coco").mkdir()
    (home / "coco" / "captions.jsonl").write_text(json.dumps(coco))
    (home / "coco" / "vocabulary.json").write_text('{"image_id": "dev-0", "caption": "a dog"}\n')
    photographs = sorted((home / "classes").rglob("*.png"))
    save_index(home / "birds.jsonl", [LabelledImage(path, path.parent.name, "test") for path in photographs])
    with zipfile.ZipFile(home / "birds.zip", "w") as archive:
        for path in photographs:
            archive.write(path, path.relative_to(home / "classes"))
    labelled = LabelledSet([f"{number}.png" for number in range(8)], ["0", "1"] * 4, ["test"] * 8)
    save_features(home / "features.h5", torch.rand(8, 3), labelled, {})
    return home


@pytest.fixture
def ended(home, monkeypatch, capsys):
    """Runs a command that is to fail, and gives the exit status and what stderr says."""
    monkeypatch.chdir(home)
    monkeypatch.setitem(EXTRACTORS, "mean-color", MeanColor)

    def run(command: str) -> tuple[object, list[str]]:
        with pytest.raises(SystemExit) as stopped:
            main(command.split())
        return stopped.value.code, capsys.readouterr().err.splitlines()

    return run


def told_in_one_line(command: str, status: object, lines: list[str]) -> bool:
    """Whether a command ended with status 2 and one line, after the progress bars."""
    prog = " ".join(["xmodal", *command.split()[: 2 if command.startswith("prepare") else 1]])
    told = [line for line in lines if line.startswith("xmodal")]
    return status == 2 and told == lines[-1:] and told[0].startswith(f"{prog}: ") and len(told[0]) > len(prog) + 10


@pytest.mark.parametrize("command", INPUTS)
@pytest.mark.parametrize("wrong", ["nowhere", "folder", "file"])
def test_wrong_input_is_told_in_one_line(command, wrong, ended, home):
    status, lines = ended(command.format(wrong))
    assert told_in_one_line(command, status, lines), (status, lines)
    assert not (home / "out").exists()


@pytest.mark.parametrize("command", UNWRITABLE)
def test_an_output_that_cannot_be_written_is_told_in_one_line(command, ended, home):
    status, lines = ended(command)
    assert told_in_one_line(command, status, lines), (status, lines)
    assert not any((home / "folder.png").iterdir())


@pytest.mark.parametrize("option", ["--json", "--map", "--neighbors"])
def test_results_that_cannot_be_written_are_told_before_the_work(option, ended):
    """Before the features are even looked for."""
    status, lines = ended(f"evaluate-embedder embedder --path nowhere {option} file/out.png")
    assert status == 2
    assert "cannot write file/out.png" in lines[-1]


OVER_INPUT = """
prepare captions coco --input coco.json --output coco.json
prepare captions flickr --input flickr.token --output list.txt --split-lists train list.txt
prepare captions table --input mine.csv --output mine.csv
prepare captions table --input data/captions.jsonl --output data/dev.h5 --only-images-of data/dev.h5
prepare vocabulary --captions data/captions.jsonl --output ./data/captions.jsonl
prepare folder --images photos --captions coco/vocabulary.json --output coco --overwrite
prepare regions --images photos --extractor mean-color --output data/captions.jsonl --captions data/captions.jsonl \
    --split dev --overwrite
prepare regions --images photos --extractor mean-color --output photos/dev-1.png --overwrite
prepare bottom-up-tsv --input a.tsv --dim 2 --output a.tsv --overwrite
prepare npz-folder --input npz --dim 2 --output npz/7.npz --overwrite
prepare features --input a.tsv --output link.tsv --overwrite
prepare coco-annotations official --instances instances.json --captions coco/captions.jsonl --dev 0 --test 0 \
    --output coco
prepare scan-npy --input scan --output coco --karpathy coco/captions.jsonl
prepare labelled folder --input birds.zip --train-classes 1 --output birds.zip --overwrite
prepare labelled features --input birds.jsonl --output birds.jsonl --overwrite
prepare labelled features --input birds.jsonl --output classes/0/0.png --overwrite
evaluate model --data.folder data --data.split dev --json data/captions.jsonl
evaluate model --data.folder data --data.split dev --report data/dev.h5
evaluate-embedder embedder --path features.h5 --json features.h5
inspect photos/dev-0.png --extractor mean-color --output photos/dev-0.png
search model dog --data.folder data --data.split dev --images photos --top 10 --output photos/dev-0.png
explain model dev-0 dog --data.folder data --data.split dev --images photos --output photos/dev-0.png
index model data/dev.h5 --output data --overwrite
index model data/dev.h5 --output model --overwrite
export model --format torch --output model
"""
"""Commands whose output is something that they read."""


@pytest.mark.parametrize("command", OVER_INPUT.replace("\\\n    ", "").strip().splitlines())
def test_what_is_read_is_not_written_over(command, ended, home):
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    status, lines = ended(command)
    assert told_in_one_line(command, status, lines), (status, lines)
    assert "would be overwritten, and is read" in lines[-1]
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_captions_may_take_the_place_of_captions(home, monkeypatch):
    monkeypatch.chdir(home)
    content = (home / "data" / "captions.jsonl").read_bytes()
    (home / "copy.jsonl").write_bytes(content)
    main(
        ["prepare", "captions", "table", "--input", "copy.jsonl", "--output", "copy.jsonl", "--captions-per-image", "1"]
    )
    assert 0 < len((home / "copy.jsonl").read_bytes()) < len(content)


@pytest.mark.parametrize("output", ["file/out.h5", "folder.png", "dangling.h5"])
def test_an_output_that_cannot_be_written_is_told_before_images_are_computed(output, ended, home, monkeypatch):
    monkeypatch.setattr("xmodal.prepare.labelled_datasets.load_labelled", lambda *_, **__: pytest.fail("too late"))
    command = f"prepare labelled features --input birds.jsonl --output {output}"
    status, lines = ended(command if output == "dangling.h5" else f"{command} --overwrite")
    assert told_in_one_line(command, status, lines), (status, lines)


def test_an_archive_is_not_unpacked_to_where_the_index_goes(ended, home):
    command = "prepare labelled folder --input birds.zip --train-classes 1 --output birds"
    status, lines = ended(command)
    assert told_in_one_line(command, status, lines)
    assert "call it birds.jsonl" in lines[-1]
    assert not (home / "birds").exists()


@pytest.mark.parametrize(
    "command",
    [
        "prepare features --input pipe.tsv --output out",
        "prepare features --input pipe.mdb --output out --layout lmdb",
        "prepare labelled folder --input pipe.tsv --train-classes 1 --output out.jsonl",
        "prepare vocabulary --captions pipe.tsv --output out",
        "prepare captions table --input pipe.tsv --output out",
        "inspect pipe.tsv --extractor mean-color --output out",
    ],
)
def test_pipes_are_not_waited_for(command, ended, home):
    for name in ("pipe.tsv", "pipe.mdb"):
        if not (home / name).exists():
            os.mkfifo(home / name)
    try:
        status, lines = ended(command)
    finally:
        (home / "pipe.tsv").unlink()
        (home / "pipe.mdb").unlink()
    assert told_in_one_line(command, status, lines), (status, lines)


def test_every_program_is_here():
    named = {command.split()[0] for command in (*INPUTS, *UNWRITABLE)} | {"recipes", "prepare"}
    assert named == {*COMMANDS, "prepare"}
    prepared = {command.split()[1] for command in INPUTS if command.startswith("prepare")}
    assert prepared == set(PROGRAMS)
