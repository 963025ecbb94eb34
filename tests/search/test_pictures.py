import math

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.search.pictures import (
    Retrieved,
    certainty,
    draw_attention,
    draw_retrieved,
    find_image,
)


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


def test_words_that_look_nowhere_are_dark_and_say_so(images, tmp_path):
    boxes = torch.tensor([[0.0, 0.0, 20.0, 30.0], [20.0, 0.0, 40.0, 30.0]])
    Image.new("RGB", (40, 30), "white").save(images / "white.png")
    weights = torch.tensor([[0.98, 0.02], [0.55, 0.45], [0.5, 0.5]])
    draw_attention(images / "white.png", boxes, ["sure", "hardly", "not"], weights, tmp_path / "attention.png")
    with Image.open(tmp_path / "attention.png") as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    panels = np.array_split(pixels[len(pixels) // 2], 3)
    lit = [panel[len(panel) // 4] for panel in panels]
    assert lit[0] > 250
    assert 62 <= lit[2] < lit[1] < 110, "a quarter of white is what no word looks at"


def test_certainty_is_one_minus_the_share_of_the_largest_entropy():
    weights = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) ** 4
    for row, sure in zip(weights.double() / weights.double().sum(dim=1, keepdim=True), certainty(weights), strict=True):
        entropy = -sum(p * math.log(p) for p in row.tolist())
        assert sure.item() == pytest.approx(1 - entropy / math.log(7), abs=1e-6)
    edges = torch.tensor([[0.0, 0.0, 3.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    assert certainty(edges).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)
    assert certainty(torch.ones(2, 1)).tolist() == [1.0, 1.0]


def test_boxes_lie_on_the_upright_picture(images, tmp_path):
    """The photograph lies on its side: its left half, white, is the upper half of the upright picture."""
    image = Image.new("RGB", (600, 400), "black")
    image.paste("white", (0, 0, 300, 400))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(images / "side.jpg", exif=exif)
    upper_half = torch.tensor([[0.0, 0.0, 400.0, 300.0], [0.0, 300.0, 400.0, 600.0]])
    draw_attention(find_image(images, "side"), upper_half, ["up"], torch.tensor([[1.0, 0.0]]), tmp_path / "up.png")
    with Image.open(tmp_path / "up.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red = np.argwhere(abs(pixels - [214, 39, 40]).max(axis=-1) < 40)
    inside = pixels[red[:, 0].min() + 9 : red[:, 0].max() - 9, red[:, 1].min() + 9 : red[:, 1].max() - 9]
    assert (inside > 240).all(), "the frame is around what is white and lit"
    assert inside.shape[0] < inside.shape[1], "half of an upright picture of 400 x 600"


def test_transparent_images_and_unusual_files_are_shown_as_they_were_extracted(tmp_path):
    (tmp_path / "deep").mkdir()
    Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(tmp_path / "deep" / "COCO_val2014_000000000042.PNG")
    draw_retrieved([Retrieved("white", ["42"], [1.0])], tmp_path, tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as picture:
        red, green, blue = picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2))
    assert min(red, green, blue) > 250


def test_missing_image_is_named(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="no image 'zebra'"):
        find_image(images, "zebra")
    with pytest.raises(FileNotFoundError, match="no image 'zebra'"):
        draw_retrieved([Retrieved("a zebra", ["zebra"], [1.0])], images, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_what_cannot_be_drawn_is_told(images, tmp_path):
    for rows in ([], [Retrieved("a dog", [], []), Retrieved("a cat", [], [])]):
        with pytest.raises(ValueError, match=f"nothing to draw: none of {len(rows)} sentences retrieved an image"):
            draw_retrieved(rows, images, tmp_path / "sheet.png")
    box = torch.tensor([[0.0, 0.0, 20.0, 30.0]])
    for words, weights in (([], torch.zeros(0, 1)), (["a", "dog"], torch.ones(1, 1)), (["a"], torch.ones(1, 2))):
        with pytest.raises(ValueError, match=f"for {len(words)} words and 1 boxes; wanted at least one word"):
            draw_attention(images / "a.png", box, words, weights, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
