"""What errors, forms and the objective hand each other of a batch: its features, its items and its discriminators."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xmodal.objectives.checks import check_matched, check_shape

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class DomainFeatures(NamedTuple):
    """The two domains of a batch of matched pairs: word and region features in the joint space."""

    words: Float[Tensor, "pair word dim"]
    regions: Float[Tensor, "pair region dim"]
    word_mask: Bool[Tensor, "pair word"]
    region_mask: Bool[Tensor, "pair region"]
    image: Int[Tensor, " pair"] | None = None
    """Image of every pair: pairs with the same image are no negatives of each other. None: all images differ."""
    pair: Int[Tensor, " pair"] | None = None
    """Where every pair is in the training set, for the `table` form."""


def check_features(features: DomainFeatures) -> None:
    """Refuse features that are not those of matched pairs. A device that computes is not waited for.

    Raises:
        ValueError: as `check_matched`, or if `image` or `pair` is not one of every pair.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import DomainFeatures
        >>> from xmodal.objectives.addr.batch import check_features
        >>> items, real = torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
        >>> check_features(DomainFeatures(items, items, real, real, image=torch.tensor([7])))
        Traceback (most recent call last):
        ...
        ValueError: image must have shape (2,), got (1,)
    """
    check_matched(*features[:4])
    for name, ids in (("image", features.image), ("pair", features.pair)):
        if ids is not None:
            check_shape(name, ids, (len(features.words),))


class Discriminators(NamedTuple):
    """A linear discriminator a pair: words are where `weight . x + bias` is positive."""

    weight: Float[Tensor, "pair dim"]
    bias: Float[Tensor, " pair"]


class Items(NamedTuple):
    """What discriminators learn from: the words, then the regions of every pair, of length one, seen from its center.

    Nothing flows back from here. Padding has no weight and no share.
    """

    features: Float[Tensor, "pair item dim"]
    center: Float[Tensor, "pair dim"]
    is_word: Bool[Tensor, " item"]
    weight: Float[Tensor, "pair item"]
    """In the fit of a pair's discriminator, where words and regions count alike; one in sum."""
    share: Float[Tensor, "pair item"]
    """In the error on a pair, as `balance` has it."""
    image: Int[Tensor, " pair"] | None
    pair: Int[Tensor, " pair"] | None
