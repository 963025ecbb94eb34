"""Shared arrays come out of the store bit for bit, repeated images once; files that do not match are refused."""

from __future__ import annotations

import numpy as np
import pytest

from preprocess.scan_npy import Config, main
from xmodal.data import RegionStore, load_captions


def write(folder, split, images, *, captions, repeat=1, ids=None, dtype=np.float32):
    features = np.random.default_rng(len(split)).normal(size=(images, 3, 4)).astype(dtype)
    np.save(folder / f"{split}_ims.npy", features.repeat(repeat, axis=0))
    (folder / f"{split}_caps.txt").write_text("".join(f"Caption\u2028 É {n}.\n" for n in range(captions)), "utf-8")
    if ids is not None:
        (folder / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in ids))
    return features


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("repeat", [1, 5])
def test_round_trip_is_exact(tmp_path, dtype, repeat):
    train = write(tmp_path, "train", 4, captions=20, repeat=repeat, dtype=dtype)
    test = write(tmp_path, "test", 2, captions=10, repeat=repeat, ids=[31, 7], dtype=dtype)
    main(Config(tmp_path, tmp_path / "out"))
    for split, features in (("train", train), ("test", test)):
        store = RegionStore(tmp_path / "out" / f"{split}.h5")
        regions, mask, _ = store.batch(range(len(store)))
        assert mask.all()
        np.testing.assert_array_equal(regions, features.astype(np.float32))
        assert store._open().features.dtype == dtype
    assert store.image_id == ["31", "7"]
    captions = load_captions(tmp_path / "out" / "captions.jsonl", "test")
    assert [caption.image_id for caption in captions] == ["31"] * 5 + ["7"] * 5
    assert captions[6].caption == "Caption\u2028 É 6."  # a line separator inside a caption does not end the line
    assert captions[6].caption_id == "test_6"
    assert load_captions(tmp_path / "out" / "captions.jsonl", "train")[5].image_id == "train_1"


def test_an_id_for_every_caption_will_do(tmp_path):
    write(tmp_path, "dev", 2, captions=10, repeat=5, ids=[31] * 5 + [7] * 5)
    main(Config(tmp_path, tmp_path / "out"))
    assert RegionStore(tmp_path / "out" / "dev.h5").image_id == ["31", "7"]


def test_one_caption_an_image_is_not_taken_for_repetition(tmp_path):
    write(tmp_path, "dev", 10, captions=10)
    main(Config(tmp_path, tmp_path / "out"))
    assert len(RegionStore(tmp_path / "out" / "dev.h5")) == 10


def test_files_that_do_not_match_are_refused(tmp_path):
    write(tmp_path, "dev", 4, captions=19)
    with pytest.raises(ValueError, match=r"dev_ims\.npy has 4 rows for 19 captions; wanted .* 20, 5 a row"):
        main(Config(tmp_path, tmp_path / "out"))
    write(tmp_path, "dev", 4, captions=20, ids=range(3))
    with pytest.raises(ValueError, match=r"dev_ids\.txt has 3 ids for 4 images"):
        main(Config(tmp_path, tmp_path / "out"))
    write(tmp_path, "dev", 4, captions=20, ids=[1, 2, 2, 3])
    with pytest.raises(ValueError, match=r"dev_ids\.txt calls images 2 and 3 \(of 4\) '2'"):
        main(Config(tmp_path, tmp_path / "out"))
    assert not list(tmp_path.glob("out/*"))


def test_a_broken_repetition_is_refused(tmp_path):
    features = write(tmp_path, "dev", 2, captions=10, repeat=5).repeat(5, axis=0)
    features[8, 0, 0] += 1
    np.save(tmp_path / "dev_ims.npy", features)
    with pytest.raises(ValueError, match="rows 5 to 9 differ"):
        main(Config(tmp_path, tmp_path / "out"))


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds none of"):
        main(Config(tmp_path, tmp_path / "out"))
    with pytest.raises(FileNotFoundError, match=r"no array at .*val_ims\.npy"):
        main(Config(tmp_path, tmp_path / "out", ("val",)))
    write(tmp_path, "dev", 4, captions=20)
    array = tmp_path / "dev_ims.npy"
    whole = array.read_bytes()
    for damaged in (whole[:-9], b"text", b""):
        array.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"dev_ims\.npy is not a NumPy array file, or was cut off"):
            main(Config(tmp_path, tmp_path / "out"))
    for wrong in (np.zeros((4, 3)), np.zeros((4, 3, 4))):
        np.save(array, wrong)
        with pytest.raises(ValueError, match=r"dev_ims\.npy holds float64 of shape"):
            main(Config(tmp_path, tmp_path / "out"))
    array.write_bytes(whole)
    captions = tmp_path / "dev_caps.txt"
    captions.write_text("a\n\n" + "b\n" * 18)
    with pytest.raises(ValueError, match=r"dev_caps\.txt, line 2 is empty"):
        main(Config(tmp_path, tmp_path / "out"))
    captions.unlink()
    with pytest.raises(FileNotFoundError, match=r"dev_caps\.txt"):
        main(Config(tmp_path, tmp_path / "out"))
