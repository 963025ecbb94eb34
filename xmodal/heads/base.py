"""What a head is, and the checks that every head makes of its inputs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import nn

from xmodal.heads.comparison import Declared, InnerProduct
from xmodal.masks import first_empty
from xmodal.numerics import full_mask

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.heads.comparison import Comparison


class Attention(NamedTuple):
    """Where the words of a caption and the regions of an image look at one another, for drawing.

    `weights[p, w, r]` ties word w to region r of pair p. In direction t2i the weights of a word sum to one over the
    regions; in direction i2t the weights of a region sum to one over the words. `focal` is BFAN's mask of the weights
    it keeps, None for other heads. Padding has weight zero.
    """

    weights: Float[Tensor, "pair word region"]
    focal: Bool[Tensor, "pair word region"] | None = None


Looking = Literal["words", "regions", "caption"]
"""Who looks: each word at regions, each region at words, or the caption as a whole at regions."""


class Explanation(NamedTuple):
    """One way in which the two sides of a pair look at one another, and what it adds to the score."""

    attention: Attention
    """Its weights sum to one over what is looked at; a caption as a whole has the same weights for every word."""
    looking: Looking = "words"
    shares: Float[Tensor, "pair query"] | None = None
    """What each word, or region, that looks adds to the score; None where a head cannot say. The shares of all
    explanations of a pair sum to its score. Padding has share zero."""


class ImageStages(NamedTuple):
    """What becomes of the regions of images on the way to what a head compares, for objectives that look at it too."""

    states: Float[Tensor, "image region dim"]
    """Region states after reasoning among the regions: what a captioner reads."""
    domain: Float[Tensor, "image region dim"]
    """The features that stand for the regions in the joint space, next to those of the words."""
    images: Float[Tensor, "image ..."]
    """What `embed_images` gives."""


_SCORED_BY = ("forward", "compare", "embed_images", "embed_captions")
"""Methods of a head that decide on its scores."""


class Head(nn.Module):
    """A head compares every image with every caption; scores are `(image, caption)`, higher is better.

    A subclass gives `compare`, for pictures `attention`, and `pairs` where it can do better than the default. What
    needs doing once an item rather than once a pair (VSRN's graph reasoning, pooling) goes into `embed_images` and
    `embed_captions`, whose results `compare` takes; scoring all pairs in blocks then runs it once an item. `forward` is
    the same for all heads.

    >>> class Mean(Head):
    ...     def compare(self, images, captions, region_mask=None, word_mask=None):
    ...         return images.mean(dim=1) @ captions.mean(dim=1).T
    >>> Mean()(torch.ones(2, 36, 8), torch.ones(3, 12, 8)).shape
    torch.Size([2, 3])
    """

    has_region_states: ClassVar[bool] = False
    """Whether the states in `image_stages` are more than the regions that came in: what a captioner can read."""

    comparison: Comparison | None = None
    """How `compare` compares, for engines that do it faster; None: only by calling it.

    A class declares it by a value or a property. A subclass that replaces what was declared (see `Declared`) has None
    again, unless it declares its own.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        order = [vars(kind) for kind in cls.__mro__]

        def place(method: str) -> int:
            return next(place for place, names in enumerate(order) if method in names)

        if "pairs" in vars(cls):
            cls.pairs = _unless_replaced(cls.pairs)
        # Faster pairs that are inherited know nothing of what has been replaced since.
        if cls.pairs is not Head.pairs and place("pairs") > min(map(place, _SCORED_BY)):
            cls.pairs = Head.pairs
        # From the class body, from a mixin that is no head, or put into a parent after its definition.
        holder = next(kind for kind in cls.__mro__ if "comparison" in vars(kind))
        comparison = vars(holder)["comparison"]
        if not isinstance(comparison, Declared):
            cls.comparison = Declared(comparison, holder if issubclass(holder, Head) else cls)  # type: ignore[assignment]

    def embed_images(
        self, regions: Float[Tensor, "image region dim"], region_mask: Bool[Tensor, "image region"] | None = None
    ) -> Float[Tensor, "image ..."]:
        """Per-image work; the identity unless a head says otherwise."""
        return regions

    def image_stages(
        self, regions: Float[Tensor, "image region dim"], region_mask: Bool[Tensor, "image region"] | None = None
    ) -> ImageStages:
        """`embed_images` with what it goes through; without stages of their own, the regions stand for themselves."""
        return ImageStages(regions, regions, self.embed_images(regions, region_mask))

    def embed_captions(
        self, words: Float[Tensor, "caption word dim"], word_mask: Bool[Tensor, "caption word"] | None = None
    ) -> Float[Tensor, "caption ..."]:
        """Per-caption work; the identity unless a head says otherwise."""
        return words

    def compare(
        self,
        images: Float[Tensor, "image ..."],
        captions: Float[Tensor, "caption ..."],
        region_mask: Bool[Tensor, "image region"] | None = None,
        word_mask: Bool[Tensor, "caption word"] | None = None,
    ) -> Float[Tensor, "image caption"]:
        """Scores of embedded images against embedded captions.

        The masks are those that came with the regions and words. `forward` and `xmodal.scoring` always give both.
        """
        raise NotImplementedError(f"{type(self).__name__} has no compare: write the method that compares embeddings")

    def pair_bytes(self, image: Float[Tensor, "1 ..."], caption: Float[Tensor, "1 ..."]) -> int | None:
        """Memory that `compare` takes for one more pair like this, embedded one; None to have it measured.

        Scoring under a budget compares so many images and captions at once that their pairs fit.
        """
        return None

    @property
    def in_stages(self) -> Head:
        """What trainer and scorer use, which embed every item once and then compare.

        That is this head; where its `forward` is not the one below, a head whose `compare` calls it, on items that are
        not embedded yet.
        """
        return self if "forward" not in vars(self) and type(self).forward is Head.forward else _Whole(self)

    @property
    def compares_pairs_one_by_one(self) -> bool:
        """Whether there is nothing faster for pairs than the default, so that those of one item are compared at once.

        Nor is there where something that decides on scores was replaced on this instance alone.
        """
        is_replaced = any(method in vars(self) for method in _SCORED_BY)
        return "pairs" not in vars(self) and (is_replaced or type(self).pairs is Head.pairs)

    def pairs(
        self,
        regions: Float[Tensor, "pair region dim"],
        words: Float[Tensor, "pair word dim"],
        region_mask: Bool[Tensor, "pair region"] | None = None,
        word_mask: Bool[Tensor, "pair word"] | None = None,
    ) -> Float[Tensor, " pair"]:
        """Scores of aligned pairs: image i with caption i.

        The default compares pair by pair, so that it takes the memory of one; inner products it computes at once. A
        subclass that replaces what decides on scores has it again, unless it brings pairs of its own.
        """
        check_inputs(regions, words, region_mask, word_mask, aligned=True)
        region_mask, word_mask = full_mask(regions, region_mask), full_mask(words, word_mask)
        head = self.in_stages
        images, captions = head.embed_images(regions, region_mask), head.embed_captions(words, word_mask)
        if isinstance(head.comparison, InnerProduct):
            return (images * captions).sum(dim=-1)
        sides = (images, captions, region_mask, word_mask)
        pairs = zip(*(side.split(1) for side in sides), strict=True)
        return torch.cat([head.compare(*pair).flatten() for pair in pairs])

    def attention(
        self,
        regions: Float[Tensor, "pair region dim"],
        words: Float[Tensor, "pair word dim"],
        region_mask: Bool[Tensor, "pair region"] | None = None,
        word_mask: Bool[Tensor, "pair word"] | None = None,
    ) -> Attention:
        """Which word looks at which region, for aligned pairs.

        Raises:
            NotImplementedError: for a head that does not say.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say where its words look; give it a method attention(regions, words, "
            "region_mask, word_mask) that returns xmodal.heads.Attention, to draw pictures of it"
        )

    def explain(
        self,
        regions: Float[Tensor, "pair region dim"],
        words: Float[Tensor, "pair word dim"],
        region_mask: Bool[Tensor, "pair region"] | None = None,
        word_mask: Bool[Tensor, "pair word"] | None = None,
    ) -> tuple[Explanation, ...]:
        """Every way in which the sides of aligned pairs look at one another, with what it adds to their scores.

        The default is the attention of words, without shares. A head that adds up several directions has one of each.

        Raises:
            NotImplementedError: for a head without `attention`.
        """
        return (Explanation(self.attention(regions, words, region_mask, word_mask)),)

    def forward(
        self,
        regions: Float[Tensor, "image region dim"],
        words: Float[Tensor, "caption word dim"],
        region_mask: Bool[Tensor, "image region"] | None = None,
        word_mask: Bool[Tensor, "caption word"] | None = None,
    ) -> Float[Tensor, "image caption"]:
        """Scores of every image against every caption. Without a mask, all of a side is real."""
        region_mask, word_mask = full_mask(regions, region_mask), full_mask(words, word_mask)
        images = self.embed_images(regions, region_mask)
        captions = self.embed_captions(words, word_mask)
        return self.compare(images, captions, region_mask, word_mask)


Head.comparison = Declared(None, Head)  # type: ignore[assignment]  # refuses one that is set on an instance


def _unless_replaced(pairs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Faster pairs, but where something that decides on scores was replaced on an instance: they know nothing of it."""

    @functools.wraps(pairs)
    def asked(head: Head, *items: Tensor, **options: Any) -> Tensor:
        is_replaced = any(method in vars(head) for method in _SCORED_BY)
        return (Head.pairs if is_replaced else pairs)(head, *items, **options)

    return asked


class _Whole(Head):
    """Compares by calling a head with a `forward` of its own, which does all of its work anew for every pair."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def image_stages(self, regions, region_mask=None):
        return self.head.image_stages(regions, region_mask)._replace(images=regions)

    def compare(self, images, captions, region_mask=None, word_mask=None):
        return self.head(images, captions, region_mask, word_mask)


def check_inputs(
    regions: Tensor,
    words: Tensor,
    region_mask: Tensor | None,
    word_mask: Tensor | None,
    *,
    aligned: bool = False,
    validate: bool = False,
) -> None:
    """Refuse inputs that no head can score, naming the argument, the value seen and the value wanted.

    Args:
        regions: image side, `(image, region, dim)`.
        words: caption side, `(caption, word, dim)`.
        region_mask: True = real.
        word_mask: True = real.
        aligned: also require as many images as captions.
        validate: also read every real feature and refuse NaN and infinity (costs a pass over the data).

    Raises:
        ValueError: for a wrong rank, unequal dim, no image or caption at all, a mask that is not boolean or does not
            fit, an image or caption without a single real item, and, under `validate`, a value that is not finite.

    >>> check_inputs(torch.ones(2, 36, 8), torch.ones(3, 12, 16), None, None)
    Traceback (most recent call last):
    ...
    ValueError: regions have dim 8 and words have dim 16; both must live in one joint space of the same dim
    """
    check_items(regions, region_mask, "regions", "region_mask", "image region dim", validate=validate)
    check_items(words, word_mask, "words", "word_mask", "caption word dim", validate=validate)
    if regions.shape[-1] != words.shape[-1]:
        raise ValueError(
            f"regions have dim {regions.shape[-1]} and words have dim {words.shape[-1]}; "
            "both must live in one joint space of the same dim"
        )
    if aligned and len(regions) != len(words):
        raise ValueError(f"aligned pairs need as many images as captions, got {len(regions)} and {len(words)}")


def check_items(
    items: Tensor, mask: Tensor | None, name: str, mask_name: str, axes: str, *, validate: bool = False
) -> None:
    """The checks of `check_inputs` for one side.

    >>> check_items(torch.ones(2, 12, 8), torch.ones(2, 12), "words", "word_mask", "caption word dim")
    Traceback (most recent call last):
    ...
    ValueError: word_mask must be boolean with True = real, got torch.float32; pass mask.bool()
    """
    if items.ndim != 3:
        raise ValueError(f"{name} must be ({axes.replace(' ', ', ')}), got shape {tuple(items.shape)}")
    if items.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(items.shape)}: every item needs at least one {axes.split()[1]}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"{mask_name} must be boolean with True = real, got {mask.dtype}; pass mask.bool()")
        if mask.shape != items.shape[:2]:
            raise ValueError(
                f"{mask_name} must have shape {tuple(items.shape[:2])} to fit {name}, got {tuple(mask.shape)}"
            )
    if torch.compiler.is_compiling():
        return  # values cannot be read while a graph is being traced, nor numbers of items; shapes above still are
    if len(items) == 0:
        raise ValueError(f"{name} has shape {tuple(items.shape)}: there must be at least one {axes.split()[0]}")
    empty = None if mask is None else first_empty(mask)
    if empty is not None:
        raise ValueError(f"{axes.split()[0]} {empty} has no real {axes.split()[1]} in {mask_name}; remove it first")
    if validate:
        finite = items.isfinite().all(dim=-1)
        if mask is not None:
            finite |= ~mask
        if not bool(finite.all()):
            item, position = (~finite).nonzero()[0].tolist()
            raise ValueError(f"{name}[{item}, {position}] holds NaN or infinity; features must be finite")


def every_pair(
    images: Float[Tensor, "image ..."], captions: Float[Tensor, "caption ..."]
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """The image and the caption of every pair, image by image, where their numbers are free: in a graph.

    >>> image, caption = every_pair(torch.ones(2, 8), torch.ones(3, 8))
    >>> image.tolist(), caption.tolist()
    ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    """
    count = captions.shape[0]
    pairs = torch.arange(images.shape[0] * count, device=images.device)
    return pairs // count, pairs % count


def xavier(linear: nn.Linear) -> nn.Linear:
    """A linear layer that starts with Xavier's uniform weights and, where it has one, a bias of zero.

    >>> bool((xavier(nn.Linear(2, 3)).bias == 0).all())
    True
    """
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
