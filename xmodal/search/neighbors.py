"""Pictures of an embedding of labelled images: what queries retrieve, and a map of the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from xmodal.data.images import read_image
from xmodal.data.strings import refuse_string
from xmodal.evaluation.neighbors import as_points, center, nearest_neighbors
from xmodal.figures import new_figure, save_figure
from xmodal.numerics import check_count
from xmodal.search.pictures import CELL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

THUMBNAIL = 32
"""Longer side of an image on a map, in points."""

LEAST_TSNE = (4, 2)
"""Images and dims of which t-SNE makes a map."""


def draw_neighbors(
    embeddings: Float[Tensor, "image dim"],
    labels: Int[Tensor, "image"],
    images: Sequence[str | Path],
    queries: Sequence[int],
    output: Path,
    *,
    count: int = 8,
    query: Bool[Tensor, "image"] | None = None,
    normalize: bool = True,
) -> None:
    """A sheet with one query a row, then its nearest images: green frames for those of its class, red for the others.

    What is nearest, and among which images, is what `evaluate_embeddings` measures with the same arguments.

    Args:
        embeddings: one row an image.
        labels: its class.
        images: its file.
        queries: which images to look up.
        output: picture to write.
        count: how many neighbors to show.
        query: True for the images that are looked up among the others only; None to look among all.
        normalize: compare by cosine, which is written above each neighbor; otherwise by Euclidean distance.

    Raises:
        FileNotFoundError: the file of an image is not there.
        ValueError: there is no query, or one is no image, or an image of the gallery; `count` is not positive; there is
            no other image; or labels or files are not as many as embeddings.

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> files = [f"{number}.png" for number in range(3)]
    >>> for file in files:
    ...     Image.new("RGB", (20, 20), "red").save(file)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> draw_neighbors(embeddings, torch.tensor([0, 0, 1]), files, queries=[0], output=Path("neighbors.png"))
    >>> Path("neighbors.png").exists()
    True
    """
    check_count("count", count)
    _check_lengths(len(embeddings), labels=labels, images=images)
    if not queries or min(queries) < 0 or max(queries) >= len(labels):
        raise ValueError(f"queries are {list(queries)}; wanted some of the images 0 to {len(labels) - 1}")
    everything = torch.arange(len(labels))
    gallery = everything if query is None else everything[~torch.as_tensor(query)]
    if query is not None and (strangers := set(queries) & set(gallery.tolist())):
        raise ValueError(f"image {min(strangers)} is in the gallery; wanted queries, which are looked up in it")
    others = len(gallery) - int(query is None)
    if others < 1:
        raise ValueError(f"of {len(labels)} images none is left to be a neighbor; wanted one besides the queries")
    count = min(count, others)
    search = nearest_neighbors(embeddings, labels, torch.tensor(queries), gallery, count, normalize=normalize)
    found = [row for block in search for row in block.neighbor.tolist()]
    points = as_points(embeddings, normalize=True) if normalize else embeddings.double()
    columns = 1 + count
    figure = new_figure(1.6 * columns, 1.7 * len(queries))
    axes = figure.subplots(len(queries), columns, squeeze=False)
    bar = tqdm(queries, "drawing", unit="row", delay=2, leave=False)
    for looked_up, row, cells in zip(bar, found, axes, strict=True):
        for cell in cells:
            cell.set_axis_off()
        for cell, image in zip(cells, [looked_up, *row], strict=False):
            cell.imshow(read_image(images[image], longest=CELL))
            cell.set_axis_on()
            cell.set_xticks([])
            cell.set_yticks([])
            right = bool(labels[image] == labels[looked_up])
            color = "0.85" if cell is cells[0] else "tab:green" if right else "tab:red"
            for spine in cell.spines.values():
                spine.set(color=color, linewidth=1 if cell is cells[0] else 4)
            if cell is not cells[0]:
                near = points[looked_up] @ points[image] if normalize else (points[looked_up] - points[image]).norm()
                cell.text(0.02, 1.02, f"{float(near):.4g}", transform=cell.transAxes, fontsize=8, color="0.35")
    save_figure(figure, output)


def draw_map(
    embeddings: Float[Tensor, "image dim"],
    labels: Int[Tensor, "image"],
    output: Path,
    *,
    method: Literal["pca", "tsne"] = "pca",
    class_names: Sequence[str] | None = None,
    images: Sequence[str | Path] | None = None,
    normalize: bool = True,
    seed: int = 0,
) -> None:
    """All images on a plane, such that those with like embeddings are near each other.

    Args:
        embeddings: one row an image.
        labels: its class.
        output: picture to write.
        method: the two directions in which the embeddings vary most (`pca`), or t-SNE, which keeps neighbors together
            and needs scikit-learn (`tsne`).
        class_names: name of each class, written at the middle of its images.
        images: the file of each image, to show small pictures instead of points colored by class.
        normalize: compare by cosine; otherwise by Euclidean distance.
        seed: of t-SNE.

    Raises:
        FileNotFoundError: the file of an image is not there.
        ModuleNotFoundError: t-SNE without scikit-learn.
        ValueError: an unknown method, too few images for it, or labels, names or files are not as many as wanted.

    >>> from pathlib import Path
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> draw_map(embeddings, torch.tensor([0, 0, 1]), Path("map.png"), class_names=["gull", "wren"])
    >>> Path("map.png").exists()
    True
    """
    _check_lengths(len(embeddings), labels=labels, images=images)
    refuse_string("class_names", class_names, "names")
    places = plane(embeddings, method, seed, normalize=normalize)
    if class_names is not None and int(labels.max()) >= len(class_names):
        raise ValueError(f"a label is {int(labels.max())}, but there are {len(class_names)} class names")
    figure = new_figure(9, 9)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.scatter(*places.T, c=labels % 20, cmap="tab20", s=8 if images is None else 0)
    if images is not None:
        _draw_thumbnails(axes, places, images)
    if class_names is not None:
        for label in map(int, labels.unique()):
            x, y = places[labels == label].median(dim=0).values.tolist()
            axes.text(x, y, class_names[label], fontsize=7, ha="center", color="0.2").set_in_layout(False)
    save_figure(figure, output)


def plane(
    embeddings: Float[Tensor, "image dim"], method: str = "pca", seed: int = 0, *, normalize: bool = True
) -> Float[Tensor, "image 2"]:
    """Where each image is on a map; see `draw_map`. What varies in one direction only lies on a line.

    Raises:
        ModuleNotFoundError: t-SNE without scikit-learn.
        ValueError: an unknown method, no images, or too few images or dims for t-SNE.

    >>> places = plane(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
    >>> places.shape, bool((places[0] - places[1]).norm() < (places[0] - places[2]).norm())
    (torch.Size([3, 2]), True)
    """
    if method not in ("pca", "tsne"):
        raise ValueError(f"method is {method!r}; wanted 'pca' or 'tsne'")
    least = (1, 1) if method == "pca" else LEAST_TSNE
    if len(embeddings) < least[0] or embeddings.shape[1] < least[1]:
        raise ValueError(
            f"{len(embeddings)} embeddings of {embeddings.shape[1]} dims make no map by {method!r}; wanted at least "
            f"{least[0]} of {least[1]}"
        )
    points = center(as_points(embeddings, normalize=normalize)).points.float()
    if method == "pca":
        centered = points - points.mean(dim=0)
        places = centered @ torch.linalg.svd(centered, full_matrices=False).Vh[:2].T
        return torch.nn.functional.pad(places, (0, 2 - places.shape[1]))
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("t-SNE needs scikit-learn: pip install scikit-learn; or use method='pca'") from error
    perplexity = min(30.0, (len(points) - 1) / 3)
    return torch.from_numpy(TSNE(perplexity=perplexity, random_state=seed).fit_transform(points.cpu().numpy()))


def _check_lengths(count: int, **lists: Sequence[Any] | Tensor | None) -> None:
    """Make sure that there is one of everything an image."""
    for name, values in lists.items():
        if values is not None and len(values) != count:
            raise ValueError(f"there are {len(values)} {name} for {count} embeddings; wanted one each")


def _draw_thumbnails(axes, places: Float[Tensor, "image 2"], images: Sequence[str | Path]) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    for place, path in zip(tqdm(places.tolist(), "drawing", unit="image", delay=2, leave=False), images, strict=True):
        picture = np.asarray(read_image(path, longest=THUMBNAIL))
        box = AnnotationBbox(OffsetImage(picture), place, frameon=False)
        box.set_in_layout(False)  # hundreds of them would leave the axes no room
        axes.add_artist(box)
