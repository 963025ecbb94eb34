"""What is given to a matcher in place of images and sentences is told by its kind and its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.data.labelled import LabelledFeatures
from xmodal.embedder import embed_all
from xmodal.model import Matcher

ONE = torch.ones(3, 4)


@pytest.fixture(scope="module")
def matcher():
    torch.manual_seed(0)
    image, text = {"name": "regions", "input_dim": 4, "dim": 8}, {"name": "gru", "word_dim": 4}
    return Matcher(image, text, {"name": "scan"}, ["a", "dog"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            Image.new("RGB", (4, 4)),
            "images are of type Image; wanted an array of what the image encoder takes, the path",
        ),
        ((ONE for _ in range(2)), "images are of type generator; wanted"),
        (None, "images are None; wanted"),
        (7, "images are of type int; wanted"),
        ({"7": ONE}, "images are of type dict; wanted"),
        ([ONE, Image.new("RGB", (4, 4))], "image 1 is of type Image, not an array of numbers"),
        ([ONE, None], "image 1 is None, not an array of numbers"),
        ([{"7": ONE}], "image 0 is of type dict, not an array of numbers"),
        (np.array([[None] * 4] * 3, dtype=object), "image 0 is of type ndarray, not an array of numbers"),
        (torch.tensor(1.0), r"image 0: region features must be .* got \(\)"),
        (np.float32(1), r"image 0: region features must be .* got \(\)"),
    ],
)
def test_what_is_no_image_is_refused(matcher, images, message):
    for ask in (lambda: matcher.score(images, "a dog"), lambda: matcher.embed_images(images)):
        with pytest.raises(ValueError, match=message):
            ask()


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ((text for text in ["a dog"]), "captions are of type generator; wanted a sentence or a list of sentences"),
        (None, "captions are None; wanted"),
        ({"a dog"}, "captions are of type set; wanted"),
        ({"a dog": 1}, "captions are of type dict; wanted"),
        (7, "captions are of type int; wanted"),
        (["a dog", None], "caption 1 is None; wanted a sentence"),
        ([b"a dog"], "caption 0 is of type bytes; wanted a sentence"),
        ([["a", "dog"]], "caption 0 is of type list; wanted a sentence"),
        (b"a dog", "captions is the string b'a dog'; wanted a list of"),
    ],
)
def test_what_is_no_sentence_is_refused(matcher, captions, message):
    for ask in (lambda: matcher.score(ONE, captions), lambda: matcher.embed_captions(captions)):
        with pytest.raises(ValueError, match=message):
            ask()


def test_arrays_of_sentences_are_sentences(matcher):
    wanted = matcher.embed_captions(["a dog", "dog"]).items
    assert torch.equal(matcher.embed_captions(np.array(["a dog", "dog"])).items, wanted)
    assert torch.equal(matcher.score(ONE, np.array(["a dog", "dog"])), matcher.score(ONE, ["a dog", "dog"]))


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_batches_have_at_least_one_item(matcher, size):
    images = LabelledFeatures(torch.eye(3), ["1.jpg", "2.jpg", "3.jpg"], ["wren"] * 3, ["test"] * 3)
    for ask in (
        lambda: matcher.embed_captions(["a dog"], batch_size=size),
        lambda: matcher.embed_store([ONE], batch_size=size),
        lambda: embed_all(torch.nn.Linear(3, 2), images, batch_size=size),
    ):
        with pytest.raises(ValueError, match="batch_size must be"):
            ask()
