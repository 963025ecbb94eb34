"""The evaluation protocols of the literature: how large the test set is and into how many folds it is cut.

The 1K figures of COCO are means over five folds of 1000 images. Everything here goes by name: the summary printed by
the released code indexes a tuple and shows the mean recalls and rsum under one another's labels.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from xmodal.evaluation.ranks import check_relevance, evaluate_retrieval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Protocol:
    """A test set's size, `None` where any will do, and the number of folds its images are cut into.

    >>> Protocol("f30k-1k", images=1000, captions=5000).fits(1000, 4999)
    False
    """

    name: str
    images: int | None = None
    captions: int | None = None
    folds: int = 1

    def fits(self, images: int, captions: int) -> bool:
        """Say whether a test set of this size can be evaluated by this protocol."""
        return self.images in (None, images) and self.captions in (None, captions)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("plain"),
        Protocol("f30k-1k", images=1000, captions=5000),
        Protocol("coco-1k-5fold", images=5000, captions=25000, folds=5),
        Protocol("coco-5k", images=5000, captions=25000),
    )
}


class Fold(NamedTuple):
    """A block of images and the captions that describe them."""

    images: slice
    captions: Int[Tensor, "caption"]
    caption_image: Int[Tensor, "caption"]
    """The image each of these captions describes, counted from the fold's first image."""


def evaluate_protocol(
    scores: Float[Tensor, "image caption"],
    caption_image: Int[Tensor, "caption"],
    protocol: str = "plain",
) -> dict[str, Any]:
    """Evaluate retrieval under a named protocol.

    Args:
        scores: similarity of every image to every caption, higher is more alike.
        caption_image: the image (a row of `scores`) that each caption describes, in any order.
        protocol: a name in `PROTOCOLS`.

    Returns:
        The mean over the folds of every number of `evaluate_retrieval`, under the same names, with `"protocol"`, the
        name, and `"folds"`, the result of each fold (a single one where the protocol cuts none).

    Raises:
        ValueError: no such protocol, a test set of another size, or scores that cannot be ranked.

    >>> import torch
    >>> result = evaluate_protocol(torch.eye(3), torch.tensor([0, 1, 2]))
    >>> result["protocol"], result["i2t"]["R@1"], len(result["folds"])
    ('plain', 100.0, 1)
    """
    chosen = find_protocol(protocol)
    scores, caption_image = check_relevance(scores, caption_image)
    if not chosen.fits(*scores.shape):
        images, captions = scores.shape
        fitting = ", ".join(name for name, other in PROTOCOLS.items() if other.fits(images, captions))
        raise ValueError(
            f"protocol {chosen.name!r} takes {chosen.images} images and {chosen.captions} captions, but the scores are "
            f"{images} x {captions} (image x caption); protocols that fit: {fitting}"
        )
    if chosen.folds == 1:  # the matrix as it stands, without the copy that picking captions makes
        folds = [evaluate_retrieval(scores, caption_image)]
    else:
        folds = [evaluate_fold(scores, fold) for fold in cut_folds(caption_image, chosen.folds)]
    return {**mean_over_folds(folds), "protocol": chosen.name, "folds": folds}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of that name.

    Raises:
        ValueError: there is none; the nearest name is suggested.

    >>> find_protocol("coco-5k").images
    5000
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no protocol {name!r}; {hint}known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def cut_folds(caption_image: Int[Tensor, "caption"], folds: int) -> list[Fold]:
    """Cut a test set into folds of equally many consecutive images, each with the captions of its own images.

    Only pairs within a fold are ever compared, so a slow head need not score the others: score each fold by itself,
    evaluate it, and join the results with `mean_over_folds`.

    Args:
        caption_image: the image that each caption describes; every image has a caption.
        folds: how many; they must divide the number of images.

    Raises:
        ValueError: the images do not divide into that many folds.

    >>> import torch
    >>> [fold.captions.tolist() for fold in cut_folds(torch.tensor([0, 3, 1, 2, 0]), folds=2)]
    [[0, 2, 4], [1, 3]]
    """
    images = int(caption_image.max()) + 1
    if folds < 1 or images % folds:
        raise ValueError(f"{images} images cannot be cut into {folds} folds of equal size")
    size = images // folds
    cut = []
    for start in range(0, images, size):
        captions = ((caption_image >= start) & (caption_image < start + size)).nonzero().flatten()
        cut.append(Fold(slice(start, start + size), captions, caption_image[captions] - start))
    return cut


def evaluate_fold(scores: Float[Tensor, "image caption"], fold: Fold) -> dict[str, Any]:
    """Evaluate one fold of the whole test set's scores.

    Raises:
        ValueError: its scores cannot be ranked; the fold is named, since indices are counted within it.

    >>> import torch
    >>> first, second = cut_folds(torch.tensor([0, 1, 2, 3]), folds=2)
    >>> evaluate_fold(torch.eye(4), second)["rsum"]
    600.0
    """
    try:
        return evaluate_retrieval(scores[fold.images][:, fold.captions], fold.caption_image)
    except ValueError as error:
        raise ValueError(f"in the fold of images {fold.images.start} to {fold.images.stop - 1}: {error}") from error


def mean_over_folds(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average the results of `evaluate_retrieval` over folds, each number under its own name.

    >>> import torch
    >>> one, two = (evaluate_retrieval(s * torch.eye(2), torch.tensor([0, 1])) for s in (1, -1))
    >>> mean_over_folds([one, two])["t2i"]["R@1"]
    50.0
    """

    def mean(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: mean([value[name] for value in values]) for name in values[0]}
        return sum(values) / len(values)

    return mean(folds)
