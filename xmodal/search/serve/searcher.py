"""An index and its model, asked by many: batches of questions in, answers out. Knows nothing of the web."""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.data.images import read_sent_image
from xmodal.evaluation.calibration import LIKELY
from xmodal.given import photograph_reader
from xmodal.heads.comparison import CrossAttention
from xmodal.inference import evaluating
from xmodal.search.composed import example_vectors, find_composed
from xmodal.search.embed import query_vectors
from xmodal.search.hits import pair_shares
from xmodal.search.index import Index
from xmodal.search.manifest import MANIFEST
from xmodal.search.queries import why_not_alike
from xmodal.search.serve.schemas import Answer, Explained, FoundImage, Look, SentImage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from xmodal.evaluation.calibration import Calibration
    from xmodal.model import Matcher
    from xmodal.search.hits import Found
    from xmodal.search.queries import Query

logger = logging.getLogger("xmodal")

SENT = 256
"""Photographs that were sent, of which the vectors are kept; the oldest go first."""

LEAST_SIDE = 16
"""Pixels that a photograph must have a side for something to be seen in it."""


class BrokenIndexError(RuntimeError):
    """What is on disk is no index of images of this model any more; the reason names files, and is for the log.

    >>> raise BrokenIndexError("manifest.json is missing")
    Traceback (most recent call last):
    ...
    xmodal.search.serve.searcher.BrokenIndexError: manifest.json is missing
    """


class UnknownImageError(KeyError):
    """Somebody asks about an image that is neither in the index nor was sent.

    >>> raise UnknownImageError("there is no image '7'")
    Traceback (most recent call last):
    ...
    xmodal.search.serve.searcher.UnknownImageError: "there is no image '7'"
    """


class Question(NamedTuple):
    """What somebody asks."""

    query: Query
    k: int
    """How many images."""
    exact: bool = True
    exclude: frozenset[str] = frozenset()
    """Ids of images not to show."""

    @property
    def deep(self) -> int:
        """How many hits to find: those not to show may be among them, and the best two tell how likely a match is."""
        return max(2, self.k + len(self.exclude))


class Searcher:
    """Answers questions about an index of images; one thread may call it at a time.

    Args:
        index: of images.
        matcher: the one that the index was built with; stays in evaluation mode.
        calibration: what makes probabilities of its scores.

    Raises:
        ValueError: the index holds captions, or was built with another matcher.

    Example:
        >>> import torch
        >>> from xmodal.data import RegionStore, RegionStoreWriter
        >>> from xmodal.model import Matcher
        >>> from xmodal.search.index import Index
        >>> from xmodal.search.queries import Query
        >>> from xmodal.search.serve.searcher import Question, Searcher
        >>> with RegionStoreWriter("test.h5", dim=8, extractor="by hand") as writer:
        ...     for name in ("dog", "cat", "cow"):
        ...         writer.write(name, torch.randn(5, 8), boxes=torch.rand(5, 4), image_size=(1, 1))
        >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
        >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
        >>> searcher = Searcher(Index.build(matcher, RegionStore("test.h5"), "test.index"), matcher)
        >>> plain, alike = searcher.answer([Question(Query.parse("a dog"), k=3), Question(Query(like=("cow",)), k=1)])
        >>> len(plain.hits), plain.certified, alike.hits[0].id
        (3, True, 'cow')
        >>> searcher.explain("a dog", ["cat"]).words
        ['<start>', 'a', 'dog', '<end>']
    """

    def __init__(self, index: Index, matcher: Matcher, calibration: Calibration | None = None) -> None:
        self.matcher, self.calibration = matcher.eval(), calibration
        self.index = self._checked(index)
        self.sent: OrderedDict[str, Tensor] = OrderedDict()
        self.why_not_like = why_not_alike(matcher.head)
        self._read, self.why_not_sent = self._reader()
        self._stamp: tuple[int, int] | None = self._manifest_stamp()
        self._complaint = ""

    @property
    def is_current(self) -> bool:
        """Whether the index on disk is as it was when it was last seen, and right then."""
        try:
            return self._manifest_stamp() == self._stamp
        except OSError:
            return False

    def refresh(self) -> None:
        """See what others have added to the index, or removed, since the last time.

        Raises:
            BrokenIndexError: the index is gone, damaged, of captions or of another model; it is looked at again the
                next time. The log has each reason once.
        """
        try:
            stamp = self._manifest_stamp()
            if stamp == self._stamp:
                return
            self.index = self._checked(Index.open(self.index.path, source=self.index.source))
        except (OSError, ValueError) as error:
            self._stamp = None
            if str(error) != self._complaint:
                logger.error("the index that is served cannot be searched any more: %s", error)
            self._complaint = str(error)
            raise BrokenIndexError(str(error)) from error
        self._stamp, self._complaint = stamp, ""

    @property
    def why_not_explained(self) -> str | None:
        """Why it cannot be told where words look; None if it can."""
        if not isinstance(self.matcher.head.comparison, CrossAttention):
            return "this model does not compare words with regions one by one, so that words look nowhere"
        if not any("boxes" in segment.arrays for segment in self.index.collection.segments):
            return "the index knows no boxes of regions"
        return None

    def check(self, query: Query) -> None:
        """Make sure that a query can be answered.

        Raises:
            ValueError: a sentence has no words, or images to be like cannot be asked for.
            UnknownImageError: an image to be like is neither in the index nor was it sent.
        """
        for sentence in (*query.wanted, *query.unwanted):
            self.matcher.tokenizer([sentence])
        if query.like and self.why_not_like:
            raise ValueError(self.why_not_like)
        if unknown := self._unknown(query.like):
            raise unknown

    def answer(self, questions: Sequence[Question]) -> list[Answer | UnknownImageError]:
        """Answer questions together; one whose images to be like went in the meantime gets an `UnknownImageError`.

        Raises:
            BrokenIndexError: see `refresh`.
        """
        self.refresh()
        answers: list[Answer | UnknownImageError | None] = [None] * len(questions)
        groups: dict[Any, list[int]] = {}
        for number, question in enumerate(questions):
            answers[number] = self._unknown(question.query.like)
            if answers[number] is None:
                plain = question.query.is_plain
                groups.setdefault((plain, plain and question.exact and self._certifies), []).append(number)
        for (plain, exact), numbers in groups.items():
            some = [questions[number] for number in numbers]
            for number, found in zip(numbers, self._found(some, plain, exact), strict=True):
                answers[number] = self._told(questions[number], found)
        return answers  # type: ignore[return-value]  # every question is in a group or has its error

    def explain(self, sentence: str, ids: Sequence[str]) -> Explained:
        """Where the words of a sentence look in some images of the index.

        Raises:
            BrokenIndexError: see `refresh`.
            UnknownImageError: an image is not in the index.
            ValueError: the sentence has no words, or the model does not say where they look.
        """
        self.refresh()
        if self.why_not_explained:
            raise ValueError(self.why_not_explained)
        if lost := [name for name in ids if name not in self.index]:
            raise self._no_image(lost[0])
        (words,) = query_vectors(self.matcher, self.matcher.embed_captions([sentence]), "images")
        return Explained(words=self.matcher.token_words(sentence), images=[self._look(name, words) for name in ids])

    def take(self, content: bytes, most_pixels: int) -> SentImage:
        """Look at a photograph that was sent, and keep its vectors under an id of its own for a while.

        Raises:
            ValueError: it cannot be read, is too small or too large, or no photographs can be taken.
        """
        if self.why_not_sent or self._read is None:
            raise ValueError(self.why_not_sent)
        picture = read_sent_image(content, least_side=LEAST_SIDE, most_pixels=most_pixels)
        (vectors,) = example_vectors(self.matcher, self._read([picture]))
        name = f"sent:{secrets.token_hex(12)}"
        self.sent[name] = vectors
        while len(self.sent) > SENT:
            self.sent.popitem(last=False)
        return SentImage(id=name, width=picture.width, height=picture.height, regions=len(vectors))

    @property
    def _certifies(self) -> bool:
        return self.index.manifest.bits == 8 or self.index.quantizer is None

    def _reader(self) -> tuple[Any, str | None]:
        """What makes of photographs what the encoder takes, or why nothing does."""
        if self.why_not_like:
            return None, self.why_not_like
        try:
            return photograph_reader(self.matcher.extractor), None
        except (ValueError, OSError, ImportError) as error:
            return None, str(error)

    def _manifest_stamp(self) -> tuple[int, int]:
        about = (self.index.path / MANIFEST).stat()
        return about.st_mtime_ns, about.st_ino

    def _checked(self, index: Index) -> Index:
        if index.manifest.indexed != "images":
            raise ValueError(f"{index.path} holds captions; what is served is an index of images (`xmodal index`)")
        index.manifest.check_matcher(self.matcher, index.path)
        return index

    def _unknown(self, like: Sequence[str]) -> UnknownImageError | None:
        """The error of the first image to be like that is not there; None if all are."""
        lost = [name for name in like if name not in self.sent and name not in self.index]
        return self._no_image(lost[0]) if lost else None

    def _no_image(self, name: str) -> UnknownImageError:
        known = f"among the {len(self.index)} images"
        return UnknownImageError(f"there is no image {name!r} {known}; one that was sent is kept for a while only")

    def _found(self, questions: Sequence[Question], plain: bool, exact: bool) -> list[Found]:
        queries, deep = [question.query for question in questions], max(question.deep for question in questions)
        if not plain:
            return find_composed(self.index, self.matcher, queries, deep, examples=self.sent)
        sentences = [query.wanted[0] for query in queries]
        return self.index.find(self.matcher, sentences, deep, exact=exact, words=False)

    def _told(self, question: Question, found: Found) -> Answer:
        """What was found, without what is not to be shown."""
        likely: list[float | None] = [None] * len(found.hits)
        if self.calibration is not None and question.query.is_plain and len(found.hits) > 1:
            scores = torch.tensor([hit.score for hit in found.hits])
            likely = list(self.calibration.probability(scores, images=found.searched).tolist())
        hits = [
            FoundImage(id=_text(hit.image_id), score=hit.score, probability=probability)
            for hit, probability in zip(found.hits, likely, strict=True)
            if hit.image_id not in question.exclude
        ][: question.k]
        shown = [hit.probability for hit in hits if hit.probability is not None]
        first = question.query.wanted[:1]
        return Answer(
            hits=hits,
            words=self.matcher.token_words(first[0]) if first else [],
            searched=found.searched,
            scored=found.rescored,
            certified=bool(found.hits) and all(hit.certified for hit in found.hits),
            recall=found.recall,
            no_good_match=max(shown) < LIKELY if shown else None,
        )

    def _look(self, name: str, words: Tensor) -> Look:
        item = self.index.collection.find(name)
        assert item is not None, "it was looked up"
        vectors, mask = self.index.collection.vectors(torch.tensor([item]))
        how: Any = self.matcher.head.comparison
        with evaluating(self.matcher):
            parts = pair_shares(how, vectors[0][mask[0]], words)
        weights = parts / parts.sum(dim=1, keepdim=True).clamp_min(1e-12)
        boxes = self.index.collection.boxes(item)
        known = boxes is not None and bool(boxes.isfinite().all())
        return Look(
            id=_text(name),
            boxes=boxes.tolist() if boxes is not None and known else [],
            weights=weights.tolist() if known else [],
            shares=parts.sum(dim=1).tolist(),
        )


def _text(name: str) -> str:
    """An id as JSON can hold it: bytes of a file's name that are no UTF-8 become question marks."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
