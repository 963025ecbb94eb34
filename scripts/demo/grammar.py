"""Captions for drawn scenes: a small English grammar that knows which words name which objects.

A scene is a list of things with boxes on a canvas. `write_caption` says something true about it: what is there, how
many, how large, where, and what stands next to what, in one of several wordings and not always completely, as people
do. Each caption carries its *mentions*: the character spans that name objects, and the objects they name, so that
attention can later be checked against the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}
IRREGULAR_PLURALS = {
    "bison": "bison",
    "deer": "deer",
    "fish": "fish",
    "knife": "knives",
    "leaf": "leaves",
    "mouse": "mice",
    "ox": "oxen",
    "potato": "potatoes",
    "shrimp": "shrimp",
    "squid": "squid",
    "tomato": "tomatoes",
    "mango": "mangoes",
    "wolf": "wolves",
}


Box = tuple[int, int, int, int]
"""Corners x1, y1, x2, y2 in pixels."""


@dataclass(frozen=True)
class SceneObject:
    """One drawn thing: its English name, where it is, whose drawing it is, and whether that is held out of training."""

    name: str
    box: Box
    vendor: str = "noto"
    kind: str = "seen"

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box (x, y), in pixels."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def side(self) -> int:
        """Longer side of the box, in pixels."""
        x1, y1, x2, y2 = self.box
        return max(x2 - x1, y2 - y1)


@dataclass(frozen=True)
class Mention:
    """The characters `start` to `end` of a caption, which name the objects with these indices."""

    text: str
    start: int
    end: int
    objects: tuple[int, ...]


@dataclass(frozen=True)
class SceneCaption:
    """A sentence and the mentions of objects in it."""

    text: str
    mentions: tuple[Mention, ...]


@dataclass(frozen=True)
class Group:
    """All objects of one name: what a noun phrase speaks of.

    `extent` (x1, y1, x2, y2) spans the middles of the objects and `size` is the mean side of their boxes, both as
    fractions of the canvas.
    """

    name: str
    objects: tuple[int, ...]
    extent: tuple[float, float, float, float]
    size: float

    @property
    def noun(self) -> str:
        """The name in the number that fits."""
        return self.name if len(self.objects) == 1 else plural(self.name)

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the group (x, y)."""
        x1, y1, x2, y2 = self.extent
        return (x1 + x2) / 2, (y1 + y2) / 2


Piece = str | tuple[str, tuple[int, ...]]
"""Part of a caption: plain words, or words with the indices of the objects that they name."""


def plural(name: str) -> str:
    """The English plural of a noun phrase whose head comes last.

    >>> plural("hot dog"), plural("cherry"), plural("bus"), plural("computer mouse")
    ('hot dogs', 'cherries', 'buses', 'computer mice')
    """
    *modifiers, head = name.split(" ")
    if head in IRREGULAR_PLURALS:
        head = IRREGULAR_PLURALS[head]
    elif head.endswith(("s", "x", "ch", "sh")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "s"
    return " ".join([*modifiers, head])


def with_article(noun_phrase: str) -> str:
    """The phrase behind its indefinite article.

    >>> with_article("apple"), with_article("unicorn"), with_article("small owl")
    ('an apple', 'a unicorn', 'a small owl')
    """
    vowel_sound = noun_phrase[0] in "aeiou" and not noun_phrase.startswith(("uni", "uku"))
    return f"{'an' if vowel_sound else 'a'} {noun_phrase}"


def group_objects(objects: Sequence[SceneObject], canvas: int) -> list[Group]:
    """Gather the objects of each name, in order of first appearance.

    >>> dogs = [SceneObject("dog", box=(0, 0, 40, 40)), SceneObject("dog", box=(60, 0, 100, 40))]
    >>> (group,) = group_objects(dogs, canvas=100)
    >>> group.noun, group.extent, group.size
    ('dogs', (0.2, 0.2, 0.8, 0.2), 0.4)
    """
    members: dict[str, list[int]] = {}
    for index, thing in enumerate(objects):
        members.setdefault(thing.name, []).append(index)
    groups = []
    for name, indices in members.items():
        xs = [objects[index].center[0] / canvas for index in indices]
        ys = [objects[index].center[1] / canvas for index in indices]
        size = sum(objects[index].side for index in indices) / len(indices) / canvas
        groups.append(Group(name, tuple(indices), (min(xs), min(ys), max(xs), max(ys)), size))
    return groups


def place(center: tuple[float, float]) -> str:
    """Where on the canvas a point lies, in ninths.

    >>> place((0.9, 0.1)), place((0.5, 0.5)), place((0.1, 0.5))
    ('in the top right corner', 'in the middle', 'on the left')
    """
    row, column = (min(int(value * 3), 2) for value in (center[1], center[0]))
    vertical, horizontal = ("top", "", "bottom")[row], ("left", "", "right")[column]
    if vertical and horizontal:
        return f"in the {vertical} {horizontal} corner"
    if vertical:
        return f"at the {vertical}"
    return f"on the {horizontal}" if horizontal else "in the middle"


def relation(first: Group, second: Group, rng: random.Random) -> str | None:
    """How the first group stands to the second, or None where nothing clear can be said.

    A direction is named only where it is true of every object and plain to see: a gap of 0.15 of the canvas between
    the middles of the two groups, and little shift across it.

    >>> import random
    >>> objects = [SceneObject("dog", box=(0, 0, 40, 40)), SceneObject("owl", box=(60, 0, 100, 40))]
    >>> relation(*group_objects(objects, canvas=100), random.Random(0))
    'on the left of'
    """
    dx, dy = first.center[0] - second.center[0], first.center[1] - second.center[1]
    gap_x = max(first.extent[0] - second.extent[2], second.extent[0] - first.extent[2])
    gap_y = max(first.extent[1] - second.extent[3], second.extent[1] - first.extent[3])
    if gap_x >= 0.15 and abs(dx) >= 2 * abs(dy):
        side = "left" if dx < 0 else "right"
        return rng.choice([f"to the {side} of", f"on the {side} of"])
    if gap_y >= 0.15 and abs(dy) >= 2 * abs(dx):
        return rng.choice(["above", "over"] if dy < 0 else ["below", "under"])
    if dx * dx + dy * dy <= 0.4**2:
        return rng.choice(["next to", "beside", "near"])
    return None


def _noun_phrase(group: Group, rng: random.Random) -> list[Piece]:
    """Count or article, perhaps a size, and the noun, which alone is the mention."""
    count = len(group.objects)
    size = ""
    if rng.random() < 0.4:
        if group.size > 0.35:
            size = rng.choice(["big", "large"])
        elif group.size < 0.26:
            size = rng.choice(["small", "little"])
    if count == 1:
        determiner = with_article(f"{size} {group.noun}".strip()).split(" ")[0]
    else:
        determiner = COUNT_WORDS[count]
        if count >= 3 and rng.random() < 0.15:
            determiner = "several"
    return [" ".join(filter(None, [determiner, size])), (group.noun, group.objects)]


def _enumerate_phrases(phrases: Sequence[list[Piece]]) -> list[Piece]:
    """Phrases joined by commas and a final "and"."""
    pieces = list(phrases[0])
    for phrase in phrases[1:-1]:
        pieces += [",", *phrase]
    if len(phrases) > 1:
        pieces += ["and", *phrases[-1]]
    return pieces


def _say_list(groups: Sequence[Group], rng: random.Random) -> list[Piece]:
    """What is there: "there are two dogs, a pizza and a tree"."""
    singular = len(groups[0].objects) == 1
    opener = rng.choice(["", "", "there is" if singular else "there are", "a picture of", "we see", "a drawing with"])
    pieces = _enumerate_phrases([_noun_phrase(group, rng) for group in groups])
    return [opener, *pieces] if opener else pieces


def _say_places(groups: Sequence[Group], rng: random.Random) -> list[Piece]:
    """What is where: "a dog in the top right corner and a pizza on the left"."""
    # Objects far apart have no common place, so only single things and some companions get one.
    placed = [[*_noun_phrase(g, rng), *([place(g.center)] if len(g.objects) == 1 else [])] for g in groups]
    return _enumerate_phrases(placed)


def _say_relation(groups: Sequence[Group], rng: random.Random) -> list[Piece]:
    """How the first two stand to each other: "a dog to the left of a pizza, with a tree"."""
    words = relation(groups[0], groups[1], rng) if len(groups) > 1 else None
    if words is None:
        return _say_list(groups, rng)
    pieces = [*_noun_phrase(groups[0], rng), words, *_noun_phrase(groups[1], rng)]
    if len(groups) > 2:
        pieces += [",", "with", *_enumerate_phrases([_noun_phrase(group, rng) for group in groups[2:]])]
    return pieces


SAYINGS = (_say_list, _say_places, _say_relation)


def write_caption(objects: Sequence[SceneObject], *, canvas: int, background: str, rng: random.Random) -> SceneCaption:
    """One true sentence about the scene, in random wording.

    With three different things or more, one may be left out; two are always named, so that a thing never seen in
    training comes with one that was.

    Args:
        objects: what is drawn, with boxes in pixels.
        canvas: side of the square canvas in pixels.
        background: color of the background in words, mentioned now and then.
        rng: source of every choice.

    >>> import random
    >>> dog = SceneObject("dog", box=(0, 0, 40, 40))
    >>> write_caption([dog], canvas=100, background="pink", rng=random.Random(0)).mentions[0].text
    'dog'
    """
    groups = group_objects(objects, canvas)
    rng.shuffle(groups)
    if len(groups) > 2 and rng.random() < 0.3:
        groups = groups[:-1]
    pieces = rng.choice(SAYINGS)(groups, rng)
    if rng.random() < 0.2:
        pieces = [*pieces, f"on {with_article(background)} background"]
    return _join(pieces)


def _join(pieces: Sequence[Piece]) -> SceneCaption:
    text, mentions = "", []
    for piece in pieces:
        words, objects = (piece, ()) if isinstance(piece, str) else piece
        if text and words != ",":
            text += " "
        if objects:
            mentions.append(Mention(words, len(text), len(text) + len(words), objects))
        text += words
    return SceneCaption(text, tuple(mentions))
