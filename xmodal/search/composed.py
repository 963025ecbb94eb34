"""Queries of several parts, answered by an index: NOT, images to be like, and both with words.

A single sentence has a bound, and so a certain answer (`Index.find`). What several parts make together depends on the
scores of all images, by whose mean and deviation each part is brought to one size (`xmodal.search.queries`). These the
compressed vectors tell well enough: all images are scored approximately, the best by every part from float vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xmodal.inference import without_autocast
from xmodal.numerics import check_count
from xmodal.scoring.embedding import check_lengths
from xmodal.search.embed import query_vectors
from xmodal.search.hits import Found, Hit, check_scores
from xmodal.search.queries import combine_scores, why_not_alike
from xmodal.search.ranking import SPARE, Ranked, reachable_from

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.model import Matcher
    from xmodal.search.index import Index
    from xmodal.search.queries import Query
    from xmodal.search.ranking import Ranking

    Vectors = Mapping[str, Float[Tensor, "place dim"]]

RESCORED = 100
"""Images that are scored from float vectors by every part of a query."""


@without_autocast
def find_composed(
    index: Index,
    matcher: Matcher,
    queries: Sequence[Query],
    k: int = 10,
    *,
    examples: Vectors | None = None,
    rescored: int = RESCORED,
) -> list[Found]:
    """The best images of an index for queries of several parts; all parts of all queries are scanned together.

    Args:
        index: of images.
        matcher: the one that the index was built with.
        queries: what is looked for.
        k: how many hits a query.
        examples: vectors of images to be like that are not in the index, by the ids that the queries call them; see
            `example_vectors`.
        rescored: images to score from float vectors, at least `k`.

    Raises:
        KeyError: an image to be like is neither in the index nor among the examples.
        ValueError: the matcher is another one, its head cannot tell which images are alike, the index holds captions,
            `k` is not positive, a sentence has no words, or a vector or score is no number.

    >>> from xmodal.data import RegionStore, RegionStoreWriter
    >>> from xmodal.model import Matcher
    >>> from xmodal.search.index import Index
    >>> from xmodal.search.queries import Query
    >>> with RegionStoreWriter("test.h5", dim=8, extractor="by hand") as writer:
    ...     for name in ("dog", "cat", "cow"):
    ...         writer.write(name, torch.randn(5, 8))
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
    >>> index = Index.build(matcher, RegionStore("test.h5"), "test.index")
    >>> queries = [Query.parse("a dog NOT a cat"), Query(like=("cow",))]
    >>> found = find_composed(index, matcher, queries, k=2)
    >>> len(found[0].hits), found[1].hits[0].image_id
    (2, 'cow')
    """
    check_count("k", k)
    check_count("rescored", rescored)
    if index.manifest.indexed != "images":
        raise ValueError(f"{index.path} holds captions; NOT and images to be like are asked of an index of images")
    ranking, items = index.ranking(matcher), index.collection.admitted(None)
    texts = _sentences(matcher, queries)
    images = _images(index, matcher, queries, examples or {})
    if not len(items):
        return [Found([], 0, 0, None)] * len(queries)
    scores = iter(ranking.approximate([*texts.values(), *images.values()], items))
    of_texts = dict(zip(texts, scores, strict=False))
    of_images = dict(zip(images, scores, strict=True))
    found = []
    for query in queries:
        wanted = [*(of_texts[text] for text in query.wanted), *(of_images[name] for name in query.like)]
        vectors = [texts[text] for text in query.wanted] + [images[name] for name in query.like]
        unwanted, others = [of_texts[text] for text in query.unwanted], [texts[text] for text in query.unwanted]
        table = torch.stack(wanted + unwanted)  # a copy, which is made exact where it counts
        ranked = _best(ranking, table, vectors + others, len(wanted), items, k, rescored)
        names = [index.collection.id(item) for item in ranked.items.tolist()]
        check_scores(ranked.scores, lambda place, names=names: f"image {names[place]!r}")
        hits = [Hit(name, value, ranked.certified) for name, value in zip(names, ranked.scores.tolist(), strict=True)]
        found.append(Found(hits, ranked.rescored, len(items), 100.0 if ranked.certified else None))
    return found


def example_vectors(matcher: Matcher, images: Sequence[object]) -> list[Float[Tensor, "place dim"]]:
    """The vectors of images that are not in an index, as `find_composed` takes them.

    Args:
        matcher: the one that the index was built with.
        images: as `Matcher.score` takes them.

    Raises:
        ValueError: the matcher's head cannot tell which images are alike.

    >>> from xmodal.model import Matcher
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
    >>> [vectors.shape for vectors in example_vectors(matcher, [torch.randn(5, 8)])]
    [torch.Size([5, 4])]
    """
    if reason := why_not_alike(matcher.head):
        raise ValueError(reason)
    given: list = list(images)
    return query_vectors(matcher, matcher.embed_images(given), "captions")


def _sentences(matcher: Matcher, queries: Sequence[Query]) -> dict[str, Tensor]:
    """The vectors of all sentences, each once."""
    texts = list(dict.fromkeys(text for query in queries for text in (*query.wanted, *query.unwanted)))
    if not texts:
        return {}
    return dict(zip(texts, query_vectors(matcher, matcher.embed_captions(texts), "images"), strict=True))


def _images(index: Index, matcher: Matcher, queries: Sequence[Query], examples: Vectors) -> dict[str, Tensor]:
    """The vectors of all images to be like, each once."""
    found = {}
    for name in dict.fromkeys(name for query in queries for name in query.like):
        if reason := why_not_alike(matcher.head):
            raise ValueError(reason)
        if name in examples:
            check_lengths(examples[name], lambda row, name=name: f"vector {row} of example {name!r}")
            found[name] = examples[name]
            continue
        item = index.collection.find(name)
        if item is None:
            raise KeyError(f"there is no image {name!r} to be like in {index.path}")
        vectors, mask = index.collection.vectors(torch.tensor([item]))
        found[name] = vectors[0][mask[0]]
    return found


def _best(
    ranking: Ranking,
    table: Float[Tensor, "part item"],
    vectors: Sequence[Tensor],
    wanted: int,
    items: Int[Tensor, " item"],
    k: int,
    rescored: int,
) -> Ranked:
    """The best items; certified where no other one can be better."""
    count = min(max(k + SPARE, rescored), len(items))
    promising = combine_scores(table[:wanted], table[wanted:]).topk(count).indices
    few = promising.sort().values  # ties: in the order of the index
    for row, query in zip(table, vectors, strict=True):
        row[few] = ranking.scores(query, items[few])
    scores = combine_scores(table[:wanted], table[wanted:])[few]
    best = scores.argsort(descending=True, stable=True)[:k]
    apart = ranking.complete and float(scores.min()) < reachable_from(float(scores[best[-1]]))
    return Ranked(items[few[best]], scores[best], apart or len(few) == len(items), len(few))
