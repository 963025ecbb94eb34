"""Captions survive a round trip, bad lines are named, and relevance is an index."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.data import Caption, load_captions, save_captions
from xmodal.data.captions import caption_image_index

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    st.lists(st.builds(Caption, TEXT, TEXT, TEXT.filter(str.strip), TEXT), min_size=1, unique_by=lambda c: c.caption_id)
)
def test_round_trip(tmp_path_factory, captions):
    path = tmp_path_factory.getbasetemp() / "captions.jsonl"
    save_captions(path, captions)
    assert load_captions(path) == captions
    assert load_captions(path, captions[0].split) == [c for c in captions if c.split == captions[0].split]


GOOD = {"image_id": "7", "caption_id": "70", "caption": "A dog.", "split": "train"}


def test_number_ids_become_strings(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({**GOOD, "image_id": 7, "caption_id": 70}))
    assert load_captions(path) == [Caption(**GOOD)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image_id": "7", ', "not JSON"),
        ("", "not JSON"),
        ("[1, 2]", "wanted an object .* found list"),
        (json.dumps({**GOOD, "lang": "en"}), "wanted an object .* found .*'lang'"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "split"}), "wanted an object"),
        (json.dumps({**GOOD, "caption": None}), "caption is None, wanted a string"),
        (json.dumps({**GOOD, "caption_id": True}), "caption_id is True"),
        (json.dumps({**GOOD, "caption_id": "71", "caption": " \t"}), "caption '71' of image '7' is empty"),
        (json.dumps(GOOD), "caption_id '70' was used before"),
        (
            json.dumps({**GOOD, "caption_id": "71", "caption": "A dog \ud83d"}),
            "the caption of caption '71' of image '7' holds half a letter",
        ),
        (json.dumps({**GOOD, "caption_id": "71", "image_id": "\ud83d"}), "the image_id of caption '71' of image"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=f"captions.jsonl, line 2: {message}"):
        load_captions(path)


def test_a_line_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"caption": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"captions\.jsonl, line 2: 'utf-8'"):
        load_captions(path)


def test_missing_files_and_splits_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"captions\.jsonl"):
        load_captions(tmp_path / "captions.jsonl")
    save_captions(tmp_path / "captions.jsonl", [Caption(**GOOD)])
    with pytest.raises(ValueError, match=r"no caption of split 'tset'; its splits are \{'train': 1\}"):
        load_captions(tmp_path / "captions.jsonl", "tset")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl has no caption"):
        load_captions(tmp_path / "empty.jsonl")


def test_nothing_is_saved_that_could_not_be_loaded(tmp_path):
    for bad in (Caption("7", "71", " ", "train"), Caption(**GOOD), Caption("7", "71", "A dog \ud83d", "train")):
        with pytest.raises(ValueError, match=r"empty|used before|half a letter"):
            save_captions(tmp_path / "captions.jsonl", [Caption(**GOOD), bad])
    assert list(tmp_path.iterdir()) == []


def test_names_of_images_need_not_be_text(tmp_path):
    """A file may be called by any bytes, which Python has as surrogates; letters in pairs of them are one letter."""
    captions = [Caption(b"caf\xe9".decode("utf-8", "surrogateescape"), "0", "A dog \U0001f600", "train")]
    save_captions(tmp_path / "captions.jsonl", captions)
    assert load_captions(tmp_path / "captions.jsonl") == captions


def test_names_that_come_twice_are_refused():
    captions = [Caption("7", "0", "x", "test")]
    for every_image in (True, False):
        with pytest.raises(ValueError, match="the list of images has '7' more than once"):
            caption_image_index(captions, ["7", "7"], every_image=every_image)


@given(st.lists(st.integers(0, 6)))
def test_index_points_at_the_image(images):
    captions = [Caption(f"i{image}", str(n), "x", "test") for n, image in enumerate(images)]
    ids = [f"i{image}" for image in (3, 0, 6, 1, 2, 5, 4)]
    index = caption_image_index(captions, ids, every_image=False)
    assert index.dtype == torch.long
    assert [ids[i] for i in index] == [caption.image_id for caption in captions]


def test_images_and_captions_must_belong_together():
    captions = [Caption("a", "0", "x", "test"), Caption("b", "1", "y", "test")]
    with pytest.raises(ValueError, match=r"1 of 2 captions .*caption_id '1'\) about image 'b'"):
        caption_image_index(captions, ["a"])
    with pytest.raises(ValueError, match="1 of 3 images have no caption, image 'c'"):
        caption_image_index(captions, ["a", "b", "c"])
    assert caption_image_index(captions, ["a", "b", "c"], every_image=False).tolist() == [0, 1]
