"""How a head compares, as data: what every engine that computes scores reads, be it eager, tiled or a GPU kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from xmodal.heads.attention import Aggregation, Direction, Focal, Normalization
from xmodal.numerics import check_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

WordAggregation = Literal["logsumexp", "mean"]


@dataclass(frozen=True)
class CrossAttention:
    """Stacked cross attention between the items of both sides: SCAN, and with `focal` and `both` directions BFAN.

    A head that declares it promises that the score of an image and a caption is what `xmodal.heads.scan_scores` gives
    for its embeddings, which are one vector an item under the masks given; with `both`, the sum of the scores of the
    two directions; with `focal`, from attention that BFAN's `refocus` has narrowed.

    Args:
        direction: `t2i` lets every word attend over the regions, `i2t` every region over the words.
        normalization: how the products are normalized over the queries before the softmax over the context.
        aggregation: how the similarities of the queries become one score.
        temperature: inverse temperature of the softmax over the context, > 0.
        lse_scale: lambda_2 of the LogSumExp aggregation, > 0; ignored by the others.
        focal: BFAN's focal function; None keeps all attention.
        both: add the scores of both directions.

    Raises:
        ValueError: for an unknown option, with the ones that exist, or a number that is not positive and finite.

    Example:
        >>> from xmodal.heads import BFAN
        >>> from xmodal.heads.comparison import CrossAttention
        >>> BFAN().comparison == CrossAttention(aggregation="mean", temperature=20.0, focal="prob", both=True)
        True
    """

    direction: Direction = "t2i"
    normalization: Normalization = "clipped_l2"
    aggregation: Aggregation = "logsumexp"
    temperature: float = 9.0
    lse_scale: float = 6.0
    focal: Focal | None = None
    both: bool = False

    promised_by: ClassVar[Sequence[str]] = ("forward", "compare", "pairs", "embed_images", "embed_captions")
    """Methods that must be those of the class that declared this; embeddings too, whose shape it depends on."""

    @property
    def clips(self) -> bool:
        """Whether negative products of a word and a region count for little: the sides must not be opposite."""
        return self.normalization.startswith("clipped")

    def __post_init__(self) -> None:
        for name, known in (
            ("direction", get_args(Direction)),
            ("normalization", get_args(Normalization)),
            ("aggregation", get_args(Aggregation)),
            ("focal", (None, *get_args(Focal))),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}; got {getattr(self, name)!r}")
        for name in ("temperature", "lse_scale"):
            check_number(name, getattr(self, name), above=0)


@dataclass(frozen=True)
class InnerProduct:
    """The score is the inner product of what `embed_images` and `embed_captions` give: any vector index can search it.

    A head that declares it promises one vector `(dim,)` an image and a caption. It holds whatever these vectors are,
    so that a subclass may embed in its own way.

    Example:
        >>> from xmodal.heads import Cosine
        >>> Cosine().comparison
        InnerProduct()
    """

    promised_by: ClassVar[Sequence[str]] = ("forward", "compare", "pairs")

    clips: ClassVar[bool] = False
    """As for `CrossAttention`."""


@dataclass(frozen=True)
class HardAlignment:
    """Every word is compared with the region that it fits best: CHAN.

    A head that declares it promises that the score of an image and a caption is what `xmodal.heads.chan_scores` gives
    for its embeddings, which are one vector an item under the masks given.

    Args:
        aggregation: how the similarities of the words become one score.
        temperature: divides the similarities under `logsumexp`, > 0; ignored by `mean`.

    Raises:
        ValueError: for an unknown option, with the ones that exist, or a number that is not positive and finite.

    Example:
        >>> from xmodal.heads import CHAN
        >>> CHAN("mean").comparison
        HardAlignment(aggregation='mean', temperature=0.1)
    """

    aggregation: WordAggregation = "logsumexp"
    temperature: float = 0.1

    promised_by: ClassVar[Sequence[str]] = CrossAttention.promised_by
    """As for `CrossAttention`."""
    clips: ClassVar[bool] = False
    """As for `CrossAttention`."""

    def __post_init__(self) -> None:
        if self.aggregation not in get_args(WordAggregation):
            known = ", ".join(get_args(WordAggregation))
            raise ValueError(f"aggregation must be one of {known}; got {self.aggregation!r}")
        check_number("temperature", self.temperature, above=0)


Comparison: TypeAlias = CrossAttention | HardAlignment | InnerProduct


class Declared:
    """What a class declares as its `comparison`: true of an instance while the methods it is about are that class's.

    `Head` puts it in place of every declaration. A method may be replaced by a subclass, by a mixin, in the class after
    its definition or on a single instance: whoever compares in another way than was declared is called, unless the
    class that replaced the method declares anew. A single instance can only take a declaration back, by None: of one
    that it made nobody could tell which methods it was about.

    Args:
        comparison: a value, or a property where it follows from the options of a head.
        owner: the class that declares it.

    Example:
        >>> from xmodal.heads import Cosine
        >>> class Doubled(Cosine):
        ...     def compare(self, images, captions, region_mask=None, word_mask=None):
        ...         return 2 * super().compare(images, captions)
        >>> Cosine().comparison, Doubled().comparison
        (InnerProduct(), None)
    """

    def __init__(self, comparison: Comparison | property | None, owner: type[nn.Module]) -> None:
        self.comparison = comparison
        names = {name for kind in (CrossAttention, HardAlignment, InnerProduct) for name in kind.promised_by}
        self.methods = {name: getattr(owner, name) for name in names}

    def __set__(self, head: nn.Module, comparison: None) -> None:
        if comparison is not None:
            raise AttributeError(
                f"{type(head).__name__}.comparison is declared in the class, by a value or, where it depends on the "
                f"options of a head, by a property; it cannot be set on an instance, to {comparison!r}"
            )
        vars(head)["comparison"] = None

    def __get__(self, head: nn.Module | None, owner: type[nn.Module]) -> Any:
        if head is None:
            return self.comparison
        if "comparison" in vars(head):
            return None
        comparison = self.comparison
        if isinstance(comparison, property):
            comparison = comparison.__get__(head, owner)
        if comparison is None:
            return None
        replaced = (
            name in vars(head) or getattr(owner, name) is not self.methods[name] for name in comparison.promised_by
        )
        return None if any(replaced) else comparison
