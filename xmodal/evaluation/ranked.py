"""What every query retrieves, by the names of images and captions, for others to read."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch

from xmodal.data.atomic import written_whole
from xmodal.data.strings import refuse_string
from xmodal.evaluation.ranks import BLOCK_ELEMENTS, check_relevance
from xmodal.evaluation.relevance import answer_ranks, query_scores
from xmodal.numerics import check_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.data.relevance import Relevance
    from xmodal.evaluation.after import AfterScoring
    from xmodal.evaluation.relevance import Direction

TOP = 10
"""How many answers of a query are written."""


@torch.no_grad()
def write_ranks(
    path: str | Path,
    scores: Float[Tensor, "image caption"],
    caption_image: Int[Tensor, " caption"] | Relevance,
    image_ids: Sequence[str],
    caption_ids: Sequence[str],
    *,
    judgements: Relevance | None = None,
    top: int = TOP,
    after: AfterScoring | None = None,
) -> None:
    """Write one JSON object a query: every image among all captions, then every caption among all images.

    `{"direction": "i2t", "query": "139", "rank": 2, "retrieved": [{"id": "372", "score": 0.51}, ...]}`: `query` is the
    id of the image, or of the caption (`t2i`); `rank`, 1-based, is that of its best right answer, null where it has
    none; `retrieved` are the ids of the first answers with their scores, null where these are infinite. With
    judgements, `judged_rank` is the rank of the best answer that these call right. A wrong answer comes before a right
    one with the same score.

    Args:
        path: the file to write; it appears whole or not at all.
        scores: similarity of every image to every caption, higher is more alike.
        caption_image: which image each caption describes, or a `Relevance`.
        image_ids: the name of every image.
        caption_ids: the name of every caption.
        judgements: see above.
        top: how many answers of a query to write; there may be fewer.
        after: re-rank each direction as this says; the scores written of what it moved only tell the order.

    Raises:
        ValueError: wrong shapes, a NaN score, ids that are not as many as the scores have rows and columns, or a `top`
            below 0.
        OSError: the file cannot be written.

    >>> from pathlib import Path
    >>> scores = torch.tensor([[0.5, 0.25], [0.75, 1.0]])
    >>> write_ranks("ranks.jsonl", scores, torch.tensor([0, 1]), ["dog", "cat"], ["a dog", "a cat"], top=1)
    >>> print(Path("ranks.jsonl").read_text().splitlines()[2])
    {"direction": "t2i", "query": "a dog", "rank": 2, "retrieved": [{"id": "cat", "score": 0.75}]}
    """
    for name, ids in (("image_ids", image_ids), ("caption_ids", caption_ids)):
        refuse_string(name, ids, "ids")
    scores, relevance = check_relevance(scores, caption_image)
    if judgements is not None:
        check_relevance(scores, judgements)
    check_count("top", top, least=0)
    if (len(image_ids), len(caption_ids)) != tuple(scores.shape):
        raise ValueError(
            f"{len(image_ids)} image ids and {len(caption_ids)} caption ids do not fit scores of shape "
            f"{tuple(scores.shape)}; wanted an id for every row and column"
        )
    sides: list[tuple[Direction, Sequence[str], Sequence[str]]]
    sides = [("i2t", image_ids, caption_ids), ("t2i", caption_ids, image_ids)]
    with written_whole(path) as whole, whole.open("w", encoding="utf-8") as file:
        for direction, queries, items in sides:
            directed = scores if after is None else after.reranked(scores, direction, relevance)
            ranks = {"rank": _best_ranks(directed, relevance, direction)}
            if judgements is not None:
                ranks["judged_rank"] = _best_ranks(directed, judgements, direction)
            for query, retrieved in enumerate(_first(directed, relevance, direction, top)):
                line: dict[str, Any] = {"direction": direction, "query": queries[query]}
                line |= {name: of_queries.get(query) for name, of_queries in ranks.items()}
                line["retrieved"] = [
                    {"id": items[item], "score": score if math.isfinite(score) else None} for item, score in retrieved
                ]
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _best_ranks(scores: Tensor, relevance: Relevance, direction: Direction) -> dict[int, int]:
    """The rank of the best right answer of every query that has one."""
    return {
        query: rank
        for part in answer_ranks(scores, relevance, direction)
        for query, rank in zip(part.query.tolist(), part.rank[:, 0].tolist(), strict=True)
    }


def _first(scores: Tensor, relevance: Relevance, direction: Direction, top: int) -> Iterator[list[tuple[int, float]]]:
    """The first answers of every query, with their scores; of equal scores a wrong answer comes first."""
    asked, answers = (relevance.image, relevance.caption)[:: 1 if direction == "i2t" else -1]
    queries, items = scores.shape[:: 1 if direction == "i2t" else -1]
    for chosen in torch.arange(queries).split(max(1, BLOCK_ELEMENTS // items)):
        part = query_scores(scores, chosen, direction)
        mine = (asked >= chosen[0]) & (asked <= chosen[-1])
        right = asked[mine] - chosen[0], answers[mine]
        is_right = torch.zeros(part.shape, dtype=torch.bool)
        is_right[right] = True
        found = _best(part, is_right, min(top, items))
        for row, values in zip(found.tolist(), part.gather(1, found).tolist(), strict=True):
            yield list(zip(row, values, strict=True))


def _best(
    part: Float[Tensor, "query item"], is_right: Bool[Tensor, "query item"], count: int
) -> Int[Tensor, "query answer"]:
    """The best items of every query in order, wrong ones before right ones of the same score."""
    if count == 0:
        return torch.empty(len(part), 0, dtype=torch.int64)
    query, item = (part >= part.topk(count, dim=1).values[:, -1:]).nonzero(as_tuple=True)  # and all that tie with them
    order = is_right[query, item].to(torch.uint8).argsort(stable=True)
    order = order[part[query, item][order].argsort(descending=True, stable=True)]
    order = order[query[order].argsort(stable=True)]
    starts = torch.bincount(query).cumsum(0) - torch.bincount(query)
    return item[order[starts[:, None] + torch.arange(count)]]
