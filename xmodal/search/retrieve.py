"""Searching a store with sentences, and explaining one pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xmodal.search.pictures import Retrieved, draw_attention

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xmodal.data import RegionStore
    from xmodal.data.image_source import ImageSource
    from xmodal.model import Matcher


def retrieve(matcher: Matcher, store: ImageSource, sentences: Sequence[str], *, top: int = 5) -> list[Retrieved]:
    """The best images of a source, a region store say, for each sentence, best first.

    Raises:
        ValueError: for `top` < 1 or an empty sentence.

    >>> from xmodal.data import RegionStore, RegionStoreWriter
    >>> from xmodal.model import Matcher
    >>> with RegionStoreWriter("test.h5", dim=8, extractor="by hand") as writer:
    ...     writer.write("dog", torch.eye(8)[:3])
    ...     writer.write("cat", torch.eye(8)[4:])
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
    >>> (row,) = retrieve(matcher, RegionStore("test.h5"), ["a dog"])
    >>> row.sentence, sorted(row.image_ids)
    ('a dog', ['cat', 'dog'])
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    scores = matcher.score_all(store, sentences)
    best = scores.topk(min(top, len(store)), dim=0)
    return [
        Retrieved(sentence, [store.image_id[int(i)] for i in best.indices[:, column]], best.values[:, column].tolist())
        for column, sentence in enumerate(sentences)
    ]


def explain_pair(matcher: Matcher, store: RegionStore, image_id: str, image: Path, sentence: str, output: Path) -> None:
    """Draw where each token of a sentence looks in one image of a store.

    Raises:
        KeyError: if the store has no such image.
        ValueError: if the store has no boxes to draw, or the sentence is empty.

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from xmodal.data import RegionStore, RegionStoreWriter
    >>> from xmodal.model import Matcher
    >>> Image.new("RGB", (40, 30), "red").save("7.png")
    >>> with RegionStoreWriter("test.h5", dim=8, extractor="by hand") as writer:
    ...     writer.write("7", torch.eye(8)[:2], boxes=[[0, 0, 20, 30], [20, 0, 40, 30]])
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog"])
    >>> explain_pair(matcher, RegionStore("test.h5"), "7", Path("7.png"), "a dog", Path("attention.png"))
    >>> Path("attention.png").exists()
    True
    """
    index = store.index(image_id)
    batch = store.batch([index])
    attention = matcher.attention(batch, sentence)
    words = matcher.token_words(sentence)
    score = matcher.score(batch, sentence).item()
    draw_attention(image, pixel_boxes(store, index), words, attention.weights[0].cpu(), output, score=score)


def pixel_boxes(store: RegionStore, index: int) -> torch.Tensor:
    """Boxes of an image in pixels, whatever convention the store keeps them in.

    >>> from xmodal.data import RegionStore, RegionStoreWriter
    >>> with RegionStoreWriter("test.h5", dim=1, extractor="by hand", box_convention="xyxy relative") as writer:
    ...     writer.write("7", [[1.0]], boxes=[[0.0, 0.5, 0.25, 1.0]], image_size=(80, 60))
    >>> pixel_boxes(RegionStore("test.h5"), 0)
    tensor([[ 0., 30., 20., 60.]])
    """
    boxes = store.boxes(index)
    if store.attributes["box_convention"] == "xyxy pixels":
        return boxes
    width, height = store.image_size(index)
    return boxes * torch.tensor([width, height, width, height])
