from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from unittest import mock

import pytest
import torch
import tyro
from PIL import Image

from preprocess import regions
from preprocess.image_ids import read_image_names
from preprocess.regions import RegionsConfig, main
from xmodal.data.image_folder import find_images
from xmodal.data.images import read_image
from xmodal.data.region_store import RegionStore
from xmodal.encoders.extractors import EXTRACTORS, Regions
from xmodal.entry import ends_in_one_line
from xmodal.search.pictures import find_image


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


def extract(config, extractor):
    return regions.extract(config, extractor, {"threshold": None})


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
    assert store.extractor == {"name": "mean-color", "threshold": None}
    assert store.class_id(0).tolist() == [7]
    assert store.confidence(0).tolist() == [0.5]


def test_batch_size_changes_nothing(config, tmp_path):
    extract(config, MeanColor())
    other = replace(config, output=tmp_path / "other.h5", batch_size=5)
    extract(other, MeanColor())
    one, two = RegionStore(config.output), RegionStore(other.output)
    assert one.image_id == two.image_id
    assert one.batch(range(len(one))).regions.equal(two.batch(range(len(two))).regions)


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
    assert read_image_names(path, "dev") == {"10_ab": "10_ab"}


def karpathy(name, split, **more):
    return {"filename": name, "split": split, "sentences": [], **more}


def test_karpathys_json_chooses_and_names_the_images(config, tmp_path):
    path = tmp_path / "dataset.json"
    for name in ("b", "d"):
        (config.images / f"{name}.png").rename(config.images / f"COCO_val2014_{ord(name):012}.png")
    images = [
        karpathy("COCO_val2014_000000000100.jpg", "restval", cocoid=100),
        karpathy("a.jpg", "val"),
        karpathy("COCO_val2014_000000000098_gone.jpg", "train", cocoid=98),
    ]
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    assert list(extract(replace(config, captions=path, split="train"), MeanColor())) == ["98"]
    assert RegionStore(config.output).image_id == ["100"]
    extract(replace(config, captions=path, split="dev", overwrite=True), MeanColor())
    assert RegionStore(config.output).image_id == ["a"]


def test_cocos_json_chooses_and_names_the_images(config, tmp_path):
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps({"images": [{"id": 9, "file_name": "e.jpg"}, {"id": 4, "file_name": "c.jpg"}]}))
    extract(replace(config, captions=path), MeanColor())
    assert RegionStore(config.output).image_id == ["9", "4"]
    with pytest.raises(ValueError, match=r"names no image of split 'test'; its splits are \[\]"):
        read_image_names(path, "test")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"images": [{}]}', '{"images": [{"filename": "a", "sentences": []}]}']
)
def test_other_json_is_refused(tmp_path, text):
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"captions\.json is neither Karpathy's JSON .* nor COCO's"):
        read_image_names(path)


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


class FailsOnWide(MeanColor):
    """Fails on images wider than 12 pixels in four ways, each for another width."""

    def __call__(self, images):
        if any(image.width == 13 for image in images):
            raise RuntimeError("a map is too small\nfor its kernel")
        none, few = torch.zeros(0, 3), torch.ones(1, 3)
        ways = {11: (few * torch.nan, 1), 12: (none, 0), 14: (torch.ones(9, 3), 9)}
        found = super().__call__(images)
        return [
            Regions(ways[image.width][0], torch.zeros(ways[image.width][1], 4)) if image.width in ways else regions
            for image, regions in zip(images, found, strict=True)
        ]


def test_what_the_extractor_fails_on_is_skipped_and_listed(config, monkeypatch, capsys):
    monkeypatch.setitem(EXTRACTORS, "fails", FailsOnWide)
    main(replace(config, extractor="fails"))
    assert RegionStore(config.output).image_id == ["d"], "in a batch with one that fails"
    assert config.output.with_name("store.h5.skipped.txt").read_text().splitlines() == [
        "a\tthe extractor failed on it: its features or boxes are NaN or infinite as float32",
        "b\tthe extractor failed on it: a map is too small for its kernel",
        "e\tthe extractor failed on it: it found 9 regions, wanted 1 to 2",
        "c\tthe extractor failed on it: it found 0 regions, wanted 1 to 2",
    ]
    assert "ignored 1 files: 1 .txt" in capsys.readouterr().out
    with pytest.raises(ValueError, match="NaN or infinite"):
        extract(replace(config, output=config.output.with_name("strict.h5"), strict=True, batch_size=5), FailsOnWide())


def test_finished_parts_outlive_bad_photographs_that_are_taken_away_or_repaired(config):
    damage(config.images)
    config = replace(config, batch_size=1, strict=True)
    for name in ("a.jpg", "b.png"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            extract(config, MeanColor())
        (config.images / name).unlink()
    assert extract(replace(config, strict=False, join="virtual"), first := MeanColor()) == {"e": mock.ANY}
    assert first.batches == [1, 1], "d and c; e cannot be read"
    Image.new("RGB", (14, 20)).save(config.images / "e.png")
    again = MeanColor()
    assert extract(replace(config, overwrite=True), again) == {}
    assert again.batches == [1], "e alone"
    assert RegionStore(config.output).image_id == ["d", "e", "c"]


def test_file_names_need_not_be_utf_8(config, monkeypatch):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    Image.new("RGB", (9, 9), "red").save(config.images / f"{name}.png")
    (config.images / f"{name}_bad.png").touch()
    monkeypatch.setitem(EXTRACTORS, "mean-color", MeanColor)
    for join in ("copy", "virtual"):
        # Whoever captures what a test prints may want UTF-8 of it.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), ends_in_one_line("regions", []):
            main(replace(config, extractor="mean-color", join=join, overwrite=True))
        assert name in RegionStore(config.output).image_id
        assert RegionStore(config.output).validate() == []
    assert b"caf\xe9_bad\t" in config.output.with_name("store.h5.skipped.txt").read_bytes()
    assert find_image(config.images, name).stem == name


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


def test_many_batches_are_few_parts(config, monkeypatch):
    monkeypatch.setattr(regions, "MAX_PARTS", 2)
    extract(replace(config, batch_size=1, join="virtual"), MeanColor())
    assert sorted(path.name for path in config.output.with_name("store.h5.parts").glob("*.h5")) == [
        "000000.h5",
        "000001.h5",
    ]
    assert RegionStore(config.output).image_id == ["a", "b", "d", "e", "c"]


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
        read_image_names(path)


def test_bad_choices(config, captions, tmp_path):
    with pytest.raises(FileNotFoundError, match="no captions file"):
        read_image_names(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match=r"no image of split 'val'; its splits are \['train', 'test'\]"):
        read_image_names(captions, "val")
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
