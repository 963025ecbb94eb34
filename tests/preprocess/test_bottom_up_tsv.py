"""TSV rows come out of the store bit for bit; damaged and repeated rows are told by file and row, not lost."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest

from preprocess.bottom_up_tsv import Config, main
from xmodal.data import RegionStore

DIM = 16


def row(image_id, count, *, layout=6):
    """One image as the released files have it, and its arrays."""
    rng = np.random.default_rng(count)
    features, boxes = rng.normal(size=(count, DIM)).astype("<f4"), rng.uniform(0, 99, (count, 4)).astype("<f4")
    class_id, confidence = rng.integers(1600, size=count).astype("<i8"), rng.random(count, dtype="f4")
    end = [str(count).encode(), *(base64.b64encode(array.tobytes()) for array in (boxes, features))]
    if layout == 6:
        columns = [image_id.encode(), b"640", b"480", *end]
    else:
        classes = [base64.b64encode(array.tobytes()) for array in (class_id, confidence)]
        columns = [image_id.encode(), b"480", b"640", *classes, *classes, *end]
    return b"\t".join(columns) + b"\n", (features, boxes, class_id, confidence)


def convert(tmp_path, *files, **options):
    """Write the files, convert them, return the store."""
    paths = []
    for number, lines in enumerate(files):
        paths.append(tmp_path / f"part{number}.tsv")
        paths[-1].write_bytes(b"".join(lines))
    output = tmp_path / "out" / "train.h5"
    main(Config(input=tuple(paths), output=output, dim=DIM, **options))
    return RegionStore(output)


@pytest.mark.parametrize("layout", [6, 10])
def test_round_trip_is_exact(tmp_path, layout):
    images = {f"{name}": row(f"{name}", count, layout=layout) for name, count in ((9, 36), (7, 10), (8, 1))}
    lines = [line for line, _ in images.values()]
    store = convert(tmp_path, lines[:2], [lines[2].rstrip(b"\n")])
    assert store.image_id == ["9", "7", "8"]
    for index, (_, (features, boxes, class_id, confidence)) in enumerate(images.values()):
        assert store[index].numpy().tobytes() == features.tobytes()
        assert store.boxes(index).numpy().tobytes() == boxes.tobytes()
        assert store.image_size(index) == (640, 480)
        if layout == 10:
            np.testing.assert_array_equal(store._row("class_id", index)[: len(class_id)], class_id)
            np.testing.assert_array_equal(store._row("confidence", index)[: len(class_id)], confidence)


def test_only_the_images_of_a_split_under_their_coco_ids(tmp_path):
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"image_id": "9", "split": "dev"}\n{"image_id": "8", "split": "train"}\n')
    lines = [row(f"COCO_val2014_{number:012}", 3)[0] for number in (7, 8, 9)]
    store = convert(tmp_path, lines, captions=captions, split="dev", coco_ids=True)
    assert store.image_id == ["9"]
    with pytest.raises(ValueError, match=r"--split dev needs --captions"):
        convert(tmp_path, lines, split="dev", overwrite=True)


good = row("1", 3)[0]
columns = good.rstrip(b"\n").split(b"\t")


def changed(column, value):
    return b"\t".join([*columns[:column], value, *columns[column + 1 :]]) + b"\n"


DAMAGED = {
    "cut in a number": (good[:6], r"3 columns, wanted 2, 6, 7, 8 or 10; is the row cut off"),
    "cut in the features": (good[:-40], r"features (is not base64|holds \d+ bytes, wanted 192 for 3 x 16)"),
    "cut at four letters": (changed(5, columns[5][:-8]), r"features holds \d+ bytes, wanted 192 for 3 x 16 numbers"),
    "not base64": (changed(4, b"*" + columns[4][1:]), r"boxes is not base64"),
    "counts that differ": (changed(3, b"2"), r"features holds 192 bytes, wanted 128"),
    "no count": (changed(3, b"many"), r"num_boxes is b'many', wanted a number"),
    "no region": (changed(3, b"0"), r"num_boxes is 0, wanted at least 1"),
    "not a number": (
        changed(5, base64.b64encode(np.full((3, DIM), np.nan, "<f4").tobytes())),
        r"features are NaN",
    ),
    "no name": (changed(0, b""), r"image_id is empty"),
    "an empty line": (b"\n", r"1 columns"),
    "too many regions": (row("1", 37)[0], r"37 regions, wanted 1 to 36"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_rows_are_listed_and_good_rows_kept(tmp_path, damage, capsys):
    line, reason = DAMAGED[damage]
    files = [row("2", 4)[0], line.rstrip(b"\n") + b"\n", row("3", 5)[0]], [row("2", 4)[0], good]
    with pytest.raises(SystemExit, match=r"train\.h5: 3 images; 2 left out") as failure:
        convert(tmp_path, *files)
    assert failure.value.code != 0
    assert RegionStore(tmp_path / "out" / "train.h5").image_id == ["2", "3", "1"]
    first, second = (tmp_path / "out" / "train.h5.skipped.txt").read_text().splitlines()
    assert first.startswith(f"{tmp_path / 'part0.tsv'}, row 2\t")
    assert re.search(reason, first)
    assert second == (f"{tmp_path / 'part1.tsv'}, row 1\timage '2' came before, in {tmp_path / 'part0.tsv'}, row 1")
    convert(tmp_path, *files, overwrite=True, skip_bad=True)
    assert "2 left out" in capsys.readouterr().out


def test_nothing_is_written_if_no_row_is_good(tmp_path):
    with pytest.raises(ValueError, match=r"no record is good\. .*part0\.tsv, row 1: 1 columns"):
        convert(tmp_path, [b"this is a text file\n"])
    with pytest.raises(FileNotFoundError, match="no TSV file at"):
        main(Config(input=(tmp_path / "none.tsv",), output=tmp_path / "out" / "train.h5"))
    assert not list((tmp_path / "out").iterdir())


def test_an_image_without_a_good_row_is_listed(tmp_path):
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"image_id": "1", "split": "dev"}\n{"image_id": "8", "split": "dev"}\n')
    with pytest.raises(SystemExit, match=r"1 left out.* image 8: named in .*captions\.jsonl"):
        convert(tmp_path, [good], captions=captions)


def test_empty_lines_at_the_end_are_no_damage(tmp_path):
    (tmp_path / "train.tsv").write_bytes(row("2", 4)[0] + b"\r\n\n")
    main(Config(input=(tmp_path / "train.tsv",), output=tmp_path / "train.h5"))
    assert RegionStore(tmp_path / "train.h5").image_id == ["2"]
