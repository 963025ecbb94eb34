"""A good folder passes; each thing that can be wrong with one is found, named and ends with a failure."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from preprocess.verify import Config, main
from xmodal.data import Caption, RegionStoreWriter, save_captions
from xmodal.data.joined import join_stores

IMAGES = {"train": ["a", "b", "c"], "test": ["d", "e"]}


def write_store(folder, split, image_ids, **options):
    rng = np.random.default_rng(0)
    options = {"dim": 4, "max_regions": 3, "extractor": "by hand", "overwrite": True, **options}
    with RegionStoreWriter(folder / f"{split}.h5", **options) as writer:
        for image_id in image_ids:
            writer.write(image_id, rng.normal(size=(2, options["dim"])), [[0, 0, 5, 5], [1, 2, 3, 4]], (9, 9))


def write_captions(folder, images):
    captions = [
        Caption(image_id, f"{split} {image_id} {number}", "A dog.", split)
        for split, image_ids in images.items()
        for image_id in image_ids
        for number in range(2)
    ]
    save_captions(folder / "captions.jsonl", captions)


@pytest.fixture
def folder(tmp_path):
    for split, image_ids in IMAGES.items():
        write_store(tmp_path, split, image_ids)
    write_captions(tmp_path, IMAGES)
    return tmp_path


def problems(folder, capsys, **options):
    """The lines of the table that are errors."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as failure:
        main(Config(folder, **options))
    lines = [line for line in capsys.readouterr().out.splitlines() if "ERROR" in line]
    assert str(failure.value).startswith(f"{len(lines)} problem")
    return lines


def test_a_good_folder_passes(folder, capsys):
    main(Config(folder))
    test, train = capsys.readouterr().out.splitlines()
    assert test.startswith("test   ok     RegionStore(")
    assert train.endswith("3 images, up to 3 regions, dim 4; 6 captions")


def test_images_in_two_splits_are_found_except_where_one_test_is_part_of_the_other(folder, capsys):
    write_store(folder, "test", ["d", "a", "b"])
    write_captions(folder, {"train": "abc", "test": "dab"})
    lines = problems(folder, capsys)
    assert [line.split("ERROR")[1].strip() for line in lines] == [
        "leak: the stores have 2 images ('a', 'b') in train too",
        "leak: the captions have 2 images ('a', 'b') in train too",
    ]
    write_store(folder, "test", ["d", "e"])
    write_store(folder, "testall", ["d", "e", "f"])
    write_captions(folder, {**IMAGES, "testall": "def"})
    main(Config(folder))


def test_ids_missing_on_either_side_are_found(folder, capsys):
    write_captions(folder, {"train": "ab", "test": "efghi"})
    stranger, silent = problems(folder, capsys)
    assert stranger.startswith("test   ERROR  8 captions are about 4 images ('f', 'g', 'h', ...) not in the store")
    assert silent.startswith("test   ERROR  1 image ('d') of the store without a caption")


def test_training_images_without_captions_are_only_noted(folder, capsys):
    write_captions(folder, {**IMAGES, "train": "ab"})
    main(Config(folder))
    assert "train  note   1 image ('c') of the store without a caption" in capsys.readouterr().out


def test_a_split_without_a_store_is_found_unless_others_are_asked_for(folder, capsys):
    write_captions(folder, {**IMAGES, "dev": "x"})
    (dev,) = problems(folder, capsys)
    assert "no region store at" in dev
    main(Config(folder, splits=("train", "test")))


@pytest.mark.parametrize(
    ("name", "index", "value", "problem"),
    [
        ("features", (0, 0, 0), np.nan, "1 image ('a') with NaN or infinite features"),
        ("features", (1, 0), 0, "1 image ('b') with a region whose features are all zero"),
        ("boxes", (2, 1), [0, 0, 5, 12], "1 image ('c') with a box that is empty or reaches outside the image"),
        ("num_regions", (1,), 4, "1 image ('b') with a count outside 1..3"),
        ("image_id", (1,), "a", "1 image ('a') more than once in the store"),
    ],
)
def test_damaged_contents_are_found(folder, capsys, name, index, value, problem):
    with h5py.File(folder / "train.h5", "r+") as file:
        file[name][index] = value
    assert any(problem in line for line in problems(folder, capsys))


def test_splits_that_were_made_differently_are_found(folder, capsys):
    write_store(folder, "train", IMAGES["train"], extractor_options={"max_regions": 3})
    main(Config(folder))
    note = "train  note   features were made by ({'name': 'by hand', 'max_regions': 3}, ''), those of test by"
    assert note in capsys.readouterr().out
    write_store(folder, "train", IMAGES["train"], dim=5)
    (line,) = problems(folder, capsys)
    assert "train  ERROR  features have dim 5, those of test 4" in line


def test_a_virtual_store_without_one_of_its_parts_is_found(folder, capsys):
    write_store(folder, "parts/0", ["a", "b"])
    write_store(folder, "parts/1", ["c"])
    join_stores([folder / "parts" / "0.h5", folder / "parts" / "1.h5"], folder / "train.h5", overwrite=True)
    main(Config(folder))
    (folder / "parts" / "1.h5").unlink()
    (line,) = problems(folder, capsys)
    assert "1.h5 is missing: it was moved, renamed or removed" in line


def test_slow_chunks_are_found(folder, capsys):
    with h5py.File(folder / "train.h5", "r+") as file:
        features = file["features"][:]
        del file["features"]
        file.create_dataset("features", data=features, chunks=(2, 1, 4))
    (line,) = problems(folder, capsys)
    assert "chunks of (2, 1, 4), slow to read at random" in line


def test_a_store_that_was_cut_and_a_text_called_store_are_found(folder, capsys):
    whole = (folder / "train.h5").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"text"):
        (folder / "train.h5").write_bytes(damaged)
        (line,) = problems(folder, capsys)
        assert "train.h5 is not an HDF5 file, or was cut off" in line


def test_what_to_check_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        main(Config(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no captions file at"):
        main(Config(tmp_path))
