"""The plain dual encoder: one pooled vector a side, compared by cosine. The baseline of every attention head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from xmodal.heads.base import Attention, Explanation, Head, check_inputs
from xmodal.heads.comparison import InnerProduct
from xmodal.heads.pooling import POOLERS, make_pooler
from xmodal.numerics import Size, full_mask, of_one_dtype, unit_length

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float
    from torch import Tensor

Pooling = Literal["mean", "max"]


def pool(
    items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"] | None = None, *, pooling: Pooling = "mean"
) -> Float[Tensor, "set dim"]:
    """One unit vector a set: the mean or the elementwise maximum of its real items, L2-normalized.

    Raises:
        ValueError: for an unknown pooling or a set without a real item.

    Example:
        >>> import torch
        >>> from xmodal.heads.cosine import pool
        >>> pool(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]))
        tensor([[0.6000, 0.8000]])
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}; got {pooling!r}")
    return unit_length(make_pooler(pooling)(items, mask))


def cosine_scores(
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    pooling: Pooling = "mean",
    validate: bool = False,
) -> Float[Tensor, "image caption"]:
    """Cosine of the pooled regions with the pooled words, every image against every caption.

    Args:
        regions: region embeddings.
        words: word embeddings in the same space.
        region_mask: True = real region; None means that all are real.
        word_mask: True = real word; None means that all are real.
        pooling: `mean` or elementwise `max` over the real items.
        validate: also refuse NaN and infinity among the real features.

    Returns:
        Cosines in [-1, 1].

    Raises:
        ValueError: for inputs that cannot be scored (see `check_inputs`) or an unknown pooling.

    Example:
        >>> import torch
        >>> from xmodal.heads import cosine_scores
        >>> cosine_scores(torch.randn(4, 36, 256), torch.randn(6, 12, 256)).shape
        torch.Size([4, 6])
    """
    check_inputs(regions, words, region_mask, word_mask, validate=validate)
    images, captions = pool(regions, region_mask, pooling=pooling), pool(words, word_mask, pooling=pooling)
    images, captions = of_one_dtype(images, captions)
    return images @ captions.T


class Cosine(Head):
    """Cosine of one pooled vector a side; `cosine_scores` as a Module where the pooling has no parameters.

    With GPO on both sides this is VSE-infinity (Chen et al., CVPR 2021), with ESA that of Zhu et al. (TCSVT 2023).
    Pooling is done once an item, in `embed_images` and `embed_captions`.

    Args:
        pooling: how regions, and words where nothing else is said, become one vector: a name of `POOLERS`, or
            `{"name": ..., option: value, ...}`.
        caption_pooling: how words become one vector; None for a pooler like that of the regions, with parameters of its
            own.
        dim: dim of the joint space, which some poolers need to know.

    Example:
        >>> import torch
        >>> from xmodal.heads import Cosine
        >>> head = Cosine(pooling={"name": "gpo"}, caption_pooling="max")
        >>> head(torch.randn(4, 36, 256), torch.randn(6, 12, 256)).shape
        torch.Size([4, 6])
    """

    comparison = InnerProduct()
    parts: ClassVar[dict[str, Any]] = {"pooling": POOLERS, "caption_pooling": POOLERS}
    """The options that are parts themselves."""

    def __init__(
        self,
        pooling: str | Mapping[str, Any] = "mean",
        caption_pooling: str | Mapping[str, Any] | None = None,
        dim: Size | None = None,
    ) -> None:
        super().__init__()
        self.image_pooler = make_pooler(pooling, dim)
        self.caption_pooler = make_pooler(pooling if caption_pooling is None else caption_pooling, dim)

    def embed_images(self, regions, region_mask=None):  # noqa: D102
        return unit_length(self.image_pooler(regions, region_mask))

    def embed_captions(self, words, word_mask=None):  # noqa: D102
        return unit_length(self.caption_pooler(words, word_mask))

    def compare(self, images, captions, region_mask=None, word_mask=None):  # noqa: D102
        images, captions = of_one_dtype(images, captions)
        return images @ captions.T

    def attention(self, regions, words, region_mask=None, word_mask=None):
        """A pooled head does not attend: every word looks at all real regions alike (as `mean` pooling does)."""
        check_inputs(regions, words, region_mask, word_mask, aligned=True)
        real_regions, real_words = full_mask(regions, region_mask), full_mask(words, word_mask)
        uniform = real_regions / real_regions.sum(dim=1, keepdim=True)
        return Attention((real_words[:, :, None] * uniform[:, None, :]).to(regions))

    def explain(self, regions, words, region_mask=None, word_mask=None):
        """How the caption as a whole looks at the regions: no word looks for itself."""
        return (Explanation(self.attention(regions, words, region_mask, word_mask), "caption"),)
