"""Retrieval within one modality: images for images and captions for captions, by the head that compares the two.

A head compares what stands for an image with what stands for a caption. Both are sets of vectors, or vectors, of one
joint space, so that it can also compare an image with an image. What answers is embedded as what asks is; where a head
makes something of another shape of captions than of images (ADAPT), its regions take the place of words from there on.
CxC (Parekh et al., EACL 2021) grades pairs of both kinds.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from tqdm import tqdm

from xmodal.data.relevance import Relevance
from xmodal.data.text import read_text
from xmodal.evaluation.coco import number_of, places_by_number
from xmodal.evaluation.ranks import BLOCK_ELEMENTS
from xmodal.evaluation.relevance import mean_metrics, query_metrics
from xmodal.heads import Head
from xmodal.inference import evaluating
from xmodal.scoring import score_all
from xmodal.scoring.blocks import bar_options

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from xmodal.encoders.base import EncodedSet
    from xmodal.heads.comparison import Comparison
    from xmodal.model import Matcher

Kind = Literal["image", "caption"]

ENSEMBLE = "ensemble"
"""Name of the mean of the scores of several models."""

AT_LEAST = 3.0
"""The grade, of 5, from which a pair of CxC is right: that of the pairs of an image and a caption that it publishes."""

COLUMNS: dict[Kind, tuple[str, str]] = {"image": ("image1", "image2"), "caption": ("caption1", "caption2")}

QUERIES = 8 * BLOCK_ELEMENTS
"""Scores of queries that are in memory at once."""


class OneSide(Head):
    """Compares images with images, or captions with captions, as a head compares images with captions.

    What asks takes the place of images, and what answers that of captions.

    Args:
        head: the head.
        kind: what both sides are, and how they are embedded.
        alike: whether both sides are embedded as `kind`; otherwise each is as the head embeds the side that it takes.

    >>> from xmodal.heads import SCAN
    >>> OneSide(SCAN(), "image")(torch.randn(2, 36, 8), torch.randn(3, 36, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(self, head: Head, kind: Kind, *, alike: bool = True) -> None:
        super().__init__()
        self.head, self.kind, self.alike = head.in_stages, kind, alike

    def embed_images(self, regions: Tensor, region_mask: Tensor | None = None) -> Tensor:
        """What asks."""
        as_caption = self.alike and self.kind == "caption"
        return (self.head.embed_captions if as_caption else self.head.embed_images)(regions, region_mask)

    def embed_captions(self, words: Tensor, word_mask: Tensor | None = None) -> Tensor:
        """What answers."""
        as_image = self.alike and self.kind == "image"
        return (self.head.embed_images if as_image else self.head.embed_captions)(words, word_mask)

    def compare(
        self, images: Tensor, captions: Tensor, region_mask: Tensor | None = None, word_mask: Tensor | None = None
    ) -> Tensor:
        """As the head does."""
        return self.head.compare(images, captions, region_mask, word_mask)

    def pair_bytes(self, image: Tensor, caption: Tensor) -> int | None:
        """As the head says."""
        return self.head.pair_bytes(image, caption)

    @property
    def comparison(self) -> Comparison | None:  # type: ignore[override]
        """That of the head."""
        return self.head.comparison


def load_pairs(
    path: str | Path,
    kind: Kind,
    names: Sequence[str],
    siblings: Sequence[int] | None = None,
    *,
    at_least: float = AT_LEAST,
    skip_unknown: bool = False,
) -> Relevance:
    """Which images, or captions, are right answers to one another, from a table of CxC.

    Args:
        path: `sis_test.csv` for images or `sts_test.csv` for captions, of CxC's data: comma-separated, with the columns
            image1 and image2 (or caption1 and caption2) and agg_score.
        kind: what is compared.
        names: the name of every image or caption, with COCO's number at its end.
        siblings: the image of every caption: captions of one image are right, too, unless the file grades them lower.
        at_least: the grade of right pairs.
        skip_unknown: leave out pairs of others instead of refusing them.

    Returns:
        Pairs of a query (as `image`) and an answer (as `caption`), each pair both ways. Of a pair that is there more
        than once, as 2,863 pairs of images are in CxC, the mean grade counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such table, a name is unknown, or no pair is right.

    >>> _ = Path("sts.csv").write_text("caption1,caption2,agg_score,sampling_method\\na:1,a:2,3.5,x\\na:1,a:3,2.9,x\\n")
    >>> load_pairs("sts.csv", "caption", ["1", "2", "3"]).caption.tolist()
    [1, 0]
    """
    place_of = places_by_number(kind, names)
    grades: dict[tuple[int, int], list[float]] = {}
    for where, pair, grade in _read_table(Path(path), kind):
        places = [_place(kind, name, place_of) for name in pair]
        first, second = places
        if first is not None and second is not None:
            grades.setdefault((min(first, second), max(first, second)), []).append(grade)
        elif not skip_unknown:
            raise ValueError(
                f"{where}: {kind} {pair[places.index(None)]!r} is not among the {len(names)} that are evaluated; take "
                "judgements of the same split, or leave out those of others with skip_unknown"
            )
    right = set() if siblings is None else _sibling_pairs(siblings)
    for (first, second), given in grades.items():
        both = {(first, second), (second, first)}
        right.update(both) if sum(given) / len(given) >= at_least else right.difference_update(both)
    if not any(query != answer for query, answer in right):
        raise ValueError(f"{path} has no pair of these {kind}s that is graded {at_least} or better")
    return as_pairs(right, len(names))


def sibling_relevance(siblings: Sequence[int]) -> Relevance:
    """Captions that are right answers to one another because they are about the same image.

    Args:
        siblings: the image of every caption.

    Raises:
        ValueError: every image has one caption only.

    >>> sibling_relevance([0, 1, 0]).image.tolist()
    [0, 2]
    """
    right = _sibling_pairs(siblings)
    if not right:
        raise ValueError("no two captions are about the same image; there is nothing to retrieve among captions")
    return as_pairs(right, len(siblings))


def as_pairs(right: set[tuple[int, int]], count: int) -> Relevance:
    """Pairs of a query and an answer as a relevance among so many items, none of itself.

    Raises:
        ValueError: there is no such pair.

    >>> as_pairs({(1, 0), (0, 1), (1, 1)}, 3)
    Relevance(2 pairs of 3 images and 3 captions)
    """
    pairs = sorted((query, answer) for query, answer in right if query != answer)
    if not pairs:
        raise ValueError(f"no two of the {count} items are right answers to one another; there is nothing to retrieve")
    query, answer = zip(*pairs, strict=True)
    return Relevance(query, answer, None, images=count, captions=count)


def check_names(names: Collection[str]) -> None:
    """Make sure that results of several models and those of their ensemble have names of their own.

    Raises:
        ValueError: one of several models is called as the ensemble is.

    >>> check_names(["ensemble"])
    >>> check_names(["scan", "ensemble"])
    Traceback (most recent call last):
    ...
    ValueError: a model is called 'ensemble', as the mean of all is; give it another name, or its folder's full path
    """
    if len(names) > 1 and ENSEMBLE in names:
        raise ValueError(
            f"a model is called {ENSEMBLE!r}, as the mean of all is; give it another name, or its folder's full path"
        )


def evaluate_within(
    scorers: Mapping[str, Callable[[Sequence[int]], Float[Tensor, "query item"]]],
    relevance: Relevance,
    *,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Retrieval of items by items of the same kind; a query is no answer to itself.

    Args:
        scorers: name -> function that scores some queries against all items.
        relevance: right pairs of a query and an answer; only queries that have one are scored.
        progress: show a bar.

    Returns:
        Name -> one direction of `evaluate_relevance`; of two or more, also that of the mean of their scores.

    Raises:
        ValueError: scores of the wrong shape, or NaN; no right pair; one of several scorers is called "ensemble".

    >>> relevance = as_pairs({(0, 1), (1, 0)}, 3)
    >>> similar = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
    >>> evaluate_within({"mine": lambda queries: similar[list(queries)]}, relevance)["mine"]["R@1"]
    100.0
    """
    check_names(scorers)
    asking = relevance.image.unique()
    if not len(asking):
        raise ValueError(f"{relevance} has no pair that belongs together; there is nothing to evaluate")
    columns: dict[str, list[Any]] = {}
    step = max(1, QUERIES // relevance.captions)
    for queries in tqdm(asking.split(step), "within", unit="part", **bar_options(progress)):
        part = relevance.select(queries, range(relevance.captions))
        total = None
        for name, scorer in scorers.items():
            scores = scorer(queries.tolist())
            columns.setdefault(name, []).append(_without_self(scores, queries, part))
            total = scores if total is None else total + scores
        if total is not None and len(scorers) > 1:
            mean = _without_self(total / len(scorers), queries, part)
            columns.setdefault(ENSEMBLE, []).append(mean)
    return {
        name: mean_metrics(*(torch.cat(column) for column in zip(*parts, strict=True)))
        for name, parts in columns.items()
    }


def within_scorer(matcher: Matcher, kind: Kind, items: EncodedSet) -> Callable[[Sequence[int]], Tensor]:
    """A function that scores some encoded images (or captions) against all, for `evaluate_within`.

    Args:
        matcher: whose head compares.
        kind: what the items are.
        items: what `matcher.embed_store` or `matcher.embed_captions` gives.

    >>> from xmodal.encoders.base import EncodedSet
    >>> from xmodal.model import Matcher
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog"])
    >>> items = EncodedSet(torch.randn(5, 3, 4), torch.ones(5, 3, dtype=torch.bool))
    >>> within_scorer(matcher, "image", items)([1, 3]).shape
    torch.Size([2, 5])
    """
    head = matcher.head.in_stages
    with evaluating(head):
        shapes = [embed(items.items[:1], items.mask[:1]).shape for embed in (head.embed_images, head.embed_captions)]
    one_side = OneSide(head, kind, alike=shapes[0] == shapes[1])

    def score(queries: Sequence[int]) -> Tensor:
        chosen = torch.as_tensor(queries, device=items.items.device)
        return score_all(one_side, items.items[chosen], items.items, items.mask[chosen], items.mask)

    return score


def _without_self(scores: Tensor, queries: Tensor, relevance: Relevance) -> tuple[Tensor, ...]:
    """The metrics of every query, none of which finds itself."""
    scores = scores.clone()
    scores[torch.arange(len(queries)), queries] = float("-inf")
    return query_metrics(scores, relevance, "i2t")


def _sibling_pairs(siblings: Sequence[int]) -> set[tuple[int, int]]:
    families: dict[int, list[int]] = {}
    for caption, image in enumerate(siblings):
        families.setdefault(int(image), []).append(caption)
    return {(a, b) for family in families.values() for a in family for b in family if a != b}


def _read_table(path: Path, kind: Kind) -> Iterator[tuple[str, tuple[str, str], float]]:
    """Where each row of a table of CxC stands, its two names, and its grade."""
    if not path.is_file():
        raise FileNotFoundError(f"no file of judgements at {path}; CxC has them as sis_test.csv and sts_test.csv")
    wanted = (*COLUMNS[kind], "agg_score")
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        if not set(wanted) <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} has the columns {rows.fieldnames}; wanted {', '.join(wanted)} among them")
        for row in rows:
            yield f"{path}, line {rows.line_num}", *_read_row(row, wanted, f"{path}, line {rows.line_num}")
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: no table, {error}") from error


def _read_row(row: Mapping[str, str | None], wanted: Sequence[str], where: str) -> tuple[tuple[str, str], float]:
    """The two names and the grade of a row."""
    first, second, given = (row[column] for column in wanted)
    if first is None or second is None or given is None:
        raise ValueError(f"{where} is too short: wanted {', '.join(wanted)}")
    try:
        grade = float(given)
    except ValueError:
        grade = math.nan
    if not math.isfinite(grade):
        raise ValueError(f"{where}: agg_score is {given!r}, wanted a number")
    return (first, second), grade


def _place(kind: Kind, name: str, place_of: Mapping[int, int]) -> int | None:
    """Where an image or caption is; None for others, such as one without a number."""
    try:
        return place_of.get(number_of(kind, name))
    except ValueError:
        return None
