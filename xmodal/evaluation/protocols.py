"""The evaluation protocols of the literature: how large the test set is and into how many folds it is cut.

The 1K figures of COCO are means over five folds of 1000 images. Which images make a fold is decided by the order in
which the captions first speak of them, as in the published files, and not by the order of a store. Everything here goes
by name: the summary printed by the released code indexes a tuple and shows the mean recalls and rsum under one
another's labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.data.relevance import Relevance
from xmodal.evaluation.ranks import check_answers, check_relevance, evaluate_retrieval
from xmodal.numerics import check_count
from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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

    def check_size(self, images: int, captions: int) -> None:
        """Refuse a test set of another size.

        Raises:
            ValueError: it is of another size; the message says what to do.

        >>> PROTOCOLS["f30k-1k"].check_size(1000, 4999)
        Traceback (most recent call last):
        ...
        ValueError: protocol 'f30k-1k' takes 1000 images and 5000 captions, but there are 1000 x 4999 ...
        """
        if self.fits(images, captions):
            return
        if images == self.images and self.captions and captions > self.captions:
            fix = (
                f"the published protocol takes the first {self.captions // images} captions of every image: write the "
                f"captions with `xmodal prepare captions ... --captions-per-image {self.captions // images}`"
            )
        else:
            fix = f"protocols that fit: {', '.join(name for name, p in PROTOCOLS.items() if p.fits(images, captions))}"
        raise ValueError(
            f"protocol {self.name!r} takes {self.images} images and {self.captions} captions, but there are "
            f"{images} x {captions} (image x caption); {fix}"
        )


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
    """Some images and the captions that describe them."""

    images: Int[Tensor, " image"]
    captions: Int[Tensor, " caption"]
    caption_image: Int[Tensor, " caption"] | Relevance
    """Which of them belong together, counted within the fold."""


def evaluate_protocol(
    scores: Float[Tensor, "image caption"],
    caption_image: Int[Tensor, " caption"] | Relevance,
    protocol: str = "plain",
    *,
    image_order: Int[Tensor, " image"] | Sequence[int] | None = None,
) -> dict[str, Any]:
    """Evaluate retrieval under a named protocol.

    Args:
        scores: similarity of every image to every caption, higher is more alike.
        caption_image: the image (a row of `scores`) that each caption describes, in any order, or a `Relevance`.
        protocol: a name in `PROTOCOLS`.
        image_order: see `cut_folds`.

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
    find_protocol(protocol)  # a wrong name is named before wrong scores
    scores, relevance = check_relevance(scores, caption_image)
    folds = protocol_folds(relevance, protocol, image_order=image_order)
    if len(folds) == 1:  # the matrix as it stands, without the copy that picking images and captions makes
        results = [evaluate_retrieval(scores, relevance)]
    else:
        results = [
            evaluate_fold(scores[fold.images.to(scores.device)][:, fold.captions.to(scores.device)], fold)
            for fold in folds
        ]
    return join_folds(results, protocol)


def protocol_folds(
    relevance: Relevance, protocol: str = "plain", *, image_order: Int[Tensor, " image"] | Sequence[int] | None = None
) -> list[Fold]:
    """The folds of a test set under a named protocol, and whether it can be evaluated at all: no scores are needed yet.

    Only pairs within a fold are ever compared, so the others need not be scored: score each fold by itself, evaluate it
    with `evaluate_fold`, and join the results with `join_folds`.

    Args:
        relevance: which images and captions of the test set belong together.
        protocol: a name in `PROTOCOLS`.
        image_order: see `cut_folds`.

    Raises:
        ValueError: no such protocol, a test set of another size, or images or captions without a right answer.

    >>> from xmodal.data import Relevance
    >>> (fold,) = protocol_folds(Relevance.from_caption_image(torch.tensor([1, 0, 1])))
    >>> fold.images, fold.captions
    (tensor([0, 1]), tensor([0, 1, 2]))
    """
    chosen = find_protocol(protocol)
    chosen.check_size(relevance.images, relevance.captions)
    check_answers(relevance)
    if chosen.folds == 1:
        return [Fold(torch.arange(relevance.images), torch.arange(relevance.captions), relevance)]
    return cut_folds(relevance, chosen.folds, image_order=image_order)


def find_protocol(name: str) -> Protocol:
    """Return the protocol of that name.

    Raises:
        ValueError: there is none; the nearest name is suggested.

    >>> find_protocol("coco-5k").images
    5000
    """
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}{near_miss(name, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def cut_folds(
    caption_image: Int[Tensor, " caption"] | Relevance,
    folds: int,
    *,
    image_order: Int[Tensor, " image"] | Sequence[int] | None = None,
) -> list[Fold]:
    """Cut a test set into folds of equally many consecutive images, each with the captions of its own images.

    Args:
        caption_image: the image that each caption describes; every image has a caption. Or a `Relevance` of captions
            that have one image each.
        folds: how many; they must divide the number of images.
        image_order: all images in the order that is cut. By default that in which the captions first speak of them:
            with captions in the order of their file, these are the published folds, whatever the order of a store.

    Raises:
        ValueError: the images do not divide into that many folds, a caption has several images or none, or
            `image_order` does not list every image once.

    >>> import torch
    >>> [fold.images.tolist() for fold in cut_folds(torch.tensor([0, 3, 1, 2, 0]), folds=2)]
    [[0, 3], [1, 2]]
    >>> [fold.captions.tolist() for fold in cut_folds(torch.tensor([0, 3, 1, 2, 0]), folds=2, image_order=range(4))]
    [[0, 2, 4], [1, 3]]
    """
    relevance = caption_image if isinstance(caption_image, Relevance) else Relevance.from_caption_image(caption_image)
    images, index = relevance.images, relevance.caption_image
    if index is None:
        raise ValueError(
            f"folds need captions that are about exactly one image each, which those of {relevance} are not; "
            "take a protocol without folds"
        )
    check_count("folds", folds)
    if images % folds:
        raise ValueError(f"{images} images cannot be cut into {folds} folds of equal size")
    order = relevance.image_order if image_order is None else torch.as_tensor(image_order).cpu()
    if order.dtype == torch.bool or order.is_floating_point() or order.is_complex():
        raise ValueError(f"image_order is {order.dtype}; wanted whole numbers, the positions of images")
    order = order.long()
    if not torch.equal(order.sort().values, torch.arange(images)):
        raise ValueError(f"image_order must list each of the {images} images once, got {len(order)} entries")
    place = order.argsort()[index]  # of each caption's image in this order
    size = images // folds
    cut = []
    for start in range(0, images, size):
        captions = ((place >= start) & (place < start + size)).nonzero().flatten()
        cut.append(Fold(order[start : start + size], captions, place[captions] - start))
    return cut


def evaluate_fold(
    scores: Float[Tensor, "image caption"], fold: Fold, evaluate: Callable[..., dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Evaluate one fold, given its own scores, by `evaluate_retrieval` or what else takes its arguments.

    Raises:
        ValueError: its scores cannot be ranked; the fold is named, since indices are counted within it.

    >>> import torch
    >>> first, second = cut_folds(torch.tensor([0, 1, 2, 3]), folds=2)
    >>> evaluate_fold(torch.eye(2), second)["rsum"]
    600.0
    """
    try:
        return (evaluate or evaluate_retrieval)(scores, fold.caption_image)
    except ValueError as error:
        raise ValueError(f"in the fold of images {_named(fold.images.tolist())}: {error}") from error


def _named(images: list[int]) -> str:
    first, last = images[0], images[-1]
    if images == list(range(first, last + 1)):
        return f"{first} to {last}"
    return f"{', '.join(map(str, images[:3]))}, ..."


def join_folds(folds: Sequence[dict[str, Any]], protocol: str) -> dict[str, Any]:
    """What `evaluate_protocol` returns, from the results of its folds.

    >>> import torch
    >>> join_folds([evaluate_retrieval(torch.eye(2), torch.tensor([0, 1]))] * 2, "plain")["rsum"]
    600.0
    """
    return {**mean_over_folds(folds), "protocol": protocol, "folds": list(folds)}


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
