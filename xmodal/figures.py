"""Figures that become files: without a window system, whole or not at all, and with every text as it is."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

from xmodal.data.atomic import written_whole

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

logger = logging.getLogger("xmodal")


def new_figure(width: float, height: float) -> Figure:
    """A figure without a window system: pyplot's global state is never touched.

    >>> new_figure(4, 3).get_size_inches()
    array([4., 3.])
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, output: Path, *, dpi: int = 120) -> None:
    """Write a figure; the suffix of the file says in which format.

    Texts are drawn letter by letter, a `$` too, which matplotlib would read as the start of mathematics, and in any
    installed font that has the letters.

    Args:
        figure: as `new_figure` makes it.
        output: the file.
        dpi: pixels an inch.

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> save_figure(new_figure(1, 1), Path("empty.png"))
    >>> with Image.open("empty.png") as picture:
    ...     picture.size
    (120, 120)
    """
    from matplotlib.text import Text

    texts: Any = figure.findobj(Text)
    families, missing = find_fonts({letter for text in texts for letter in text.get_text()})
    for text in texts:
        text.set_parse_math(False)
        text.set_usetex(False)
        if families:
            text.set_fontfamily([*text.get_fontfamily(), *families])
    if missing:
        logger.warning(
            "no installed font has %s: they are boxes in %s. Install one, Noto Sans CJK for Chinese and Japanese "
            "say (fonts-noto-cjk).",
            "".join(sorted(missing)[:20]),
            output,
        )
    with written_whole(output) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(temporary, format=output.suffix.lstrip(".") or "png", dpi=dpi)


def find_fonts(letters: set[str]) -> tuple[list[str], set[str]]:
    """Families of installed fonts for the letters that the usual font lacks, and the letters that none has.

    >>> find_fonts(set("a dog"))
    ([], set())
    """
    from matplotlib import font_manager

    def lacking(path: str, letters: set[str]) -> set[str]:
        font = font_manager.get_font(path)
        return {letter for letter in letters if not font.get_char_index(ord(letter))}

    missing = lacking(font_manager.findfont("DejaVu Sans"), {letter for letter in letters if letter.isprintable()})
    families: list[str] = []
    for entry in font_manager.fontManager.ttflist:
        if not missing:
            break
        # The last resort has a box for every letter.
        if not entry.name.startswith("Last Resort") and len(left := lacking(entry.fname, missing)) < len(missing):
            families.append(entry.name)
            missing = left
    return families, missing
