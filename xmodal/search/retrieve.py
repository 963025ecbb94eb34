"""Searching a store with sentences, and explaining one pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xmodal.data.positions import position_by_name
from xmodal.data.strings import refuse_string
from xmodal.encoders.base import EncodedSet
from xmodal.evaluation.calibration import LIKELY
from xmodal.numerics import check_count
from xmodal.search.explained_page import write_page
from xmodal.search.explained_picture import draw_explanation
from xmodal.search.explanation import explained
from xmodal.search.hits import check_scores
from xmodal.search.pictures import Retrieved
from xmodal.search.queries import Query, combine_scores, score_like

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xmodal.data import RegionStore
    from xmodal.data.image_source import ImageSource
    from xmodal.evaluation.calibration import Calibration
    from xmodal.model import Matcher


def retrieve(
    matcher: Matcher,
    store: ImageSource,
    sentences: Sequence[str],
    *,
    top: int = 5,
    like: Sequence[str] = (),
    calibration: Calibration | None = None,
) -> list[Retrieved]:
    """The best images of a source, a region store say, for each sentence, best first.

    Args:
        matcher: what scores.
        store: the images.
        sentences: as for `Query.parse`: "a dog NOT red car" asks for dogs without red cars.
        top: how many images.
        like: ids of images of the source that all answers should be like; with them a sentence may be empty.
        calibration: what makes probabilities of the scores of plain sentences.

    Raises:
        KeyError: the source has no such image.
        ValueError: for `top` < 1, an empty sentence, a head that cannot tell which images are alike, or a score that
            is NaN.

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
    check_count("top", top)
    refuse_string("sentences", sentences, "sentences")
    queries = [Query.parse(sentence, like) for sentence in sentences]
    alike = _scores_of_images(matcher, store, like)
    texts = list(dict.fromkeys(text for query in queries for text in (*query.wanted, *query.unwanted)))
    columns = dict(zip(texts, matcher.score_all(store, texts).T, strict=True)) if texts else {}
    rows = []
    for sentence, query in zip(sentences, queries, strict=True):
        unwanted = torch.stack([columns[text] for text in query.unwanted]) if query.unwanted else None
        scores = combine_scores(torch.stack([*(columns[text] for text in query.wanted), *alike]), unwanted)
        check_scores(scores, lambda place, text=sentence: f"image {store.image_id[place]!r} with {text!r}")
        best = scores.topk(min(top, len(store)))
        names = [store.image_id[int(image)] for image in best.indices]
        row = Retrieved(sentence, names, best.values.tolist())
        if calibration is not None and query.is_plain:
            row = row._replace(probability=calibration.probability(scores)[best.indices].tolist())
        rows.append(row)
    return rows


def describe_row(row: Retrieved) -> list[str]:
    """What a sentence retrieves in lines: score, probability of a match where it is known, and image.

    >>> describe_row(Retrieved("a dog", ["7", "8"], [0.9, 0.2], probability=[0.31, 0.02]))
    ['a dog', '  no good match', '  0.900   31%  7', '  0.200    2%  8']
    """
    lines = [row.sentence or "images like these"]
    if row.probability is None:
        return lines + [f"  {score:.3f}  {name}" for score, name in zip(row.scores, row.image_ids, strict=True)]
    if max(row.probability) < LIKELY:
        lines.append("  no good match")
    columns = zip(row.scores, row.probability, row.image_ids, strict=True)
    return lines + [f"  {score:.3f}  {100 * likely:3.0f}%  {name}" for score, likely, name in columns]


def _scores_of_images(matcher: Matcher, store: ImageSource, names: Sequence[str]) -> list[torch.Tensor]:
    """The scores of all images of a source for being like some of them."""
    if not names:
        return []
    place = position_by_name(store.image_id, "the list of images")
    if strangers := [name for name in names if name not in place]:
        raise KeyError(f"there is no image {strangers[0]!r} to be like among the {len(store)} images")
    images, positions = matcher.embed_store(store), torch.tensor([place[name] for name in names])
    examples = EncodedSet(images.items[positions], images.mask[positions])
    return list(score_like(matcher.head, images, examples).T)


def explain_pair(matcher: Matcher, store: RegionStore, image_id: str, image: Path, sentence: str, output: Path) -> None:
    """Show why a sentence fits an image of a store as it does: what looks where, and what adds how much to the score.

    Args:
        matcher: what scores.
        store: regions of the image, with boxes.
        image_id: its name in the store.
        image: its file.
        sentence: the sentence.
        output: the picture to write or, with the suffix `.html`, a page that needs nothing else.

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
    pair = explained(matcher, store, image_id, image, sentence)
    if output.suffix.lower() in (".html", ".htm"):
        write_page(pair, output)
    else:
        draw_explanation(pair, output)
