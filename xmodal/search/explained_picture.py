"""One picture of why a sentence fits an image as it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xmodal.figures import new_figure, save_figure
from xmodal.search.pictures import draw_look, picture_with_boxes

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor

    from xmodal.search.explanation import PairExplained, View

COLUMNS = 6
"""Panels of words beside one another."""

MEANINGS = {
    "words": "each word, where it looks, how sure it is (100%: one region, 0%: all alike)",
    "regions": "each region, at which words it looks",
    "caption": "the whole sentence, where it looks",
}


def draw_explanation(pair: PairExplained, output: Path) -> None:
    """Draw every view of a pair below one another, with its score.

    Words have a panel each, lit where they look, the most attended region in red; what BFAN's focal mask keeps has a
    thin white frame. Where regions look, a table of regions by words is as dark as the attention is strong, with a dot
    on what the mask keeps, beside the image with the numbers of the regions. Behind a name stand how sure it is of
    where it looks and what it adds to the score, where the head says that.

    Raises:
        FileNotFoundError: the file of the image is not there.
        OSError: the picture cannot be written.

    >>> import torch
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from xmodal.search.explanation import PairExplained, View
    >>> Image.new("RGB", (40, 30), "red").save("7.png")
    >>> boxes = torch.tensor([[0.0, 0.0, 20.0, 30.0], [20.0, 0.0, 40.0, 30.0]])
    >>> view = View("words", torch.tensor([[0.9, 0.1], [0.3, 0.7]]), shares=torch.tensor([0.5, 0.25]))
    >>> pair = PairExplained(Path("7.png"), "7", "red wall", ["red", "wall"], boxes, 0.75, [view])
    >>> draw_explanation(pair, Path("explanation.png"))
    >>> Path("explanation.png").exists()
    True
    """
    pixels, boxes = picture_with_boxes(pair.image, pair.boxes)
    heights = [_height(view) for view in pair.views]
    figure = new_figure(2.2 * COLUMNS, sum(heights) + 0.5)
    figure.suptitle(f"“{pair.sentence}”   score {pair.score:.3f}", fontsize=12)
    parts = figure.subfigures(len(pair.views), 1, squeeze=False, height_ratios=heights).flatten()
    for part, view in zip(parts, pair.views, strict=True):
        part.suptitle(MEANINGS[view.looking], fontsize=9, color="0.35")
        draw = _draw_regions if view.looking == "regions" else _draw_panels
        draw(part, view, pair, pixels, boxes)
    save_figure(figure, output)


def _height(view: View) -> float:
    """Of a view, in inches."""
    if view.looking == "regions":
        return max(4.0, 0.2 * len(view.weights) + 1.2)
    return 2.6 * -(-len(view.weights) // COLUMNS) + 0.3


def _noted(view: View, row: int) -> str:
    """How sure a row is and what it adds."""
    added = "" if view.shares is None else f"  {view.shares[row]:+.3f}"
    return f"{100 * view.sure[row]:.0f}%{added}"


def _draw_panels(
    part: Any, view: View, pair: PairExplained, pixels: Float[Tensor, "h w 3"], boxes: Float[Tensor, "region 4"]
) -> None:
    names = ["the sentence"] if view.looking == "caption" else pair.words
    panels = part.subplots(-(-len(names) // COLUMNS), COLUMNS, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for row, (panel, name) in enumerate(zip(panels, names, strict=False)):
        kept = None if view.kept is None else view.kept[row]
        title, sure = f"{name}  {_noted(view, row)}", float(view.sure[row])
        draw_look(panel, pixels, boxes, view.weights[row], title, sure=sure, kept=kept)


def _draw_regions(
    part: Any, view: View, pair: PairExplained, pixels: Float[Tensor, "h w 3"], boxes: Float[Tensor, "region 4"]
) -> None:
    from matplotlib.patches import Rectangle

    picture, table = part.subplots(1, 2, width_ratios=[1, 1.4])
    picture.imshow(pixels.numpy())
    picture.set_axis_off()
    for region, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        picture.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="tab:red", linewidth=0.8))
        label = {"facecolor": "tab:red", "pad": 1, "linewidth": 0}
        picture.text(x1, y1, str(region + 1), color="white", fontsize=6, va="top", bbox=label, clip_on=True)
    table.imshow(view.weights.numpy(), cmap="Blues", aspect="auto", vmin=0.0)
    table.set_xticks(range(len(pair.words)), pair.words, rotation=45, ha="right", fontsize=8)
    names = [f"{row + 1}  {_noted(view, row)}" for row in range(len(view.weights))]
    table.set_yticks(range(len(names)), names, fontsize=6)
    if view.kept is not None:
        rows, columns = view.kept.nonzero(as_tuple=True)
        table.scatter(columns.numpy(), rows.numpy(), s=4, color="tab:orange")
