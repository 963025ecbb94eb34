"""Retrieval ranks, counted without sorting, and the recalls and medians made of them.

The rank of a query is one more than the number of wrong answers that score at least as high as its best right one. Only
a count is needed, so nothing is sorted and the score matrix is read once, a block of images at a time. Equal scores
count against the model: one that gives every pair the same score ranks last, not first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

RECALL_LEVELS = (1, 5, 10)

BLOCK_ELEMENTS = 2**20
"""Scores compared at once by default: about ten megabytes of temporaries, whatever the size of the matrix."""


class Ranks(NamedTuple):
    """The 1-based rank of every query's best right answer."""

    i2t: Int[Tensor, "image"]
    t2i: Int[Tensor, "caption"]


@torch.no_grad()
def retrieval_ranks(
    scores: Float[Tensor, "image caption"],
    caption_image: Int[Tensor, "caption"],
    *,
    block: int | None = None,
) -> Ranks:
    """Rank every image's best caption among all captions, and every caption's image among all images.

    A wrong answer with the same score as the right one is placed before it. The captions of one image never compete
    with each other.

    Args:
        scores: similarity of every image to every caption, higher is more alike; any device, any real dtype, compared
            as it is. `torch.from_numpy(np.load(path, mmap_mode="c"))` ranks a matrix larger than memory.
        caption_image: the image (a row of `scores`) that each caption describes; any number of captions an image, in
            any order.
        block: images compared at once; by default as many as keep the temporaries near ten megabytes. The ranks do
            not depend on it.

    Raises:
        ValueError: wrong shapes, a caption of no known image, an image without a caption, or a NaN score.

    >>> scores = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.2, 0.6]])
    >>> retrieval_ranks(scores, torch.tensor([0, 0, 1]))
    Ranks(i2t=tensor([1, 1]), t2i=tensor([1, 2, 1]))
    """
    scores, caption_image = check_relevance(scores, caption_image)
    images, captions = scores.shape
    if block is None:
        block = max(1, BLOCK_ELEMENTS // captions)
    if block < 1:
        raise ValueError(f"block is {block}; it must be at least one image")

    positive = scores[caption_image, torch.arange(captions, device=scores.device)]
    best = positive.new_zeros(images).scatter_reduce(0, caption_image, positive, "amax", include_self=False)
    # A caption as good as its image's best one is found by the count below, but is no wrong answer.
    right = torch.bincount(caption_image[positive == best[caption_image]], minlength=images)

    as_good_captions = torch.zeros(images, dtype=torch.int64, device=scores.device)
    as_good_images = torch.zeros(captions, dtype=torch.int64, device=scores.device)
    for start in range(0, images, block):
        rows = slice(start, start + block)
        part = scores[rows]
        if part.max().isnan():  # a maximum carries any NaN along
            image, caption = part.isnan().nonzero()[0].tolist()
            raise ValueError(
                f"the score of image {start + image} and caption {caption} is NaN and cannot be ranked; "
                "look for NaN features, or all-zero padding without its mask"
            )
        as_good_captions[rows] = torch.count_nonzero(part >= best[rows, None], dim=1)
        as_good_images += torch.count_nonzero(part >= positive, dim=0)
    return Ranks(i2t=as_good_captions - right + 1, t2i=as_good_images)


def evaluate_retrieval(scores: Float[Tensor, "image caption"], caption_image: Int[Tensor, "caption"]) -> dict[str, Any]:
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
    scores: Float[Tensor, "image caption"], caption_image: Int[Tensor, "caption"]
) -> tuple[Float[Tensor, "image caption"], Int[Tensor, "caption"]]:
    """Return scores and relevance as tensors on one device, or say what keeps them from being ranked.

    Raises:
        ValueError: see `retrieval_ranks`.

    >>> check_relevance(torch.eye(2), torch.tensor([0, 2]))
    Traceback (most recent call last):
    ...
    ValueError: caption_image[1] is 2; expected an image index from 0 to 1
    """
    scores = torch.as_tensor(scores)
    caption_image = torch.as_tensor(caption_image, device=scores.device)
    if scores.ndim != 2 or scores.numel() == 0:
        raise ValueError(f"scores have shape {tuple(scores.shape)}; expected (image, caption), at least one of each")
    images, captions = scores.shape
    if caption_image.shape != (captions,):
        raise ValueError(
            f"caption_image has shape {tuple(caption_image.shape)} and scores {tuple(scores.shape)}; expected one "
            f"image index for each of the {captions} captions (scores are image x caption: transpose them if need be)"
        )
    if caption_image.is_floating_point() or caption_image.dtype == torch.bool:
        raise ValueError(f"caption_image is {caption_image.dtype}; expected integer image indices")
    caption_image = caption_image.long()
    outside = ((caption_image < 0) | (caption_image >= images)).nonzero()
    if len(outside):
        caption = int(outside[0])
        raise ValueError(
            f"caption_image[{caption}] is {int(caption_image[caption])}; expected an image index from 0 to {images - 1}"
        )
    silent = (torch.bincount(caption_image, minlength=images) == 0).nonzero()
    if len(silent):
        raise ValueError(
            f"image {int(silent[0])} has no caption ({len(silent)} of {images} images have none), so it has no rank; "
            "leave such images out of the scores"
        )
    return scores, caption_image
