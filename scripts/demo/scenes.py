"""What a scene shows, where, and which things are held out of training."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scripts.demo.grammar import Box, SceneCaption, SceneObject, write_caption

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scripts.demo.artwork import Thing


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
class Scene:
    """What is drawn where; its `kind` is that of the held-out thing in it, or "seen" where there is none."""

    image_id: str
    split: str
    kind: str
    canvas: int
    background: str
    objects: tuple[SceneObject, ...]
    captions: tuple[SceneCaption, ...] = ()


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

    >>> from pathlib import Path
    >>> from scripts.demo.artwork import Thing
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

    >>> from pathlib import Path
    >>> from scripts.demo.artwork import Thing
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

    >>> from pathlib import Path
    >>> from scripts.demo.artwork import Thing
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

    >>> from pathlib import Path
    >>> from scripts.demo.artwork import Thing
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
