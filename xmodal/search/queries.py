"""What can be asked besides a sentence: what must not be there, images like one, and both with words.

A query has parts, each scored by itself against every image: sentences that must fit, sentences that must not, images
to be like. A single sentence keeps its head's scores. Parts of different kinds have scores of different sizes, so that
several are brought to mean zero and deviation one over the images first (`combine_scores`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xmodal.data.strings import refuse_string
from xmodal.heads.comparison import CrossAttention, InnerProduct
from xmodal.inference import comparing
from xmodal.numerics import at_least_float32
from xmodal.scoring import score_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from xmodal.encoders.base import EncodedSet
    from xmodal.heads import Head

_NOT = re.compile(r"(?:^|\s)NOT(?=\s|$)")
"""The word in capitals; a sentence may have it in small letters."""

UNWANTED = 1.0
"""How much an unwanted part counts beside the mean of the wanted ones."""


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Args:
        wanted: sentences that must fit.
        unwanted: sentences that must not.
        like: images to be like, by their ids.

    Raises:
        ValueError: nothing is wanted, a sentence is empty, or one string stands where several are meant.

    >>> Query(wanted=("a dog",), unwanted=("a red car",)).is_plain
    False
    """

    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    like: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, wanted in (("wanted", "sentences"), ("unwanted", "sentences"), ("like", "ids")):
            refuse_string(name, getattr(self, name), wanted)
        if not self.wanted and not self.like:
            raise ValueError("nothing is asked for; give a sentence, or an image to be like")
        if not all(sentence.strip() for sentence in (*self.wanted, *self.unwanted)):
            raise ValueError("a sentence of the query is empty; give words before and after NOT")

    @property
    def is_plain(self) -> bool:
        """Whether it is one sentence and nothing else, whose scores are the head's own."""
        return len(self.wanted) == 1 and not self.unwanted and not self.like

    @classmethod
    def parse(cls, text: str, like: Sequence[str] = ()) -> Query:
        """A query as it is typed: a sentence, and after each NOT in capitals one that must not fit.

        Args:
            text: the sentences; empty where only images to be like are given.
            like: these images' ids.

        Raises:
            ValueError: as for the class.

        >>> Query.parse("a dog on grass NOT red car NOT cat")
        Query(wanted=('a dog on grass',), unwanted=('red car', 'cat'), like=())
        """
        refuse_string("like", like, "ids")
        first, *others = (part.strip() for part in _NOT.split(text))
        return cls((first,) if first or not (like or others) else (), tuple(others), tuple(like))


def combine_scores(
    wanted: Float[Tensor, "wanted image"],
    unwanted: Float[Tensor, "unwanted image"] | None = None,
    *,
    weight: float = UNWANTED,
) -> Float[Tensor, " image"]:
    """One score an image of the scores of a query's parts.

    Every part is brought to mean zero and deviation one over the images. What is wanted is averaged. What is unwanted
    is taken away as far as it is above zero, the strongest part alone: an image with less of it than others is not
    better for having none. A single wanted part without an unwanted one stays as it is.

    Args:
        wanted: scores of the parts that must fit; at least one.
        unwanted: scores of those that must not.
        weight: how much the unwanted count.

    >>> import torch
    >>> wanted, unwanted = torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[0.7, 0.1, 0.1]])
    >>> combine_scores(wanted, unwanted).argmax(), combine_scores(wanted)
    (tensor(1), tensor([0.9000, 0.8000, 0.1000]))
    """
    if len(wanted) == 1 and (unwanted is None or not len(unwanted)):
        return wanted[0]
    combined = _standardized(wanted).mean(dim=0)
    if unwanted is not None and len(unwanted):
        combined = combined - weight * _standardized(unwanted).amax(dim=0).clamp_min(0)
    return combined


def score_like(head: Head, images: EncodedSet, examples: EncodedSet) -> Float[Tensor, "image example"]:
    """How much encoded images are like examples, by the head that compares images with captions.

    Of a head with cross attention the regions of an example ask as words do. Of one that compares by inner products
    the embeddings of images and examples are compared.

    Args:
        head: of the matcher.
        images: regions of the images in the joint space, as `Matcher.embed_store` gives them.
        examples: those of the examples.

    Raises:
        ValueError: the head compares in a way of its own.

    >>> import torch
    >>> from xmodal.encoders.base import EncodedSet
    >>> from xmodal.heads import SCAN
    >>> images = EncodedSet(torch.randn(4, 9, 8), torch.ones(4, 9, dtype=torch.bool))
    >>> score_like(SCAN(), images, images).argmax(dim=0)
    tensor([0, 1, 2, 3])
    """
    how = head.comparison
    with comparing(head, images.items.device):
        if isinstance(how, CrossAttention):
            return score_all(head, images.items, examples.items, images.mask, examples.mask)
        if isinstance(how, InnerProduct):
            return head.embed_images(*images) @ head.embed_images(*examples).T
    raise ValueError(why_not_alike(head))


def why_not_alike(head: Head) -> str | None:
    """Why a head cannot tell which images are alike; None if it can.

    >>> from xmodal.heads import SCAN
    >>> why_not_alike(SCAN())
    """
    if isinstance(head.comparison, (CrossAttention, InnerProduct)):
        return None
    return (
        f"{type(head).__name__} compares images with captions in a way of its own, which says nothing about images "
        "that are alike; ask with words"
    )


def _standardized(scores: Float[Tensor, "part image"]) -> Float[Tensor, "part image"]:
    scores = at_least_float32(scores)
    spread = scores.std(dim=1, keepdim=True, correction=0)
    return (scores - scores.mean(dim=1, keepdim=True)) / spread.where(spread > 0, 1.0)
