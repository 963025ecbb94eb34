"""One command from photographs and a table to a folder that training takes; whatever stops it, it goes on."""

from __future__ import annotations

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mean_color import MeanColor
from PIL import Image
from test_regions_in_parts import contents

from preprocess.splits import draw_splits
from xmodal.cli import main
from xmodal.data import RegionStore, Vocabulary, load_captions
from xmodal.encoders.extractors import EXTRACTORS

COLORS = ("red", "green", "blue", "yellow")


class StopsAfter(MeanColor):
    """Ctrl-C comes before the given batch."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def __call__(self, images):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__call__(images)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Photographs of one color each and a table of two captions each, named by file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EXTRACTORS, "mean-color", MeanColor)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    rows = []
    for number in range(40):
        color = COLORS[number % 4]
        name = f"{'more/' if number % 3 else ''}{number:02}.png"
        Image.new("RGB", (8, 9), color).save(tmp_path / "photos" / name)
        rows += [[f"{number:02}.png", f"a {color} thing"], [f"{number:02}.png", f"all is {color}"]]
    write_table(tmp_path / "mine.csv", ["image_id", "caption"], rows)
    return tmp_path


def write_table(path, heading, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([heading, *rows])


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def prepare(*options, output="data", table="mine.csv"):
    arguments = ["--images", "photos", "--captions", table, "--output", output, "--extractor", "mean-color"]
    main(["prepare", "folder", *arguments, "--batch-size", "2", *options])


def fails(capsys, *options, **places) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        prepare(*options, **places)
    return stopped.value.code, capsys.readouterr().err.splitlines()[-1]


def test_photographs_and_a_table_become_what_training_takes(home, capsys):
    prepare("--dev", "4")
    told = capsys.readouterr().out
    assert "mine.csv: 80 captions of 40 images (" in told
    assert "ERROR" not in told
    sizes = {"train": 32, "dev": 4, "test": 4}
    for split, size in sizes.items():
        store = RegionStore(home / "data" / f"{split}.h5")
        captions = load_captions(home / "data" / "captions.jsonl", split)
        assert len(store) == size
        assert {caption.image_id for caption in captions} == set(store.image_id)
        for caption in captions:
            color = Image.new("RGB", (1, 1), COLORS[int(caption.image_id) % 4]).getpixel((0, 0))
            assert caption.caption.split()[-1] == COLORS[int(caption.image_id) % 4] or "thing" in caption.caption
            assert store[store.index(caption.image_id)].tolist() == [list(color)]
    assert {"a", "thing", "all", "is", *COLORS} <= set(Vocabulary.load(home / "data" / "vocabulary.json").words)

    small = ["--model.image.dim", "8", "--model.text.dim", "8", "--batch-size", "32", "--epochs", "1", "--no-progress"]
    main(["train", "--data.folder", "data", "--output", "run", *small])
    main(["evaluate", "run", "--data.folder", "data", "--json", "results.json"])
    assert (home / "results.json").is_file()


def test_what_does_not_go_together_is_left_out_and_counted(home, capsys):
    (home / "photos" / "03.png").write_bytes(b"no image")
    Image.new("RGB", (8, 9)).save(home / "photos" / "silent.png")
    rows = read_table(home / "mine.csv")
    write_table(home / "mine.csv", ["image_id", "caption"], [*rows, ["gone.jpg", "a lost thing"], ["05.png", " "]])
    prepare()
    told = capsys.readouterr().out
    assert "left out 1 captions that are empty, the first of '05'" in told
    assert "left out 1 captions that have no image in photos, the first of 'gone'" in told
    assert "left out 1 images without a caption" in told
    assert "left out 2 captions of images that cannot be read" in told
    assert {caption.image_id for caption in load_captions(home / "data" / "captions.jsonl")} == {
        f"{number:02}" for number in range(40) if number != 3
    }
    (skipped,) = (home / "data").glob("*.skipped.txt")
    assert skipped.read_text().startswith("03\t")


def test_the_splits_of_a_table_hold(home, capsys):
    rows = read_table(home / "mine.csv")
    splits = ["train", "train", "dev", "test", ""]
    write_table(
        home / "split.csv",
        ["image_id", "caption", "split"],
        [[*row, splits[int(row[0][:2]) % 5]] for row in rows],
    )
    prepare(table="split.csv")
    for split in ("train", "dev", "test"):
        numbers = {int(image_id) % 5 for image_id in RegionStore(home / "data" / f"{split}.h5").image_id}
        assert {splits[number] for number in numbers} == {split}
    assert "left out 16 captions that are in no split" in capsys.readouterr().out
    status, told = fails(capsys, "--dev", "3", table="split.csv", output="other")
    assert (status, "so does --dev" in told) == (2, True)


def test_the_same_command_goes_on_after_ctrl_c(home, monkeypatch, capsys):
    monkeypatch.setitem(EXTRACTORS, "mean-color", lambda: StopsAfter(20))
    prepare(output="whole")
    monkeypatch.setitem(EXTRACTORS, "mean-color", lambda: StopsAfter(17))  # all of train, one of dev
    status, told = fails(capsys)
    assert (status, told) == (130, "xmodal prepare folder: stopped by Ctrl-C; the same command goes on from here")
    train = (home / "data" / "train.h5").stat().st_mtime_ns
    done = {path.name: path.stat().st_mtime_ns for path in (home / "data" / "dev.h5.parts").glob("*.json")}
    assert len(done) == 1
    monkeypatch.setitem(EXTRACTORS, "mean-color", lambda: StopsAfter(3))  # all that is left
    prepare()
    assert (home / "data" / "train.h5").stat().st_mtime_ns == train
    for name in ("train.h5", "dev.h5", "test.h5"):
        assert contents(home / "data" / name) == contents(home / "whole" / name)
    for name in ("captions.jsonl", "vocabulary.json", "prepared.json"):
        assert (home / "data" / name).read_bytes() == (home / "whole" / name).read_bytes()
    monkeypatch.setitem(EXTRACTORS, "mean-color", lambda: StopsAfter(0))
    prepare()  # there is nothing left to do


def test_another_command_does_not_mix_with_what_is_there(home, capsys):
    prepare()
    before = {path: path.read_bytes() for path in (home / "data").iterdir()}
    for options, what in (
        (["--seed", "1"], "captions"),
        (["--dtype", "float16"], "dtype"),
        (["--test", "0"], "captions"),
    ):
        status, told = fails(capsys, *options)
        assert status == 2
        assert f"was made with other {what}" in told
        assert "--overwrite" in told
    assert {path: path.read_bytes() for path in (home / "data").iterdir()} == before
    prepare("--test", "0", "--overwrite")
    assert not (home / "data" / "test.h5").exists()
    assert len(RegionStore(home / "data" / "train.h5")) == 36


def test_files_of_somebody_else_are_not_replaced(home, capsys):
    (home / "data").mkdir()
    (home / "data" / "vocabulary.json").write_text("mine")
    status, told = fails(capsys)
    assert (status, "vocabulary.json was not made by this program" in told) == (2, True)
    assert (home / "data" / "vocabulary.json").read_text() == "mine"
    (home / "mine.csv").rename(home / "data" / "captions.jsonl")
    status, told = fails(capsys, "--overwrite", table="data/captions.jsonl")
    assert (status, "would be overwritten" in told) == (2, True)
    assert (home / "data" / "captions.jsonl").exists()


@pytest.mark.parametrize(
    ("heading", "row", "message"),
    [
        (
            ["image_id", "caption"],
            ["x.png", "a dog"],
            "no caption of bad.csv is about an image in photos: the table names",
        ),
        (["image_id", "caption", "split"], ["01.png", "a dog", "../train"], "split '../train' is no name for a file"),
        (["image_id", "caption"], ["01.png", "a dog"], "1 images are too few for 1 dev and 1 test images"),
    ],
)
def test_a_table_that_will_not_do_is_told(home, heading, row, message, capsys):
    write_table(home / "bad.csv", heading, [row])
    status, told = fails(capsys, table="bad.csv")
    assert status == 2
    assert message in told
    assert not (home / "data").exists()


def test_a_damaged_record_is_named(home, capsys):
    (home / "data").mkdir()
    (home / "data" / "prepared.json").write_text(json.dumps({"options": {}, "splits": ["../x"]}))
    status, told = fails(capsys)
    assert (status, "data/prepared.json is damaged" in told) == (2, True)


@given(count=st.integers(3, 60), dev=st.integers(0, 2) | st.floats(0, 0.3), seed=st.integers(0, 9))
def test_splits_are_as_large_as_asked_for(count, dev, seed):
    images = [str(number) for number in range(count)]
    split_of = draw_splits(images, dev=dev, test=0, seed=seed)
    assert list(split_of) == images
    assert draw_splits(images, dev=dev, test=0, seed=seed) == split_of
    wanted = dev if dev >= 1 else max(1, round(dev * count)) if dev else 0
    assert list(split_of.values()).count("dev") == wanted
    assert list(split_of.values()).count("train") == count - wanted


@pytest.mark.parametrize("dev", [-1, 1.5, -0.1, float("nan"), float("inf")])
def test_splits_of_no_size_are_refused(dev):
    with pytest.raises(ValueError, match="wanted a share below 1 or a whole number of images"):
        draw_splits(["7", "8", "9"], dev=dev, test=0, seed=0)
