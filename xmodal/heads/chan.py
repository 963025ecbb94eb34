"""CHAN: cross-modal hard aligning (Pan et al., CVPR 2023)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from xmodal.heads.attention import Side, aggregate, aligned_pairs, aligned_products, all_pairs, prepare_sides
from xmodal.heads.base import Attention, Head, check_inputs
from xmodal.heads.comparison import HardAlignment, WordAggregation
from xmodal.numerics import Positive  # noqa: TC001  # ranges are read at run time

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float
    from torch import Tensor


def chan_scores(
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    aggregation: WordAggregation = "logsumexp",
    temperature: float = 0.1,
    validate: bool = False,
) -> Float[Tensor, "image caption"]:
    """Hard aligning scores (Pan et al., CVPR 2023, eq. 7-9), every image against every caption.

    Every word is compared with the one region that it fits best, s_j = max_i v_i . e_j, and the s_j of a caption become
    one score: their mean, or log sum_j exp(s_j / temperature). As in the released code (CHAN, lib/coding.py: VHACoding,
    LSEPooling) the products are those of the features as they are given, cosines only if the encoders normalize, and
    the logarithm is *not* multiplied by the temperature again: its margin acts on a scale of 1 / temperature.

    Args:
        regions: region embeddings of the images, which the paper L2-normalizes.
        words: word embeddings of the captions in the same space, L2-normalized in the paper.
        region_mask: True = real region; None means that all are real.
        word_mask: True = real word; None means that all are real.
        aggregation: of the words of a caption: `logsumexp`, as released (bi-GRU and BERT), or `mean`.
        temperature: divides the similarities under `logsumexp`, > 0; ignored by `mean`.
        validate: also refuse NaN and infinity among the real features, at the cost of a pass over them.

    Returns:
        Scores in the inputs' dtype, or float32 where that is a half precision.

    Raises:
        ValueError: for inputs that cannot be scored (see `check_inputs`) and for an unknown option.

    Example:
        >>> import torch
        >>> from xmodal.heads import chan_scores
        >>> regions, words = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]]), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
        >>> chan_scores(regions, words, aggregation="mean")
        tensor([[0.9000]])
    """
    check_inputs(regions, words, region_mask, word_mask, validate=validate)
    align = _alignment(aggregation, temperature)
    return all_pairs(*prepare_sides(regions, words, region_mask, word_mask), align)


def chan_pair_scores(
    regions: Float[Tensor, "pair region dim"],
    words: Float[Tensor, "pair word dim"],
    region_mask: Bool[Tensor, "pair region"] | None = None,
    word_mask: Bool[Tensor, "pair word"] | None = None,
    *,
    aggregation: WordAggregation = "logsumexp",
    temperature: float = 0.1,
    validate: bool = False,
) -> Float[Tensor, " pair"]:
    """Scores of aligned pairs: the diagonal of `chan_scores`, whose arguments these are, without the rest of it.

    Example:
        >>> import torch
        >>> from xmodal.heads import chan_pair_scores
        >>> chan_pair_scores(torch.randn(3, 36, 64), torch.randn(3, 12, 64)).shape
        torch.Size([3])
    """
    check_inputs(regions, words, region_mask, word_mask, aligned=True, validate=validate)
    align = _alignment(aggregation, temperature)
    return aligned_pairs(*prepare_sides(regions, words, region_mask, word_mask), align)


class CHAN(Head):
    """The CHAN head as a Module; arguments as for `chan_scores`. It has no parameters.

    Example:
        >>> import torch
        >>> from xmodal.heads import CHAN
        >>> CHAN(aggregation="mean")(torch.randn(4, 36, 256), torch.randn(6, 12, 256)).shape
        torch.Size([4, 6])
    """

    def __init__(self, aggregation: WordAggregation = "logsumexp", temperature: Positive = 0.1) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"aggregation": aggregation, "temperature": temperature}
        HardAlignment(**self.options)  # refuses options that do not exist

    @property
    def comparison(self) -> HardAlignment:  # type: ignore[override]  # noqa: D102
        return HardAlignment(**self.options)

    def compare(self, images, captions, region_mask=None, word_mask=None):  # noqa: D102
        return chan_scores(images, captions, region_mask, word_mask, **self.options)

    def pairs(self, regions, words, region_mask=None, word_mask=None):  # noqa: D102
        sides = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return chan_pair_scores(*sides, region_mask, word_mask, **self.options)

    def attention(self, regions, words, region_mask=None, word_mask=None):
        """Every word looks at the one region that fits it best, the first of equals."""
        regions, words = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        check_inputs(regions, words, region_mask, word_mask, aligned=True)
        images, captions = prepare_sides(regions, words, region_mask, word_mask)
        products = aligned_products(images, captions)[..., 0].masked_fill(~images.mask[..., None], float("-inf"))
        best = torch.zeros_like(products).scatter(1, products.argmax(dim=1, keepdim=True), 1.0)
        return Attention((best * captions.mask[:, None, :]).transpose(1, 2))

    def extra_repr(self) -> str:  # noqa: D102
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items())


def hard_alignment(
    products: Float[Tensor, "context_item context query query_item"],
    contexts: Side,
    query_norms: Float[Tensor, "#context_item query query_item"],
    query_mask: Bool[Tensor, "#context_item query query_item"],
    *,
    aggregation: WordAggregation,
    temperature: float,
) -> Float[Tensor, "context_item query_item"]:
    """Scores of one tile of products, for `xmodal.heads.attention.all_pairs`; its norms are not needed.

    Example:
        >>> import torch
        >>> from xmodal.heads.attention import prepare_side
        >>> from xmodal.heads.chan import hard_alignment
        >>> image = prepare_side(torch.ones(1, 2, 3), None)
        >>> products = torch.tensor([[0.5, 0.75], [0.25, 0.25]]).T.view(1, 2, 2, 1)
        >>> real = torch.ones(1, 2, 1, dtype=torch.bool)
        >>> hard_alignment(products, image, products, real, aggregation="mean", temperature=1.0)
        tensor([[0.5000]])
    """
    best = products.masked_fill(~contexts.mask[:, :, None, None], float("-inf")).amax(dim=1)
    scores = aggregate(best, query_mask, aggregation=aggregation, lse_scale=1 / temperature)
    return scores / temperature if aggregation == "logsumexp" else scores


def _alignment(aggregation: WordAggregation, temperature: float) -> Callable[..., Tensor]:
    how = HardAlignment(aggregation, temperature)
    return partial(hard_alignment, aggregation=how.aggregation, temperature=how.temperature)
