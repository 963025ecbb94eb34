"""The pointing game: does a word look at what it names?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.data import tokenize

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.data import RegionStore
    from xmodal.model import Matcher


class Pointing(NamedTuple):
    """Whether each word's most attended region overlaps what the word names, and how often a random region would."""

    hits: Bool[Tensor, " word"]
    chance: Float[Tensor, " word"]


def pointing(
    weights: Float[Tensor, "word region"], boxes: Float[Tensor, "region 4"], targets: Sequence[Float[Tensor, "box 4"]]
) -> Pointing:
    """The pointing game (Zhang et al., ECCV 2016), played with regions instead of points.

    A word that looks at several regions alike hits only if all of them do.

    Args:
        weights: attention of each word.
        boxes: x1 y1 x2 y2 of the regions.
        targets: for each word the boxes of what it names, in the same units.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
        >>> pointing(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), boxes, [boxes[:1], boxes[1:]])
        Pointing(hits=tensor([ True, False]), chance=tensor([0.5000, 0.5000]))
    """
    overlapping = []
    for target in targets:
        top_left = torch.maximum(boxes[:, None, :2], target[None, :, :2])
        bottom_right = torch.minimum(boxes[:, None, 2:], target[None, :, 2:])
        overlapping.append((bottom_right > top_left).all(dim=-1).any(dim=-1))
    overlaps = torch.stack(overlapping)
    top = weights == weights.amax(dim=1, keepdim=True)
    return Pointing((overlaps | ~top).all(dim=1), overlaps.float().mean(dim=1))


class Mention(NamedTuple):
    """Characters of a caption that name something, and where that is in the image."""

    image_id: str
    caption: str
    start: int
    end: int
    boxes: Float[Tensor, "box 4"]


def pointing_accuracy(matcher: Matcher, store: RegionStore, mentions: Iterable[Mention]) -> dict[str, float]:
    """Percent of the naming words whose most attended region overlaps what they name, and what chance would give.

    Args:
        matcher: with a vocabulary: words are found by the published tokenization.
        store: regions of the images, with boxes in the units of the mentions'.
        mentions: a mention of two words counts as two.

    Raises:
        ValueError: if there is no mention.

    Example:
        >>> from xmodal.evaluation.pointing import Mention, pointing_accuracy
        >>> import torch
        >>> from xmodal.data import RegionStore, RegionStoreWriter
        >>> from xmodal.model import Matcher
        >>> boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [20.0, 20.0, 30.0, 30.0]])
        >>> with RegionStoreWriter("test.h5", dim=8, extractor="by hand") as writer:
        ...     writer.write("7", torch.eye(8)[:2], boxes)
        >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
        >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog"])
        >>> mention = Mention("7", "a dog", start=2, end=5, boxes=boxes[:1])
        >>> pointing_accuracy(matcher, RegionStore("test.h5"), [mention])["chance"]
        50.0
    """
    rounds = []
    for mention in mentions:
        index = store.index(mention.image_id)
        weights = matcher.attention(store.batch([index]), mention.caption).weights[0].cpu()
        first = 1 + len(tokenize(mention.caption[: mention.start]))  # after <start>
        words = weights[first : first + len(tokenize(mention.caption[mention.start : mention.end]))]
        rounds.append(pointing(words, store.boxes(index), [mention.boxes] * len(words)))
    if not rounds:
        raise ValueError("there is no mention to look for")
    hits, chance = (torch.cat(column).float().mean().item() for column in zip(*rounds, strict=True))
    return {"hits": 100 * hits, "chance": 100 * chance}
