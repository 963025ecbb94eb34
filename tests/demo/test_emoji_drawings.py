"""An index of emoji has every vendor's drawing of each, and no emoji in two splits."""

from __future__ import annotations

import pytest
from PIL import Image

from scripts.demo import emoji_drawings
from scripts.demo.emoji_drawings import EmojiDrawings, main
from xmodal.data.labelled import load_index

VENDORS = ("Goog", "Twtr")
DRAWN = ("U+1F34E", "U+1F34F", "U+1F350", "U+1F351", "U+1F44B-U+1F3FB", "U+1F468-U+200D-U+1F680")


@pytest.fixture
def artwork(tmp_path, monkeypatch):
    """Four plain emoji, one with a skin tone, one joined, and one that a single vendor draws."""
    for vendor in VENDORS:
        (tmp_path / "art" / vendor).mkdir(parents=True)
        for name in (*DRAWN, *(("U+1F352",) if vendor == "Goog" else ())):
            Image.new("RGBA", (4, 4)).save(tmp_path / "art" / vendor / f"{name}.png")
    monkeypatch.setattr(emoji_drawings, "find_artwork", lambda: tmp_path / "art")
    return tmp_path / "art"


def test_every_drawing_of_every_chosen_emoji_is_listed(artwork, tmp_path):
    main(EmojiDrawings(tmp_path / "emoji.jsonl", train=2, dev=1, test=1))
    images = load_index(tmp_path / "emoji.jsonl")
    assert {image.class_name for image in images} == set(DRAWN[:4])
    assert sorted(image.split for image in images) == ["dev"] * 2 + ["test"] * 2 + ["train"] * 4
    assert len({(image.class_name, image.split) for image in images}) == 4
    assert all(image.path.is_file() and image.path.stem == image.class_name for image in images)


def test_the_same_seed_gives_the_same_split(artwork, tmp_path):
    texts = []
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        main(EmojiDrawings(tmp_path / f"{name}.jsonl", train=2, dev=1, test=1, seed=seed))
        texts.append((tmp_path / f"{name}.jsonl").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_more_emoji_than_there_are_is_refused(artwork, tmp_path):
    with pytest.raises(ValueError, match=r"3 \+ 1 \+ 1 emoji are asked for; .* has 4 that all 2 vendors draw"):
        main(EmojiDrawings(tmp_path / "emoji.jsonl", train=3, dev=1, test=1))
