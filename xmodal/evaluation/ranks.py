"""Retrieval ranks, counted without sorting, and the recalls and medians made of them.

The rank of a query is one more than the number of wrong answers that score at least as high as its best right one. Only
a count is needed, so nothing is sorted and the score matrix is read once, a block of images at a time. Equal scores
count against the model: one that gives every pair the same score ranks last, not first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from xmodal.data.relevance import Relevance
from xmodal.numerics import check_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

RECALL_LEVELS = (1, 5, 10)

WIDER = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
"""Of numbers that torch does not compare, those that it does."""

BLOCK_ELEMENTS = 2**20
"""Scores compared at once by default: about ten megabytes of temporaries, whatever the size of the matrix."""


class Ranks(NamedTuple):
    """The 1-based rank of every query's best right answer."""

    i2t: Int[Tensor, "image"]
    t2i: Int[Tensor, "caption"]


@torch.no_grad()
def retrieval_ranks(
    scores: Float[Tensor, "image caption"],
    caption_image: Int[Tensor, " caption"] | Relevance,
    *,
    block: int | None = None,
) -> Ranks:
    """Rank every image's best caption among all captions, and every caption's best image among all images.

    A wrong answer with the same score as the right one is placed before it. The right answers of one query never
    compete with each other.

    Args:
        scores: similarity of every image to every caption, higher is more alike; any device, any real dtype, compared
            as it is (a few, as float8, in a wider copy). `torch.from_numpy(np.load(path, mmap_mode="c"))` ranks a
            matrix larger than memory.
        caption_image: the image (a row of `scores`) that each caption describes; any number of captions an image, in
            any order. Or a `Relevance`, where a caption may have several images; grades do not matter here.
        block: images compared at once; by default as many as keep the temporaries near ten megabytes. The ranks do
            not depend on it.

    Raises:
        ValueError: wrong shapes, a caption of no known image, an image or a caption without any right answer, or a NaN
            score.

    >>> scores = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.2, 0.6]])
    >>> retrieval_ranks(scores, torch.tensor([0, 0, 1]))
    Ranks(i2t=tensor([1, 1]), t2i=tensor([1, 2, 1]))
    """
    scores, relevance = check_relevance(scores, caption_image)
    check_answers(relevance)
    images, captions = scores.shape
    if block is None:
        block = max(1, BLOCK_ELEMENTS // captions)
    check_count("block", block)

    image, caption = relevance.image.to(scores.device), relevance.caption.to(scores.device)
    right = scores[image, caption]
    best_caption, best_image = best_right(right, image, images), best_right(right, caption, captions)
    # Right answers as good as a query's best one are found by the counts below, but are no wrong answers.
    right_captions = torch.bincount(image[right == best_caption[image]], minlength=images)
    right_images = torch.bincount(caption[right == best_image[caption]], minlength=captions)

    as_good_captions = torch.zeros(images, dtype=torch.int64, device=scores.device)
    as_good_images = torch.zeros(captions, dtype=torch.int64, device=scores.device)
    for start in range(0, images, block):
        rows = slice(start, start + block)
        part = scores[rows]
        check_no_nan(part, range(start, start + len(part)), range(captions))
        as_good_captions[rows] = torch.count_nonzero(part >= best_caption[rows, None], dim=1)
        as_good_images += torch.count_nonzero(part >= best_image, dim=0)
    return Ranks(i2t=as_good_captions - right_captions + 1, t2i=as_good_images - right_images + 1)


def best_right(right: Float[Tensor, " pair"], query: Int[Tensor, " pair"], queries: int) -> Float[Tensor, " query"]:
    """The best score of each query's right answers.

    Args:
        right: scores of right pairs.
        query: whose answer each is.
        queries: how many queries there are; each has a right answer.

    >>> best_right(torch.tensor([0.1, 0.5, 0.3]), torch.tensor([1, 1, 0]), queries=2)
    tensor([0.3000, 0.5000])
    """
    return right.new_zeros(queries).scatter_reduce(0, query, right, "amax", include_self=False)


def evaluate_retrieval(
    scores: Float[Tensor, "image caption"], caption_image: Int[Tensor, " caption"] | Relevance
) -> dict[str, Any]:
    """Evaluate retrieval in both directions: recalls, median and mean rank, and the sum of the six recalls.

    Arguments and errors are those of `retrieval_ranks`, the result that of `retrieval_metrics`.

    >>> evaluate_retrieval(torch.eye(2), torch.tensor([0, 1]))["i2t"]
    {'R@1': 100.0, 'R@5': 100.0, 'R@10': 100.0, 'MedR': 1.0, 'MeanR': 1.0}
    """
    return retrieval_metrics(retrieval_ranks(scores, caption_image))


def retrieval_metrics(ranks: Ranks) -> dict[str, Any]:
    """Summarize ranks as `{"i2t": {"R@1", "R@5", "R@10", "MedR", "MeanR"}, "t2i": {...}, "rsum"}`.

    `R@K` is the share of queries ranked K or better, in percent; `MedR` the median rank, rounded down as in the
    published tables (between ranks 1 and 2 it is 1); `MeanR` the mean rank; `rsum` the sum of the six recalls, at most
    600. All are Python floats, ready for JSON.

    >>> retrieval_metrics(Ranks(torch.tensor([1, 7]), torch.tensor([2, 3])))["rsum"]
    400.0
    """
    sides = {"i2t": direction_metrics(ranks.i2t), "t2i": direction_metrics(ranks.t2i)}
    rsum = sum(metrics[f"R@{level}"] for metrics in sides.values() for level in RECALL_LEVELS)
    return {**sides, "rsum": rsum}


def direction_metrics(ranks: Int[Tensor, "query"]) -> dict[str, float]:
    """Summarize the ranks of one direction; see `retrieval_metrics`.

    >>> direction_metrics(torch.tensor([1, 2, 12, 5]))
    {'R@1': 25.0, 'R@5': 75.0, 'R@10': 75.0, 'MedR': 3.0, 'MeanR': 5.0}
    """
    counted = ranks.cpu().numpy()
    recalls = {f"R@{level}": 100.0 * float(np.mean(counted <= level)) for level in RECALL_LEVELS}
    return {**recalls, "MedR": float(np.floor(np.median(counted))), "MeanR": float(np.mean(counted))}


def check_relevance(
    scores: Float[Tensor, "image caption"], caption_image: Int[Tensor, " caption"] | Relevance
) -> tuple[Float[Tensor, "image caption"], Relevance]:
    """Return scores as a tensor and relevance as a `Relevance` of their size, or say what is wrong with either.

    Raises:
        ValueError: wrong shapes, or a caption of no known image.

    >>> check_relevance(torch.eye(2), torch.tensor([0, 1]))[1]
    Relevance(2 pairs of 2 images and 2 captions)
    >>> check_relevance(torch.eye(2), torch.tensor([0, 2]))
    Traceback (most recent call last):
    ...
    ValueError: caption_image[1] is 2; expected an image index from 0 to 1
    """
    scores = as_matrix(scores)
    return scores, as_relevance(caption_image, *scores.shape)


def as_matrix(scores: Float[Tensor, "image caption"]) -> Float[Tensor, "image caption"]:
    """Scores as a tensor of images and captions that can be compared.

    Raises:
        ValueError: they are of another shape, or no real numbers.

    >>> as_matrix(torch.zeros(3))
    Traceback (most recent call last):
    ...
    ValueError: scores have shape (3,); expected (image, caption), at least one of each
    """
    scores = as_real("scores", torch.as_tensor(scores))
    if scores.ndim != 2 or scores.numel() == 0:
        raise ValueError(f"scores have shape {tuple(scores.shape)}; expected (image, caption), at least one of each")
    return scores


def as_real(name: str, values: Tensor) -> Tensor:
    """Real numbers of any type, in one that torch compares: as they are, but for types of which it knows the name only.

    Raises:
        ValueError: they are complex, or whole numbers above 2^63.

    >>> as_real("scores", torch.tensor([7, 9], dtype=torch.uint16)).dtype
    torch.int32
    """
    if values.is_complex():
        raise ValueError(f"{name} are {values.dtype}; wanted real numbers")
    if values.is_floating_point():
        return values.float() if values.element_size() == 1 else values
    wider = WIDER.get(values.dtype)
    if wider is None:
        return values
    if values.dtype == torch.uint64 and bool((values.view(torch.int64) < 0).any()):
        raise ValueError(f"{name} are {values.dtype} above 2^63; give them in another type")
    return values.to(wider)


def as_relevance(caption_image: Int[Tensor, " caption"] | Relevance, images: int, captions: int) -> Relevance:
    """The relevance of so many images and captions, given as such or as the image of every caption.

    Raises:
        ValueError: it is of another size, or a caption is of no known image.

    >>> as_relevance(torch.tensor([1, 0]), images=2, captions=2).caption_image
    tensor([1, 0])
    """
    if isinstance(caption_image, Relevance):
        if (caption_image.images, caption_image.captions) != (images, captions):
            raise ValueError(
                f"the relevance is of {caption_image.images} images and {caption_image.captions} captions, and the "
                f"scores of {images} and {captions} (scores are image x caption: transpose them if need be)"
            )
        return caption_image
    caption_image = torch.as_tensor(caption_image)
    if caption_image.shape != (captions,):
        raise ValueError(
            f"caption_image has shape {tuple(caption_image.shape)} and scores {(images, captions)}; expected one "
            f"image index for each of the {captions} captions (scores are image x caption: transpose them if need be)"
        )
    if caption_image.is_floating_point() or caption_image.dtype == torch.bool:
        raise ValueError(f"caption_image is {caption_image.dtype}; expected integer image indices")
    outside = ((caption_image < 0) | (caption_image >= images)).nonzero()
    if len(outside):
        caption = int(outside[0])
        raise ValueError(
            f"caption_image[{caption}] is {int(caption_image[caption])}; expected an image index from 0 to {images - 1}"
        )
    return Relevance.from_caption_image(caption_image, images)


def check_answers(relevance: Relevance) -> None:
    """Refuse images without a caption and captions without an image: they have no rank.

    Raises:
        ValueError: there are some; the first is named.

    >>> check_answers(Relevance.from_caption_image(torch.tensor([0, 2])))
    Traceback (most recent call last):
    ...
    ValueError: image 1 has no caption (1 of 3 images have none), so it has no rank; leave such images out ...
    """
    sides = (("image", "caption", relevance.image, relevance.images),)
    sides += (("caption", "image", relevance.caption, relevance.captions),)
    for query, answer, asked, count in sides:
        silent = (torch.bincount(asked, minlength=count) == 0).nonzero()
        if len(silent):
            raise ValueError(
                f"{query} {int(silent[0])} has no {answer} ({len(silent)} of {count} {query}s have none), so it has no "
                f"rank; leave such {query}s out of the scores, or take evaluate_relevance, which does not count them"
            )


def check_no_nan(
    part: Float[Tensor, "image caption"], images: Sequence[int] | Tensor, captions: Sequence[int] | Tensor
) -> None:
    """Refuse NaN among some scores.

    Args:
        part: the scores.
        images: which image each row is, for the message.
        captions: which caption each column is.

    Raises:
        ValueError: there is one; its pair is named.

    >>> check_no_nan(torch.tensor([[0.5, torch.nan]]), images=[7], captions=[0, 1])
    Traceback (most recent call last):
    ...
    ValueError: the score of image 7 and caption 1 is NaN and cannot be ranked; ...
    """
    if part.max().isnan():  # a maximum carries any NaN along
        row, column = part.isnan().nonzero()[0].tolist()
        raise ValueError(
            f"the score of image {int(images[row])} and caption {int(captions[column])} is NaN and cannot be ranked; "
            "look for NaN features, or all-zero padding without its mask"
        )
