"""Pictures of what a matcher learned: the images a sentence retrieves, the regions its words look at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.data.atomic import refuse_inputs
from xmodal.data.image_folder import locate_images
from xmodal.data.images import read_image
from xmodal.data.strings import refuse_string
from xmodal.figures import new_figure, save_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Bool, Float
    from matplotlib.axes import Axes
    from PIL import Image
    from torch import Tensor

    from xmodal.encoders.region_extractor import Regions

WORTH_NAMING = 0.3
"""How sure a detector must be of a region for its picture to say what it is."""

CELL, PANEL, SHEET = 320, 480, 1280
"""Longer side in pixels to which images are shrunk for a cell of a sheet, a panel of a word, and alone."""

DARK = 0.25
"""Brightness of what no word looks at."""

SURE = 0.25
"""How sure a word must be of where it looks to be lit at full brightness."""


class Retrieved(NamedTuple):
    """The images that a sentence retrieves, best first; `correct` is None where the right image is unknown.

    `probability` says how likely each is a match, where a calibration tells.
    """

    sentence: str
    image_ids: Sequence[str]
    scores: list[float]
    correct: str | None = None
    probability: list[float] | None = None


def find_image(folder: Path, image_id: str) -> Path:
    """The file of an image, found as `preprocess.regions` finds it; see `xmodal.data.image_folder.locate_images`.

    Raises:
        FileNotFoundError: if the folder has no such image.

    >>> from pathlib import Path
    >>> Path("photos").mkdir()
    >>> Path("photos", "7.png").touch()
    >>> find_image(Path("photos"), "7").name
    '7.png'
    """
    return locate_images(folder, [image_id])[image_id]


def draw_retrieved(rows: Sequence[Retrieved], images: Path, output: Path) -> None:
    """A sheet with one sentence a row and its top images; the right one, if known, has a green frame.

    Raises:
        FileNotFoundError: if an image is not in the folder.
        ValueError: no sentence retrieved an image.

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> for name in ("7.png", "8.png"):
    ...     Image.new("RGB", (40, 30), "red").save(name)
    >>> row = Retrieved("a red wall", ["7", "8"], [0.9, 0.2], correct="7")
    >>> draw_retrieved([row], images=Path(), output=Path("found.png"))
    >>> Path("found.png").exists()
    True
    """
    columns = max((len(row.image_ids) for row in rows), default=0)
    if not columns:
        raise ValueError(f"there is nothing to draw: none of {len(rows)} sentences retrieved an image")
    files = locate_images(images, [image_id for row in rows for image_id in row.image_ids])
    refuse_inputs(output, files.values())
    figure = new_figure(2.2 * columns, 2.6 * len(rows))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    figure.get_layout_engine().set(hspace=0.25, rect=(0, 0, 1, 0.95))  # type: ignore[union-attr]
    for row, cells in zip(rows, axes, strict=True):
        # The title runs over the whole row: it must not widen the first column.
        title = cells[0].text(0, 1.12, f"“{row.sentence}”", transform=cells[0].transAxes, fontsize=10)
        title.set_in_layout(False)
        for cell in cells:
            cell.set_axis_off()
        for cell, image_id, score in zip(cells, row.image_ids, row.scores, strict=False):
            cell.imshow(read_image(files[image_id], longest=CELL))
            cell.text(0.02, 1.02, f"{score:.3f}", transform=cell.transAxes, fontsize=8, color="0.35")
            cell.set_axis_on()
            cell.set_xticks([])
            cell.set_yticks([])
            right = image_id == row.correct
            for spine in cell.spines.values():
                spine.set(color="tab:green" if right else "0.85", linewidth=4 if right else 1)
    save_figure(figure, output)


def draw_attention(
    image: Path,
    boxes: Float[Tensor, "region 4"],
    words: Sequence[str],
    weights: Float[Tensor, "word region"],
    output: Path,
    *,
    score: float | None = None,
) -> None:
    """One panel a word: the image, lit where the word looks, with a frame around its most attended region.

    Beside each word stands how sure it is of where it looks, see `certainty`; the less sure, the darker its panel and
    the fainter its frame.

    Args:
        image: image file.
        boxes: x1 y1 x2 y2 of the regions, in pixels of the upright image.
        words: the words, in order.
        weights: attention of each word over the regions.
        output: picture to write.
        score: score of the pair, for the title.

    Raises:
        FileNotFoundError: the file of the image is not there.
        ValueError: there is no word, or not one row of weights a word and one weight a box.

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> Image.new("RGB", (40, 30), "red").save("7.png")
    >>> boxes = torch.tensor([[0.0, 0.0, 20.0, 30.0], [20.0, 0.0, 40.0, 30.0]])
    >>> weights = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    >>> draw_attention(Path("7.png"), boxes, ["red", "wall"], weights, Path("attention.png"), score=0.8)
    >>> Path("attention.png").exists()
    True
    """
    refuse_string("words", words, "words")
    if not words or weights.shape != (len(words), len(boxes)):
        raise ValueError(
            f"weights are {tuple(weights.shape)} for {len(words)} words and {len(boxes)} boxes; wanted at least one "
            "word, and for each a weight a box"
        )
    pixels, boxes = picture_with_boxes(image, boxes)
    columns = min(6, len(words))
    rows = -(-len(words) // columns)
    figure = new_figure(2.2 * columns, 2.4 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for panel, word, row, sure in zip(panels, words, weights, certainty(weights).tolist(), strict=False):
        draw_look(panel, pixels, boxes, row, f"{word}  {100 * sure:.0f}%", sure=sure)
    meaning = "100%: looks at one region, 0%: at all alike"
    figure.suptitle(meaning if score is None else f"score {score:.3f}   ({meaning})", fontsize=9, color="0.35")
    save_figure(figure, output)


def picture_with_boxes(
    image: Path, boxes: Float[Tensor, "region 4"], longest: int = PANEL
) -> tuple[Float[Tensor, "height width 3"], Float[Tensor, "region 4"]]:
    """An image shrunk to a panel, from 0 to 1, and the boxes that lie on it.

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> Image.new("RGB", (960, 480), "red").save("7.png")
    >>> pixels, boxes = picture_with_boxes(Path("7.png"), torch.tensor([[0.0, 0.0, 960.0, 240.0]]))
    >>> pixels.shape, boxes
    (torch.Size([240, 480, 3]), tensor([[  0.,   0., 480., 120.]]))
    """
    import numpy as np

    picture = read_image(image)
    size = torch.tensor([picture.width, picture.height])
    picture.thumbnail((longest, longest))
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)
    return pixels, boxes * (torch.tensor([picture.width, picture.height]) / size).repeat(2)


def draw_look(
    panel: Axes,
    pixels: Float[Tensor, "height width 3"],
    boxes: Float[Tensor, "region 4"],
    weights: Float[Tensor, " region"],
    title: str,
    *,
    sure: float,
    kept: Bool[Tensor, " region"] | None = None,
) -> None:
    """One panel: the image, lit where something looks, with a frame around its most attended region.

    Args:
        panel: where to draw.
        pixels: the image, as `picture_with_boxes` gives it.
        boxes: regions on it.
        weights: attention over them.
        title: to write above.
        sure: how sure it is of where it looks; the less, the darker the panel.
        kept: regions that a focal mask keeps, which get a thin frame.

    >>> axes = new_figure(2, 2).subplots()
    >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    >>> draw_look(axes, torch.ones(8, 8, 3), box, torch.ones(1), "dog  100%", sure=1.0)
    >>> axes.get_title()
    'dog  100%'
    """
    from matplotlib.patches import Rectangle

    bright = min(1.0, sure / SURE)
    light = DARK + (1 - DARK) * bright * _light(weights, boxes, *pixels.shape[:2])
    panel.imshow((pixels * light[..., None]).numpy())
    for region in [] if kept is None else kept.nonzero().flatten().tolist():
        x1, y1, x2, y2 = boxes[region].tolist()
        panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=0.6))
    x1, y1, x2, y2 = boxes[weights.argmax()].tolist()
    frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="tab:red", alpha=bright, linewidth=2)
    panel.add_patch(frame)
    panel.set_title(title, fontsize=10, color=str(0.6 * (1 - bright)))


def certainty(weights: Float[Tensor, "word region"]) -> Float[Tensor, "word"]:
    """How sure words are of where they look: 1 of a single region, 0 of all alike.

    One minus the entropy of a word's attention over that of attention to all regions alike.

    >>> certainty(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    share = weights.double().clamp(min=0)
    share = share / share.sum(dim=1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    entropy = torch.special.entr(share).sum(dim=1)
    sure = 1 - entropy / math.log(max(2, weights.shape[1]))
    return sure.where(share.sum(dim=1) > 0, 0).clamp(0, 1).to(weights.dtype)


def draw_regions(
    image: Image.Image, regions: Regions, names: Mapping[int, str], output: Path, *, notes: Sequence[str] = ()
) -> None:
    """The image with a frame around each region: the surer, the bolder, and drawn over those less sure.

    Args:
        image: the picture.
        regions: its regions; without confidences all are drawn alike.
        names: what class ids stand for; regions less sure than `WORTH_NAMING` go by their number alone.
        output: picture to write.
        notes: lines to write below.

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from xmodal.encoders.region_extractor import Regions
    >>> box, confidence, class_id = torch.tensor([[5.0, 5.0, 30.0, 20.0]]), torch.tensor([0.9]), torch.tensor([18])
    >>> found = Regions(torch.ones(1, 2), box, confidence, class_id)
    >>> draw_regions(Image.new("RGB", (40, 30), "red"), found, {18: "dog"}, Path("regions.png"), notes=["0.8  a dog"])
    >>> Path("regions.png").exists()
    True
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    width, height = (max(8 * side / max(image.size), 4) for side in image.size)
    figure = new_figure(width, height + 0.2 * len(notes))
    axes = figure.subplots()
    shrunk = image.copy()
    shrunk.thumbnail((SHEET, SHEET))
    axes.imshow(shrunk, extent=(0, image.width, image.height, 0))
    axes.set_axis_off()
    figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=8, family="monospace")
    for number in reversed(range(len(regions.boxes))):
        x1, y1, x2, y2 = regions.boxes[number].tolist()
        sure = 0.5 if regions.confidence is None else float(regions.confidence[number])
        color, bold = colormaps["tab10"](number % 10), 0.35 + 0.65 * sure
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, alpha=bold, linewidth=3 * bold)
        axes.add_patch(frame)
        name = ""
        if regions.class_id is not None and sure >= WORTH_NAMING:
            name = names.get(int(regions.class_id[number]), "")
        box = {"facecolor": color, "pad": 1, "linewidth": 0}
        label = f"{number} {name}".rstrip()
        axes.text(x1, y1, label, color="white", fontsize=9 if name else 7, va="top", bbox=box, clip_on=True)
    save_figure(figure, output)


def _light(
    weights: Float[Tensor, " region"], boxes: Float[Tensor, "region 4"], height: int, width: int
) -> Float[Tensor, "height width"]:
    """Brightness in [0, 1]: the attention on each pixel, summed over the regions that cover it."""
    light = torch.zeros(height, width)
    for weight, (x1, y1, x2, y2) in zip(weights, boxes.round().int().tolist(), strict=True):
        light[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] += weight.item()
    return light / light.max().clamp_min(1e-12)
