"""One HTML file of why a sentence fits an image as it does, which needs nothing else and sends nothing."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from xmodal.data.atomic import written_whole
from xmodal.data.images import read_image

if TYPE_CHECKING:
    from xmodal.search.explanation import PairExplained, View

TEMPLATE = Path(__file__).with_name("explained.html")

LONGEST = 1024
"""Longer side in pixels to which the image is shrunk."""

HEADINGS = {
    "words": "Where each word looks",
    "regions": "At which words each region looks",
    "caption": "Where the whole sentence looks",
}


def write_page(pair: PairExplained, output: str | Path) -> None:
    """Write the page: the image, inlined, a button for every word or region, and tables of all numbers.

    Works with the keyboard, and without scripts as far as the tables go. It may fetch nothing, by its own policy.

    Raises:
        FileNotFoundError: the file of the image is not there.
        OSError: the page cannot be written.

    >>> import torch
    >>> from PIL import Image
    >>> from xmodal.search.explanation import PairExplained, View
    >>> Image.new("RGB", (40, 30), "red").save("7.png")
    >>> boxes = torch.tensor([[0.0, 0.0, 20.0, 30.0], [20.0, 0.0, 40.0, 30.0]])
    >>> view = View("words", torch.tensor([[0.9, 0.1], [0.3, 0.7]]), shares=torch.tensor([0.5, 0.25]))
    >>> pair = PairExplained(Path("7.png"), "7", "<red> wall", ["red", "wall"], boxes, 0.75, [view])
    >>> write_page(pair, "explanation.html")
    >>> "<h1 dir=\\"auto\\">&lt;red&gt; wall</h1>" in Path("explanation.html").read_text(encoding="utf-8")
    True
    """
    picture = read_image(pair.image)
    width, height = picture.size
    picture.thumbnail((LONGEST, LONGEST))
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=88)
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_text(f"{pair.sentence} | {pair.image_id}"),
        sentence=_text(pair.sentence),
        score=f"{pair.score:.4f}",
        image_id=_text(pair.image_id),
        alt=_text(f"the image {pair.image_id} with its {len(pair.boxes)} regions"),
        width=width,
        height=height,
        picture=f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}",
        boxes="".join(map(_rectangle, pair.boxes.tolist())),
        words=" ".join(f'<span dir="auto">{_text(word)}</span>' for word in pair.words),
        views="\n".join(_section(number, view, pair) for number, view in enumerate(pair.views)),
        data=_data(pair),
    )
    with written_whole(output) as whole:
        whole.write_text(page, encoding="utf-8")


def _text(text: str) -> str:
    """Text as HTML; bytes of a file's name that are no UTF-8, which no page can hold, as question marks."""
    return escape(text.encode("utf-8", "replace").decode())


def _rectangle(box: list[float]) -> str:
    x1, y1, x2, y2 = box
    return f'<rect x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}"></rect>'


def _labels(view: View, pair: PairExplained) -> list[str]:
    """What the rows of a view are called."""
    if view.looking == "caption":
        return ["the sentence"]
    return pair.words if view.looking == "words" else [f"region {row + 1}" for row in range(len(view.weights))]


def _section(number: int, view: View, pair: PairExplained) -> str:
    """The heading, the buttons and the table of a view."""
    labels = _labels(view, pair)
    buttons = "".join(
        f'<button type="button" dir="auto" aria-pressed="false" data-view="{number}" data-row="{row}">{_text(label)}'
        "</button>"
        for row, label in enumerate(labels)
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", "adds to the score", "sure", "entropy", "looks at"))
    rows = "".join(_table_row(view, row, label, pair) for row, label in enumerate(labels))
    heading = HEADINGS[view.looking]
    return (
        f'<section><h2>{heading}</h2><div class="rows" role="group" aria-label="{heading}">{buttons}</div>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _table_row(view: View, row: int, label: str, pair: PairExplained) -> str:
    """Share, certainty, entropy in bits and the three things looked at most."""
    weights = view.weights[row]
    first = [place for place in weights.argsort(descending=True, stable=True).tolist()[:3] if weights[place] > 0]
    seen = (pair.words[place] if view.looking == "regions" else f"region {place + 1}" for place in first)
    named = ", ".join(f"{_text(name)}: {100 * weights[place]:.0f}%" for name, place in zip(seen, first, strict=True))
    share = "not told" if view.shares is None else f"{view.shares[row]:.4f}"
    cells = (share, f"{100 * view.sure[row]:.0f}%", f"{view.entropy[row]:.2f} bits", f"<bdi>{named}</bdi>")
    return f'<tr><th scope="row" dir="auto">{_text(label)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _data(pair: PairExplained) -> str:
    """All numbers as JSON that may stand inside a script."""
    content = {
        "sentence": pair.sentence,
        "image_id": pair.image_id,
        "score": pair.score,
        "words": pair.words,
        "boxes": pair.boxes.tolist(),
        "views": [{"looking": view.looking, "rows": _rows(view, _labels(view, pair))} for view in pair.views],
    }
    # Only ASCII, and nothing that could end the script or begin a comment.
    return json.dumps(content).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rows(view: View, labels: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "label": label,
            "weights": view.weights[row].tolist(),
            "kept": None if view.kept is None else view.kept[row].tolist(),
            "share": None if view.shares is None else view.shares[row].item(),
            "sure": view.sure[row].item(),
            "entropy": view.entropy[row].item(),
        }
        for row, label in enumerate(labels)
    ]
