import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.search.pictures import Retrieved, draw_attention, draw_retrieved, find_image


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, color in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (40, 30), color).save(folder / f"{name}.png")
    return folder


def test_the_right_image_is_framed_in_green(images, tmp_path):
    rows = [Retrieved("red first", ["a", "b"], [0.9, 0.1], correct="a"), Retrieved("unknown", ["c"], [0.3])]
    draw_retrieved(rows, images, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        sheet = np.asarray(picture.convert("RGB")).astype(int)
    framed = np.argwhere(abs(sheet - [44, 160, 44]).max(axis=-1) < 3)  # matplotlib's tab:green
    assert len(framed) > 100
    assert framed[:, 0].max() < sheet.shape[0] / 2, "the row without a known image has no frame"
    assert framed[:, 1].max() < sheet.shape[1] / 2, "the wrong image has no frame"


def test_attention_lights_the_region_that_a_word_looks_at(images, tmp_path):
    boxes = torch.tensor([[0.0, 0.0, 20.0, 30.0], [20.0, 0.0, 40.0, 30.0]])
    weights = torch.tensor([[1.0, 0.0]])
    Image.new("RGB", (40, 30), "white").save(images / "white.png")
    draw_attention(images / "white.png", boxes, ["left"], weights, tmp_path / "attention.png", score=0.5)
    with Image.open(tmp_path / "attention.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    middle = pixels[len(pixels) // 2]
    quarter = len(middle) // 4
    assert middle[quarter] > 250
    assert middle[3 * quarter] < 100


def test_missing_image_is_named(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="no image 'zebra'"):
        find_image(images, "zebra")
    with pytest.raises(FileNotFoundError, match="no image 'zebra'"):
        draw_retrieved([Retrieved("a zebra", ["zebra"], [1.0])], images, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
