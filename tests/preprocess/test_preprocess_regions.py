from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import tyro
from PIL import Image

from preprocess import regions
from preprocess.image_ids import read_image_ids
from preprocess.images import find_images, read_image
from preprocess.regions import RegionsConfig, extract, main
from xmodal.data.region_store import RegionStore
from xmodal.encoders.extractors import EXTRACTORS, Regions


class MeanColor:
    """One region, the whole image, described by its mean color."""

    name, dim, max_regions, weights_hash = "mean-color", 3, 2, "none"

    def __call__(self, images):
        self.batches = [*getattr(self, "batches", []), len(images)]
        return [
            Regions(
                torch.tensor([image.resize((1, 1)).getpixel((0, 0))], dtype=torch.float32),
                torch.tensor([[0.0, 0.0, *image.size]]),
                confidence=torch.tensor([0.5]),
                class_id=torch.tensor([7]),
            )
            for image in images
        ]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(["d.png", "a.jpg", "more/c.PNG", "b.png", "e.png"]):
        Image.new("RGB", (10 + number, 20), (10, 50 * number, 0)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def config(folder, tmp_path) -> RegionsConfig:
    return RegionsConfig(images=folder, output=tmp_path / "store.h5", batch_size=2)


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.jsonl"
    rows = [("b", "train"), ("b", "train"), ("d", "test"), ("a", "train"), ("zebra", "train")]
    path.write_text("".join(json.dumps({"image_id": name, "split": split}) + "\n" for name, split in rows))
    return path


def damage(folder):
    """Make three of the five images unreadable in different ways."""
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "b.png").write_text("not an image")
    (folder / "e.png").write_bytes(b"")


def test_a_folder_becomes_a_store(config):
    extractor = MeanColor()
    assert extract(config, extractor) == {}
    store = RegionStore(config.output)
    assert store.image_id == ["a", "b", "d", "e", "c"], "sorted by path"
    assert extractor.batches == [2, 2, 1]
    assert store.validate() == []
    assert store.image_size(0) == (11, 20)
    assert store.boxes(0).tolist() == [[0, 0, 11, 20]]
    assert store[1].tolist() == [[10, 150, 0]]
    assert store.attributes["extractor"] == "mean-color"
    assert store.attributes["weights_hash"] == "none"


def test_batch_size_changes_nothing(config, tmp_path):
    extract(config, MeanColor())
    other = replace(config, output=tmp_path / "other.h5", batch_size=5)
    extract(other, MeanColor())
    one, two = RegionStore(config.output), RegionStore(other.output)
    assert one.image_id == two.image_id
    assert one.read_all().regions.equal(two.read_all().regions)


def test_captions_choose_and_order_the_images(config, captions):
    skipped = extract(replace(config, captions=captions), MeanColor())
    assert RegionStore(config.output).image_id == ["b", "d", "a"]
    assert list(skipped) == ["zebra"]
    assert "not in the folder" in skipped["zebra"]


def test_a_split_chooses(config, captions):
    extract(replace(config, captions=captions, split="test"), MeanColor())
    assert RegionStore(config.output).image_id == ["d"]


def test_captions_may_name_files(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "10_ab.jpg", "split": "dev", "captions": ["x"]}\n')
    assert read_image_ids(path, "dev") == ["10_ab"]


def test_unreadable_images_are_skipped_and_listed(config, monkeypatch, capsys):
    damage(config.images)
    monkeypatch.setitem(EXTRACTORS, "mean-color", MeanColor)
    main(replace(config, extractor="mean-color"))
    assert RegionStore(config.output).image_id == ["d", "c"]
    listed = config.output.with_name("store.h5.skipped.txt")
    lines = [line.split("\t") for line in listed.read_text().splitlines()]
    assert [image_id for image_id, _ in lines] == ["a", "b", "e"]
    assert all("cannot read" in reason for _, reason in lines)
    assert "3 left out" in capsys.readouterr().out

    for name in ("a.jpg", "b.png", "e.png"):
        (config.images / name).unlink()
    main(replace(config, extractor="mean-color", overwrite=True))
    assert not listed.exists(), "the list of an earlier run is gone"


def test_strict_stops_and_leaves_nothing(config):
    damage(config.images)
    with pytest.raises(ValueError, match=r"cannot read .*a\.jpg"):
        extract(replace(config, strict=True), MeanColor())
    assert not config.output.exists()


def test_no_readable_image_is_an_error(config):
    for path in find_images(config.images).values():
        path.write_text("not an image")
    with pytest.raises(ValueError, match="no image"):
        extract(config, MeanColor())
    assert not config.output.exists()


def test_images_are_read_upright(tmp_path):
    image = Image.new("RGB", (30, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # lying on its side
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").size == (10, 30)


def test_an_id_means_one_image(folder):
    Image.new("RGB", (5, 5)).save(folder / "more" / "a.png")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png would share the id 'a'"):
        find_images(folder)


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of images at"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no image in"):
        find_images(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", '{"split": "train"}', '{"image_id": "a"}', '"text"'])
def test_bad_captions_are_named(line, tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image_id": "a", "split": "train"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"captions\.jsonl, line 2: wanted a JSON object"):
        read_image_ids(path)


def test_bad_choices(config, captions, tmp_path):
    with pytest.raises(FileNotFoundError, match="no captions file"):
        read_image_ids(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match=r"no image of split 'val'; its splits are \['train', 'test'\]"):
        read_image_ids(captions, "val")
    with pytest.raises(ValueError, match="--split test needs --captions"):
        extract(replace(config, split="test"), MeanColor())
    captions.write_text('{"image_id": "zebra", "split": "train"}\n')
    with pytest.raises(ValueError, match=r"none of the 1 images named in .* name 'zebra', the folder holds 'a'"):
        extract(replace(config, captions=captions), MeanColor())


def test_bad_batch_size(config):
    with pytest.raises(ValueError, match="batch_size is 0, wanted at least 1"):
        extract(replace(config, batch_size=0), MeanColor())


def test_unknown_extractor_is_answered_with_the_near_miss(config):
    with pytest.raises(ValueError, match="did you mean 'ssd-mobilenet'"):
        main(replace(config, extractor="ssd-mobilnet"))


def test_help_says_how_to_call_it(capsys):
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(RegionsConfig, description=regions.__doc__, args=["--help"])
    assert "python -m preprocess.regions" in capsys.readouterr().out
