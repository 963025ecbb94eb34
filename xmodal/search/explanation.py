"""Why a sentence has the score that it has with an image, in numbers: what pictures and pages of it show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from xmodal.search.pictures import certainty

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.data import RegionStore
    from xmodal.heads import Explanation
    from xmodal.heads.base import Looking
    from xmodal.model import Matcher


@dataclass(frozen=True)
class View:
    """One way in which a head looks: rows look at columns, words at regions, regions at words, or the whole caption.

    Args:
        looking: who the rows are: `words`, `regions`, or the `caption`, which is a single row.
        weights: attention of each row, over the regions or, where regions look, over the words.
        kept: what BFAN's focal mask keeps of it; None for other heads.
        shares: what each row adds to the score; None where the head does not say.
    """

    looking: Looking
    weights: Float[Tensor, "row column"]
    kept: Bool[Tensor, "row column"] | None = None
    shares: Float[Tensor, " row"] | None = None

    @property
    def sure(self) -> Float[Tensor, " row"]:
        """How sure each row is of where it looks, from 0 to 1; see `xmodal.search.pictures.certainty`."""
        return certainty(self.weights)

    @property
    def entropy(self) -> Float[Tensor, " row"]:
        """The entropy of each row's attention, in bits: 0 of a single region, log2 of their number of all alike."""
        share = self.weights.double() / self.weights.double().sum(dim=1, keepdim=True).clamp_min(1e-300)
        return torch.special.entr(share).sum(dim=1) / math.log(2)


@dataclass(frozen=True)
class PairExplained:
    """A sentence and an image: how well they fit, and what looked at what.

    Args:
        image: file of the image.
        image_id: its name.
        sentence: as it was asked.
        words: its tokens as the model knows them.
        boxes: x1 y1 x2 y2 of the regions, in pixels of the upright image.
        score: of the pair.
        views: one, or two of a head that adds up both directions.
    """

    image: Path
    image_id: str
    sentence: str
    words: list[str]
    boxes: Float[Tensor, "region 4"]
    score: float
    views: list[View]


def explained(matcher: Matcher, store: RegionStore, image_id: str, image: Path, sentence: str) -> PairExplained:
    """What a matcher's head says about a sentence and an image of a store (`Head.explain`).

    Raises:
        KeyError: the store has no such image.
        NotImplementedError: the head does not say where it looks.
        ValueError: the store has no boxes, or the sentence is empty.

    >>> from pathlib import Path
    >>> from xmodal.data import RegionStore, RegionStoreWriter
    >>> from xmodal.model import Matcher
    >>> with RegionStoreWriter("test.h5", dim=8, extractor="by hand") as writer:
    ...     writer.write("7", torch.eye(8)[:2], boxes=[[0, 0, 20, 30], [20, 0, 40, 30]])
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan", "aggregation": "mean"}, vocabulary=["a", "dog"])
    >>> pair = explained(matcher, RegionStore("test.h5"), "7", Path("7.png"), "a dog")
    >>> (view,) = pair.views
    >>> view.looking, view.weights.shape, bool((view.shares.sum() - pair.score).abs() < 1e-6)
    ('words', torch.Size([4, 2]), True)
    """
    index = store.index(image_id)
    batch, boxes = store.batch([index]), pixel_boxes(store, index)
    views = [_view(found) for found in matcher.explain(batch, sentence)]
    score = matcher.score(batch, sentence).item()
    return PairExplained(image, image_id, sentence, matcher.token_words(sentence), boxes, score, views)


def pixel_boxes(store: RegionStore, index: int) -> Float[Tensor, "region 4"]:
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


def _view(found: Explanation) -> View:
    """What a head says about a single pair, with those who look as rows."""
    weights, kept = found.attention.weights[0].float().cpu(), found.attention.focal
    kept = None if kept is None else kept[0].cpu()
    if found.looking == "regions":
        weights, kept = weights.T, None if kept is None else kept.T
    if found.looking == "caption":
        weights, kept = weights[:1], None if kept is None else kept[:1]
    return View(found.looking, weights, kept, None if found.shares is None else found.shares[0].float().cpu())
