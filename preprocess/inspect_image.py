"""Look at one photograph as a matcher does: its regions, a picture with their boxes, its score against sentences.

python -m preprocess.inspect_image photo.jpg --model RUN --sentences "A dog runs." "Two men talk."
python -m preprocess.inspect_image photo.jpg --extractor ssd-mobilenet
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from preprocess.images import read_image
from xmodal.data.atomic import written_whole
from xmodal.encoders.extractors import EXTRACTORS
from xmodal.model import Matcher
from xmodal.names import build

if TYPE_CHECKING:
    from PIL import Image

    from xmodal.encoders.region_extractor import Regions


@dataclass(frozen=True)
class Config:
    """What to look at, and with what."""

    image: tyro.conf.Positional[Path]
    """The photograph."""
    model: Path | None = None
    """Run folder, or folder written by save_pretrained; its extractor is used."""
    sentences: tuple[str, ...] = ()
    """With --model: sentences to score against the photograph."""
    extractor: str | None = None
    """Without --model: which extractor, see `python -m preprocess.regions --help`."""
    output: Path = Path("regions.png")
    """Picture to write."""


def main(config: Config) -> None:
    """Print the regions and the scores, draw the boxes.

    Raises:
        ValueError: neither a model nor an extractor is given, or both; sentences come without a model; the model's
            extractor is unknown; or the photograph cannot be read.
    """
    if (config.model is None) == (config.extractor is None):
        raise ValueError("give either --model or --extractor: a model brings the extractor that it was trained on")
    if config.sentences and config.model is None:
        raise ValueError("--sentences need --model to score them")
    matcher = None
    if config.model is not None:
        best = config.model / "best"
        matcher = Matcher.from_pretrained(best if best.is_dir() else config.model)
    image = read_image(config.image)
    name = config.extractor if matcher is None else matcher.extractor
    (regions,) = build("extractor", EXTRACTORS, {"name": name})([image])
    count, dim = regions.features.shape
    print(f"{config.image}: {image.width} x {image.height}, {count} regions of dim {dim}")
    for line in describe(regions):
        print(line)
    if matcher is not None and config.sentences:
        scores = matcher.score(regions.features, config.sentences)[0].tolist()
        for score, sentence in sorted(zip(scores, config.sentences, strict=True), reverse=True):
            print(f"{score:8.4f}  {sentence}")
    draw_regions(image, regions, config.output)
    print(f"wrote {config.output}")


def describe(regions: Regions) -> list[str]:
    """A line a region: its number, its box and what the detector said."""
    lines = []
    for number, box in enumerate(regions.boxes.tolist()):
        line = f"{number:4}  " + " ".join(f"{edge:7.1f}" for edge in box)
        if regions.confidence is not None and regions.class_id is not None:
            line += f"  class {int(regions.class_id[number]):4}  confidence {float(regions.confidence[number]):.2f}"
        lines.append(line)
    return lines


def draw_regions(image: Image.Image, regions: Regions, output: Path) -> None:
    """The image with a numbered frame around each region, the last one drawn first so that the surest are on top."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(8, 8 * image.height / image.width), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image)
    axes.set_axis_off()
    for number in reversed(range(len(regions.boxes))):
        x1, y1, x2, y2 = regions.boxes[number].tolist()
        color = colormaps["tab20"](number % 20)
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.5))
        axes.text(
            x1, y1, str(number), color="white", fontsize=7, va="top", bbox={"facecolor": color, "pad": 1, "lw": 0}
        )
    with written_whole(output) as temporary:
        figure.savefig(temporary, format=output.suffix.lstrip(".") or "png", dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
