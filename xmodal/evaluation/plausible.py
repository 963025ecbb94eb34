"""Plausible matches: an image fits a caption where the image that the caption is about shows nearly the same things.

PMRP (Chun et al., CVPR 2021, section 4.1) takes the classes of objects that COCO's annotators have outlined in an image
for what it shows. An image and a caption match plausibly up to z mismatches where at most z classes are in only one of
the image and the image of the caption. R-precision is averaged over the queries, and then over z = 0, 1, 2. Images
without an object take no part, and neither do their captions, as in the released code (`evaluate_pmrp_coco.py`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from xmodal.data.text import read_text
from xmodal.evaluation.coco import number_of
from xmodal.evaluation.ranks import BLOCK_ELEMENTS, check_relevance
from xmodal.evaluation.relevance import check_direction, query_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.data.relevance import Relevance
    from xmodal.evaluation.after import Evaluator
    from xmodal.evaluation.relevance import Direction

PMRP = "pmrp"

MISMATCHES = (0, 1, 2)


def pmrp_evaluator(instances: str | Path, image_ids: Sequence[str], relevance: Relevance) -> Evaluator:
    """The evaluation of one direction by plausible matches, for `evaluate_scores`.

    Args:
        instances: COCO's file of object annotations, `instances_val2014.json`, or one like it: an object whose
            `annotations` each have an `image_id` and a `category_id`.
        image_ids: the name of every image, with COCO's number at its end.
        relevance: the image of every caption.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or has no object of any of these images; a caption has several images.

    >>> _ = Path("instances.json").write_text('{"annotations": [{"image_id": 7, "category_id": 1}]}')
    >>> from xmodal.data import Relevance
    >>> pmrp_evaluator("instances.json", ["7"], Relevance.from_caption_image([0]))(torch.ones(1, 1), direction="i2t")
    {'R-precision': 100.0, 'R@1': 100.0, 'queries': 1}
    """
    of_image = relevance.caption_image
    if of_image is None:
        raise ValueError(f"plausible matches need captions of exactly one image each, not those of {relevance}")
    return partial(evaluate_plausible, shown=load_classes(instances, image_ids), caption_image=of_image)


def load_classes(instances: str | Path, image_ids: Sequence[str]) -> Bool[Tensor, "image class"]:
    """Which classes of objects each image shows; arguments and errors are those of `pmrp_evaluator`.

    >>> boxes = [{"image_id": 7, "category_id": 90}, {"image_id": 8, "category_id": 1}]
    >>> _ = Path("instances.json").write_text(json.dumps({"annotations": boxes}))
    >>> load_classes("instances.json", ["COCO_val2014_000000000008.jpg", "7"])
    tensor([[ True, False],
            [False,  True]])
    """
    path = Path(instances)
    if not path.is_file():
        raise FileNotFoundError(f"no file of object annotations at {path}; COCO's is instances_val2014.json")
    classes: dict[int, set[int]] = defaultdict(set)
    text = read_text(path)
    try:
        for box in json.loads(text)["annotations"]:
            classes[_number(box["image_id"])].add(_number(box["category_id"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path} is no file of object annotations like COCO's: wanted JSON with a list `annotations` of objects "
            f"with image_id and category_id ({type(error).__name__}: {error})"
        ) from error
    mine = [classes.get(number_of("image", name), set()) for name in image_ids]
    known = sorted(set().union(*mine))
    if not known:
        raise ValueError(f"{path} has no object in any of the {len(image_ids)} images; take that of their split")
    return torch.tensor([[number in of_image for number in known] for of_image in mine])


def _number(given: Any) -> int:
    """A number of an image or class, which may be written as a text but has no fraction."""
    if isinstance(given, float) and not given.is_integer():
        raise ValueError(f"{given} is no whole number")
    return int(given)


@torch.no_grad()
def evaluate_plausible(
    scores: Float[Tensor, "image caption"],
    *,
    shown: Bool[Tensor, "image class"],
    caption_image: Int[Tensor, " caption"],
    direction: Direction,
    mismatches: Sequence[int] = MISMATCHES,
) -> dict[str, float]:
    """R-precision (PMRP) and R@1 of one direction by plausible matches, in percent.

    A wrong answer comes before a right one with the same score. Nothing but a block of queries is held in memory,
    though a query may have thousands of right answers.

    Args:
        scores: similarity of every image to every caption, higher is more alike.
        shown: what each image shows; images that show nothing take no part.
        caption_image: the image that each caption is about.
        direction: who asks.
        mismatches: numbers z of classes that may differ; means over the queries that have a right answer, and then
            over these, are given. A z for which no query has one is left out.

    Raises:
        ValueError: shapes that do not go together, a NaN score, or no query with a right answer.

    >>> shown = torch.tensor([[True, False], [True, True]])
    >>> of = torch.tensor([0, 1])
    >>> evaluate_plausible(torch.eye(2).flip(0), shown=shown, caption_image=of, direction="i2t", mismatches=[0])
    {'R-precision': 0.0, 'R@1': 0.0, 'queries': 2}
    """
    scores, _ = check_relevance(scores, caption_image)
    if shown.ndim != 2 or len(shown) != len(scores):
        raise ValueError(f"shown has shape {tuple(shown.shape)}; wanted (image, class) for {len(scores)} images")
    check_direction(direction)
    sides = (shown, shown[caption_image])[:: 1 if direction == "i2t" else -1]
    asking, answering = (side.any(dim=1).nonzero().flatten() for side in sides)
    if not len(asking) or not len(answering):
        raise ValueError(f"no {direction} query has a plausible match; there is nothing to evaluate")
    of_queries, of_items = (side[taking].float() for side, taking in zip(sides, (asking, answering), strict=True))
    parts = []
    for places in torch.arange(len(asking)).split(max(1, BLOCK_ELEMENTS // sides[1].shape[0])):
        part = query_scores(scores, asking[places], direction)[:, answering]
        differ = _differing(of_queries[places], of_items)
        parts.append(_plausible_block(part, [differ <= allowed for allowed in mismatches]))
    precision, first, is_answered = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    if not is_answered.any():
        raise ValueError(f"no {direction} query has a plausible match; there is nothing to evaluate")
    by_mismatches = [
        torch.stack((values[answered], found[answered].double())).mean(dim=1)
        for values, found, answered in zip(precision, first, is_answered, strict=True)
        if answered.any()
    ]
    means = torch.stack(by_mismatches).mean(dim=0)
    return {
        "R-precision": 100 * float(means[0]),
        "R@1": 100 * float(means[1]),
        "queries": int(is_answered.any(dim=0).sum()),
    }


class _Found(NamedTuple):
    precision: Float[Tensor, "mismatch query"]
    first: Bool[Tensor, "mismatch query"]
    is_answered: Bool[Tensor, "mismatch query"]


def _differing(
    queries: Float[Tensor, "query class"], items: Float[Tensor, "item class"]
) -> Float[Tensor, "query item"]:
    """How many classes are in only one of two: whole numbers, exact in float32."""
    return queries.sum(dim=1)[:, None] + items.sum(dim=1) - 2 * queries @ items.T


def _plausible_block(scores: Float[Tensor, "query item"], rights: Sequence[Bool[Tensor, "query item"]]) -> _Found:
    """R-precision, from 0 to 1, and whether the first answer is right."""
    rising = torch.from_numpy(np.sort(scores.numpy(), axis=1))
    precision, first, is_answered = [], [], []
    for right in rights:
        count = right.sum(dim=1)
        is_answered.append(count > 0)
        count = count.clamp_min(1)
        last = rising.gather(1, (scores.shape[1] - count)[:, None])  # the score of the R-th answer
        above, level = scores > last, scores == last
        # Of answers that score alike the wrong ones come first, and what room is left is for right ones.
        room = count - above.sum(dim=1) - (level & ~right).sum(dim=1)
        precision.append(((above & right).sum(dim=1) + room.clamp_min(0)) / count.double())
        first.append(scores.masked_fill(right, float("-inf")).amax(dim=1) < rising[:, -1])
    return _Found(torch.stack(precision), torch.stack(first), torch.stack(is_answered))
