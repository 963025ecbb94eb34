"""Sheets of neighbors and maps: the frames have the right colors, what is alike is side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from xmodal.search.neighbors import draw_map, draw_neighbors, plane

EMBEDDINGS = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.2, 0.9]])
LABELS = torch.tensor([0, 0, 1, 1])
GREEN, RED = (44, 160, 44), (214, 39, 40)


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{shade}.png" for shade in (0, 60, 120, 240)]
    for path in paths:
        Image.new("RGB", (40, 30), (int(path.stem),) * 3).save(path)
    return paths


def pixels_of(picture, color):
    """Where a color is, as rows and columns in shares of the picture."""
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    return np.argwhere(abs(pixels - color).max(axis=-1) < 3) / pixels.shape[:2]


def test_hits_are_green_and_misses_red(images, tmp_path):
    draw_neighbors(EMBEDDINGS, LABELS, images, [0], tmp_path / "sheet.png", count=3)
    green, red = (pixels_of(tmp_path / "sheet.png", color) for color in (GREEN, RED))
    assert len(green) > 100
    assert 0.25 < green[:, 1].min() < green[:, 1].max() < 0.5, "the nearest is right: the second of four columns"
    assert red[:, 1].min() > 0.5
    gray = pixels_of(tmp_path / "sheet.png", (240, 240, 240))
    assert 0.5 < np.median(gray[:, 1]) < 0.75, "the second nearest is the last image"


def test_a_row_a_query(images, tmp_path):
    draw_neighbors(EMBEDDINGS, LABELS, images, [3, 0], tmp_path / "sheet.png", count=99)
    assert {round(row * 2 - 0.5) for row in pixels_of(tmp_path / "sheet.png", GREEN)[:, 0]} == {0, 1}


def test_what_is_drawn_is_what_was_measured(images, tmp_path):
    """The nearest of image 0 by distance is 1, of its class; by cosine 2; and in the gallery of 2 and 3 it is 3."""
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.5], [5.0, 0.1], [3.0, 0.9]])
    gallery = torch.tensor([True, True, False, False])
    for shade, options in (
        (60, {"normalize": False}),
        (120, {"normalize": True}),
        (240, {"normalize": False, "query": gallery}),
        (120, {"normalize": True, "query": gallery}),
    ):
        draw_neighbors(embeddings, LABELS, images, [0], tmp_path / "sheet.png", count=1, **options)
        assert len(pixels_of(tmp_path / "sheet.png", (shade,) * 3)) > 1000, options


def test_sheets_hold_thumbnails(images, tmp_path, monkeypatch):
    """Of photographs of 12 megapixels, a sheet holds a tenth of a megapixel each, and JPEGs are not decoded in full."""
    photographs = [tmp_path / f"{number}.jpg" for number in range(4)]
    for path in photographs:
        Image.new("RGB", (4000, 3000), "red").save(path)
    decoded, held = [], []
    load, imshow = Image.Image.load, Axes.imshow
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self.size) or load(self))
    monkeypatch.setattr(Axes, "imshow", lambda self, picture: held.append(picture.size) or imshow(self, picture))
    draw_neighbors(EMBEDDINGS, LABELS, photographs, [0], tmp_path / "sheet.png", count=3)
    assert held == [(320, 240)] * 4
    assert max(decoded) < (1001, 751)


def test_queries_that_cannot_be_drawn_are_refused(images, tmp_path):
    for queries in ([], [4], [-1]):
        with pytest.raises(ValueError, match="wanted some of the images 0 to 3"):
            draw_neighbors(EMBEDDINGS, LABELS, images, queries, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="image 2 is in the gallery"):
        draw_neighbors(EMBEDDINGS, LABELS, images, [2], tmp_path / "sheet.png", query=LABELS == 0)
    images[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"no image at .*60\.png"):
        draw_neighbors(EMBEDDINGS, LABELS, images, [0], tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_sheets_and_maps_that_cannot_be_drawn_are_refused(images, tmp_path):
    draw = (EMBEDDINGS, LABELS, images, [0], tmp_path / "sheet.png")
    for count, told in ((0, "at least 1, got 0"), (-1, "at least 1, got -1"), (1.5, "a whole number, got 1.5")):
        with pytest.raises(ValueError, match=f"count must be {told}"):
            draw_neighbors(*draw, count=count)
    with pytest.raises(ValueError, match="of 1 images none is left to be a neighbor"):
        draw_neighbors(EMBEDDINGS[:1], LABELS[:1], images[:1], [0], tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="of 4 images none is left to be a neighbor"):
        draw_neighbors(*draw, query=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="there are 3 images for 4 embeddings"):
        draw_neighbors(EMBEDDINGS, LABELS, images[:3], [0], tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="there are 3 labels for 4 embeddings"):
        draw_map(EMBEDDINGS, LABELS[:3], tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="class_names is the string 'ab'"):
        draw_map(EMBEDDINGS, LABELS, tmp_path / "sheet.png", class_names="ab")
    with pytest.raises(ValueError, match="a label is 1, but there are 1 class names"):
        draw_map(EMBEDDINGS, LABELS, tmp_path / "sheet.png", class_names=["dark"])
    with pytest.raises(ValueError, match="0 embeddings of 2 dims make no map by 'pca'; wanted at least 1 of 1"):
        draw_map(EMBEDDINGS[:0], LABELS[:0], tmp_path / "sheet.png")
    for few in (EMBEDDINGS[:3], EMBEDDINGS[:, :1]):
        with pytest.raises(ValueError, match="make no map by 'tsne'; wanted at least 4 of 2"):
            draw_map(few, LABELS[: len(few)], tmp_path / "sheet.png", method="tsne")
    assert not (tmp_path / "sheet.png").exists()


def test_what_varies_in_no_or_one_direction_lies_on_a_line(tmp_path):
    """One image, images of one dim, and images of one line, whose distances the map keeps."""
    assert plane(torch.tensor([[3.0, 4.0]])).tolist() == [[0.0, 0.0]]
    for points in (torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])):
        places = plane(points, normalize=False)
        apart = torch.cdist(places, places)
        assert torch.allclose(apart / apart[0, 2], torch.tensor([[0, 1, 3], [1, 0, 2], [3, 2, 0]]) / 3, atol=1e-6)
        assert torch.allclose(places[:, 1], torch.zeros(3), atol=1e-6)
    draw_map(torch.tensor([[3.0, 4.0]]), LABELS[:1], tmp_path / "map.png", class_names=["dark"])
    assert (tmp_path / "map.png").exists()


def test_principal_directions_are_those_of_most_variance():
    generator = torch.Generator().manual_seed(0)
    # On a small cap of the sphere, lengthwise in one direction and broad in another.
    spread = torch.randn(200, 5, generator=generator) * torch.tensor([0.0, 0.3, 0.01, 0.1, 0.01])
    points = torch.nn.functional.normalize(spread + torch.tensor([5.0, 0, 0, 0, 0]))
    places = plane(points)
    assert places.shape == (200, 2)
    for place, axis in zip(places.T, (1, 3), strict=True):
        assert abs(torch.corrcoef(torch.stack([place, points[:, axis]]))[0, 1]) > 0.95


def test_t_sne_keeps_neighbors_together():
    pytest.importorskip("sklearn")
    labels = torch.arange(30) % 3
    points = torch.eye(3)[labels] + 0.01 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    places = plane(points, "tsne")
    nearest = torch.cdist(places, places).fill_diagonal_(torch.inf).argmin(dim=1)
    assert torch.equal(labels[nearest], labels)
    with pytest.raises(ValueError, match="method is 'umap'; wanted 'pca' or 'tsne'"):
        plane(points, "umap")


def test_a_map_shows_points_or_pictures(images, tmp_path):
    draw_map(EMBEDDINGS, LABELS, tmp_path / "points.png", class_names=["dark", "bright"])
    draw_map(EMBEDDINGS, LABELS, tmp_path / "pictures.png", images=images)
    for name, shades in (("points.png", 0), ("pictures.png", 3)):
        with Image.open(tmp_path / name) as picture:
            counts = picture.convert("L").histogram()
        assert sum(counts[shade] > 100 for shade in (60, 120, 240)) == shades
