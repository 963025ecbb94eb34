"""Pictures of colored tiles, a matcher that looks at them, an index, and a server of it in a thread."""

from __future__ import annotations

import contextlib
import io
import random
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import torch
import uvicorn
from PIL import Image

from xmodal.data import RegionStoreWriter
from xmodal.data.region_store import RegionStore
from xmodal.encoders.region_extractor import Regions
from xmodal.evaluation.calibration import Calibration
from xmodal.model import Matcher
from xmodal.search.index import Index
from xmodal.search.serve.server import listen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastapi import FastAPI

COLORS = {"red": (230, 30, 30), "green": (25, 160, 40), "blue": (30, 60, 220), "white": (230, 230, 230)}
SIDE = 32
"""Pixels of a tile; a picture has four."""


class Tiles:
    """The mean color of the quarters of a picture."""

    name, dim, max_regions, weights_hash, class_names = "tiles", 3, 4, "", {}

    def __call__(self, images):
        found = []
        for image in images:
            width, height = image.size
            boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]])
            small = torch.tensor(list(image.resize((2, 2), Image.Resampling.BOX).get_flattened_data())).float() / 255
            found.append(Regions(small, boxes * torch.tensor([width, height, width, height])))
        return found


class World(NamedTuple):
    """What a server needs, and what is right."""

    index: Index
    matcher: Matcher
    images: Path
    store: RegionStore
    calibration: Calibration


def picture(colors, choose=None) -> Image.Image:
    """A picture of four tiles; with a generator, no color is quite the same twice."""
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    for place, color in enumerate(colors):
        row, column = divmod(place, 2)
        shade = tuple(value + (choose.randint(-20, 20) if choose else 0) for value in COLORS[color])
        image.paste(shade, (SIDE * column, SIDE * row, SIDE * (column + 1), SIDE * (row + 1)))
    return image


def make_world(folder: Path, *, images: int = 60, head=None) -> World:
    torch.manual_seed(0)
    choose = random.Random(0)
    (folder / "photos").mkdir()
    with RegionStoreWriter(folder / "all.h5", dim=3, extractor="tiles") as writer:
        for number in range(images):
            image = picture(choose.choices(sorted(COLORS), k=4), choose)
            image.save(folder / "photos" / f"scene-{number}.png")
            (regions,) = Tiles()([image])
            writer.write(f"scene-{number}", regions.features, boxes=regions.boxes, image_size=image.size)
    image, text = {"name": "regions", "input_dim": 3, "dim": 16}, {"name": "gru", "dim": 16, "word_dim": 8}
    words = ["a", "and", "tile", *sorted(COLORS)]
    matcher = Matcher(image, text, head or {"name": "scan"}, vocabulary=words, extractor="tiles").eval()
    store = RegionStore(folder / "all.h5")
    index = Index.build(matcher, store, folder / "all.index")
    calibration = Calibration(score_weight=1.0, lead_weight=5.0, size_weight=-0.1, bias=0.0)
    return World(index, matcher, folder / "photos", store, calibration)


def as_file(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of a server in a thread."""
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", http="h11", ws="none"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
