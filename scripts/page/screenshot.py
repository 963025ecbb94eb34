"""Take the picture of the page that the README shows, of the demo's index.

make demo
python -m scripts.page.screenshot --output docs/page.png
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scripts.page.browser import open_page, serving
from xmodal.data.atomic import written_whole
from xmodal.entry import run_program


@dataclass(frozen=True)
class Screenshot:
    """What to take a picture of."""

    demo: Path = Path("demo_output")
    """What `make demo` wrote."""
    sentence: str = "a bubble tea in the bottom left corner, a little camel in the middle and a zebra at the top"
    """What is searched."""
    word: str = "zebra"
    """The word of it whose regions are lit."""
    output: Path = Path("page.png")
    """Picture to write."""
    width: int = 1000
    """Pixels of the window."""
    height: int = 640
    """Pixels of the window."""


def main(config: Screenshot) -> None:
    """Serve the demo's index, search, choose a word, and take the picture."""
    data = config.demo / "data"
    arguments = [str(data / "test.index"), "--model", str(config.demo / "demo_scan"), "--images", str(data / "images")]
    with (
        serving(arguments) as (url, _),
        open_page(url, width=config.width, height=config.height) as (page, problems),
        tempfile.TemporaryDirectory() as folder,
    ):
        page.fill("#text", config.sentence)
        page.press("#text", "Enter")
        page.click(f'.word:text-is("{config.word}")')
        page.wait_for_selector(".stage.lit rect.most", state="attached")
        page.wait_for_function("() => [...document.images].every(image => image.complete)")
        taken = Path(folder) / "page.png"
        page.screenshot(path=taken)
        if problems:
            raise ValueError(f"the page has problems: {'; '.join(problems)}")
        # 256 colors are enough for a page, and a third of the bytes.
        with Image.open(taken) as picture, written_whole(config.output) as whole:
            picture.convert("RGB").quantize(256).save(whole, "PNG", optimize=True)
    print(f"wrote {config.output}, {config.output.stat().st_size // 1000} kB")


if __name__ == "__main__":
    run_program(main, prog="python -m scripts.page.screenshot")
