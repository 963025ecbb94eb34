"""Conversions that were stopped go on where they were, and end with what an undisturbed one makes."""

from __future__ import annotations

import numpy as np
import pytest

from preprocess import precomputed, scan_npy
from preprocess.parts import folder_of_parts
from preprocess.precomputed import Record, StoreConfig, convert
from scripts.attack import kills
from scripts.attack.programs import PROGRAMS, make_npy
from scripts.attack.trials import RIGHT
from xmodal.data import RegionStore, load_captions
from xmodal.data.atomic import locked

CONVERSIONS = ["prepare bottom-up-tsv", "prepare npz-folder", "prepare features", "prepare scan-npy"]


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_conversion_that_is_killed_goes_on_to_the_same_end(name, tmp_path):
    outcomes = list(kills.attack(PROGRAMS[name], tmp_path, kills=4))
    assert len(outcomes) == 4
    assert [outcome for outcome in outcomes if outcome[1] != RIGHT] == []


@pytest.fixture
def small_parts(monkeypatch):
    for module in (precomputed, scan_npy):
        monkeypatch.setattr(module, "RECORDS_A_PART", 2)


class Records:
    """Seven images; reading stops at one of them, and what was read is counted."""

    def __init__(self, stop=None):
        self.stop, self.read = stop, []

    def __iter__(self):
        for number in range(7):
            yield f"row {number}", str(number), lambda number=number: self.record(number)

    def record(self, number):
        if number == self.stop:
            raise KeyboardInterrupt
        self.read.append(number)
        if number == 1:
            raise ValueError("cut off")
        return Record(np.full((1 + number % 3, 2), number + 1.0), boxes=np.ones((1 + number % 3, 4)))


def test_what_was_read_is_not_read_again(tmp_path, small_parts):
    config = StoreConfig(output=tmp_path / "train.h5")
    with pytest.raises(KeyboardInterrupt):
        convert(config, Records(stop=5))
    assert not config.output.exists()
    rest = Records()
    assert convert(config, rest) == (6, {"row 1": "cut off"})
    assert rest.read == [4, 5, 6]
    assert RegionStore(config.output).image_id == ["0", "2", "3", "4", "5", "6"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.h5", "train.h5.skipped.txt"]
    with pytest.raises(FileExistsError, match=r"train\.h5 exists\. Pass --overwrite"):
        convert(config, Records())


def test_images_of_other_parts_are_known(tmp_path, small_parts):
    records = [(f"row {row}", name, lambda: Record(np.ones((1, 2)))) for row, name in enumerate("abca")]
    assert convert(StoreConfig(output=tmp_path / "a.h5"), records)[1] == {"row 3": "image 'a' came before, in row 0"}
    with_boxes = Record(np.ones((1, 2)), boxes=np.ones((1, 4)))
    records = [*records[:2], ("row 2", "c", lambda: with_boxes), ("row 3", "d", lambda: Record(np.ones((1, 3))))]
    skipped = convert(StoreConfig(output=tmp_path / "b.h5"), records)[1]
    assert skipped["row 2"] == "it comes with ['boxes'], the first image with features only"
    assert skipped["row 3"] == "features have shape (1, 3), wanted (region, 2)"


def test_a_part_without_a_good_image_is_none(tmp_path, small_parts):
    bad = [("row 0", "a", lambda: Record(np.full((1, 2), np.nan))), ("row 1", "b", lambda: Record(np.zeros((1, 2))))]
    count, skipped = convert(
        StoreConfig(output=tmp_path / "a.h5"), [*bad, ("row 2", "c", lambda: Record(np.ones((1, 2))))]
    )
    assert (count, list(skipped)) == (1, ["row 0", "row 1"])
    with pytest.raises(ValueError, match="no record is good"):
        convert(StoreConfig(output=tmp_path / "b.h5"), bad)
    assert not folder_of_parts(tmp_path / "b.h5").exists()


def test_parts_of_other_inputs_are_not_mixed_in(tmp_path, small_parts):
    with pytest.raises(KeyboardInterrupt):
        convert(StoreConfig(output=tmp_path / "a.h5"), Records(stop=5))
    with pytest.raises(ValueError, match=r"a\.h5\.parts holds parts of an earlier run"):
        convert(StoreConfig(output=tmp_path / "a.h5", dtype="float16"), Records())


def test_two_conversions_into_one_store_are_one_too_many(tmp_path):
    config = StoreConfig(output=tmp_path / "a.h5")
    with locked(folder_of_parts(config.output)), pytest.raises(BlockingIOError, match="is being written by process"):
        convert(config, Records())


def test_a_damaged_split_is_told_and_the_others_are_kept(tmp_path, small_parts, capsys):
    make_npy(tmp_path)
    whole = (tmp_path / "dev_ims.npy").read_bytes()
    (tmp_path / "dev_ims.npy").write_bytes(whole[:200])
    config = scan_npy.Config(tmp_path, tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"1 of 2 splits were left out, .* dev: .*dev_ims\.npy is not a NumPy array file"
    ):
        scan_npy.main(config)
    made = (tmp_path / "out" / "train.h5").stat().st_mtime_ns
    assert {caption.split for caption in load_captions(tmp_path / "out" / "captions.jsonl")} == {"train"}
    (tmp_path / "dev_ims.npy").write_bytes(whole)
    scan_npy.main(config)
    assert (tmp_path / "out" / "train.h5").stat().st_mtime_ns == made
    assert {caption.split for caption in load_captions(tmp_path / "out" / "captions.jsonl")} == {"train", "dev"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "captions.jsonl",
        "dev.h5",
        "manifest.json",
        "train.h5",
    ]
    with pytest.raises(FileExistsError, match=r"train\.h5 exists"):
        scan_npy.main(config)
