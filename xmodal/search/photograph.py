"""One photograph, told in lines: its regions, and how well sentences fit it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xmodal.data.strings import refuse_string
from xmodal.given import region_batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xmodal.encoders.region_extractor import Regions
    from xmodal.model import Matcher


def describe_regions(regions: Regions, names: Mapping[int, str]) -> list[str]:
    """A line a region: its number, its box in pixels and, from a detector, what it is and how sure that is.

    >>> import torch
    >>> from xmodal.encoders.region_extractor import Regions
    >>> found = Regions(torch.ones(1, 2), torch.tensor([[0.0, 5, 30, 40]]), torch.tensor([0.9]), torch.tensor([18]))
    >>> describe_regions(found, {18: "dog"})
    ['   0      0.0     5.0    30.0    40.0  0.90  dog']
    """
    lines = []
    for number, box in enumerate(regions.boxes.tolist()):
        line = f"{number:4}  " + " ".join(f"{edge:7.1f}" for edge in box)
        if regions.confidence is not None:
            line += f"  {float(regions.confidence[number]):.2f}"
        if regions.class_id is not None:
            class_id = int(regions.class_id[number])
            line += f"  {names.get(class_id, f'class {class_id}')}"
        lines.append(line)
    return lines


def describe_scores(matcher: Matcher, regions: Regions, size: tuple[int, int], sentences: Sequence[str]) -> list[str]:
    """A line a sentence, the one that fits best first.

    Args:
        matcher: what scores.
        regions: of the photograph.
        size: its width and height.
        sentences: the sentences.

    Raises:
        ValueError: a sentence is empty, or the matcher takes features of another dim.

    >>> import torch
    >>> from xmodal.encoders.region_extractor import Regions
    >>> from xmodal.model import Matcher
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
    >>> regions = Regions(torch.randn(3, 8), torch.rand(3, 4))
    >>> lines = describe_scores(matcher, regions, (40, 30), ["a dog", "a cat"])
    >>> sorted(line.split(maxsplit=1)[1] for line in lines)
    ['a cat', 'a dog']
    """
    refuse_string("sentences", sentences, "sentences")
    scores = matcher.score(region_batch(regions, size), list(sentences))[0].tolist()
    ranked = sorted(zip(scores, sentences, strict=True), reverse=True)
    return [f"{score:8.4f}  {sentence}" for score, sentence in ranked]
