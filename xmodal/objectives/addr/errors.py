"""Errors of discriminators on pairs, and what they say of pairs that should be told apart (ADDR, eq. 2 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch.nn import functional as F

from xmodal.numerics import check_number, without_padding
from xmodal.objectives.checks import check_matched, check_shape, check_square
from xmodal.objectives.choices import check_choice

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.objectives.addr.batch import Discriminators, Items


Balance = Literal["class", "mean", "sum"]

RegForm = Literal["symmetric", "literal"]


def pair_errors(
    words: Float[Tensor, "pair word dim"],
    regions: Float[Tensor, "pair region dim"],
    word_mask: Bool[Tensor, "pair word"],
    region_mask: Bool[Tensor, "pair region"],
    weight: Float[Tensor, "pair dim"],
    bias: Float[Tensor, " pair"],
    *,
    balance: Balance = "class",
) -> Float[Tensor, "pair pair"]:
    """Errors of all discriminators on all pairs: row p, column q is L_p(f_q), the error of discriminator q on pair p.

    Args:
        words: word features.
        regions: region features in the same space.
        word_mask: True = real word.
        region_mask: True = real region.
        weight: W of every pair's discriminator; positive logits mean word.
        bias: b of every pair's discriminator.
        balance: `class` averages over the words, over the regions, and over the two: chance is log 2 and long captions
            weigh no more than short ones. `mean` averages over all items. `sum` adds them up, as printed.

    Raises:
        ValueError: for shapes or masks that do not fit, a pair without a real word or region or an unknown balance.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import pair_errors
        >>> real = torch.ones(2, 3, dtype=torch.bool)
        >>> words, regions = torch.ones(2, 3, 4), -torch.ones(2, 3, 4)
        >>> pair_errors(words, regions, real, real, torch.tensor([[0.5] * 4, [-0.5] * 4]), torch.zeros(2))
        tensor([[0.1269, 2.1269],
                [0.1269, 2.1269]])
    """
    check_matched(words, regions, word_mask, region_mask)
    check_shape("weight", weight, (len(words), words.shape[2]))
    check_shape("bias", bias, (len(words),))
    words, regions = without_padding(words, word_mask), without_padding(regions, region_mask)
    share = torch.cat(item_weights(word_mask, region_mask, balance, words.dtype), dim=1)
    logits = torch.cat([words @ weight.T, regions @ weight.T], dim=1) + bias
    is_word = torch.arange(logits.shape[1], device=logits.device) < words.shape[1]
    return (share[:, None] @ F.softplus(_wrongness(is_word, logits)[:, None] * logits))[:, 0]


class Rivals(NamedTuple):
    """The hardest negatives of every pair, as `hard_negatives` gives them, and what they are made of."""

    caption: Int[Tensor, " pair"]
    image: Int[Tensor, " pair"]
    of_caption: Items
    """Items of the pairs that have these captions."""
    of_image: Items

    @classmethod
    def among(cls, items: Items, scores: Float[Tensor, "pair pair"]) -> Rivals:
        """Those that the scores name."""
        caption, image = hard_negatives(scores, items.image)
        return cls(caption, image, *(_chosen(items, which) for which in (caption, image)))


class HardErrors(NamedTuple):
    """The errors that L_reg compares, of pairs p whose hardest negatives are q (its caption) and r (its image)."""

    own: Float[Tensor, " pair"]
    """L_p(f_p)."""
    by_caption: Float[Tensor, " pair"]
    """L_p(f_q)."""
    on_caption: Float[Tensor, " pair"]
    """L_q(f_p)."""
    by_image: Float[Tensor, " pair"]
    """L_p(f_r)."""
    on_image: Float[Tensor, " pair"]
    """L_r(f_p)."""


def hard_errors(items: Items, discriminators: Discriminators, rivals: Rivals) -> HardErrors:
    """Of all `pair_errors` those that L_reg compares: five for every pair, whatever the number of pairs.

    Args:
        items: of all pairs.
        discriminators: of unit features.
        rivals: the hardest negatives of every pair.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import ADDR, DomainFeatures
        >>> from xmodal.objectives.addr.errors import Rivals, hard_errors
        >>> words, regions, real = torch.eye(4)[None, :2], torch.eye(4)[None, 2:], torch.ones(1, 2, dtype=torch.bool)
        >>> addr = ADDR(dim=4)
        >>> items = addr.items(DomainFeatures(words, regions, real, real))
        >>> alone = hard_errors(items, addr.discriminators(items), Rivals.among(items, torch.ones(1, 1)))
        >>> bool(alone.own == alone.by_caption)  # a pair without negatives is its own rival
        True
    """
    weight, bias = discriminators
    asked = torch.stack([torch.arange(len(bias), device=bias.device), rivals.caption, rivals.image], dim=1)
    own, by_caption, by_image = _errors(items, weight[asked], bias[asked]).unbind(dim=1)
    on_caption, on_image = (
        _errors(others, weight[:, None], bias[:, None])[:, 0] for others in (rivals.of_caption, rivals.of_image)
    )
    return HardErrors(own, by_caption, on_caption, by_image, on_image)


def item_weights(
    word_mask: Bool[Tensor, "pair word"], region_mask: Bool[Tensor, "pair region"], balance: Balance, dtype: torch.dtype
) -> tuple[Float[Tensor, "pair word"], Float[Tensor, "pair region"]]:
    """How much every item counts in the error of its pair; padding does not.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr.errors import item_weights
        >>> words, regions = torch.tensor([[True, False]]), torch.tensor([[True, True]])
        >>> item_weights(words, regions, "class", torch.float32)
        (tensor([[0.5000, 0.0000]]), tensor([[0.2500, 0.2500]]))
    """
    check_choice("balance", balance, Balance)
    words, regions = word_mask.to(dtype), region_mask.to(dtype)
    if balance == "sum":
        return words, regions
    word_count, region_count = words.sum(dim=1, keepdim=True), regions.sum(dim=1, keepdim=True)
    if balance == "mean":
        return words / (word_count + region_count), regions / (word_count + region_count)
    return words / (2 * word_count), regions / (2 * region_count)


def hard_negatives(
    scores: Float[Tensor, "pair pair"], image: Int[Tensor, " pair"] | None = None
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """The hardest negatives of every pair: q has the caption that its image takes for its own, r the image.

    A pair without a negative is given itself. Pairs that a head left out, whose score is minus infinity, are none.

    Args:
        scores: every image (row) against every caption (column), matched pairs on the diagonal.
        image: image of every pair; captions of the same image are no negatives.

    Raises:
        ValueError: if scores are not square, or `image` is not one of every pair.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import hard_negatives
        >>> hard_negatives(torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.9, 0.3], [0.8, 0.0, 0.9]]))
        (tensor([1, 2, 0]), tensor([2, 0, 1]))
    """
    check_square("scores", scores)
    pair = torch.arange(len(scores), device=scores.device)
    image = pair if image is None else image
    check_shape("image", image, (len(scores),))
    negative = (image[:, None] != image[None, :]) & (scores != float("-inf"))
    scores = scores.detach().masked_fill(~negative, float("-inf"))

    def hardest(dim: int) -> Tensor:
        return torch.where(negative.any(dim=dim), scores.argmax(dim=dim), pair)

    return hardest(dim=1), hardest(dim=0)


def distinctness_loss(
    errors: Float[Tensor, "pair pair"],
    hard_caption: Int[Tensor, " pair"],
    hard_image: Int[Tensor, " pair"],
    *,
    margin: float = 0.1,
    form: RegForm = "symmetric",
) -> Float[Tensor, ""]:
    """L_reg (eq. 9): every discriminator fits its own pair better, by a margin, than that of a hard negative does.

    The mean over pairs p, with hard negatives q and r, of `m(p, q) + m(q, p) + m(p, r) + m(r, p)`, where
    `m(a, b) = max(0, margin + L_a(f_a) - L_a(f_b))`.

    Args:
        errors: L_p(f_q), as `pair_errors` gives it.
        hard_caption: q of every pair. A pair that is its own negative has none, and no term.
        hard_image: r of every pair.
        margin: alpha, in the unit of the errors. About 0.1 can be met in balanced units; 0.5 cannot.
        form: `symmetric`, or `literal` with m(q, p) in place of m(r, p), as the poster prints the second line.

    Raises:
        ValueError: for shapes that do not fit, an unknown form or a negative margin.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import distinctness_loss
        >>> other = torch.tensor([1, 0])
        >>> distinctness_loss(torch.tensor([[0.5, 0.7], [0.55, 0.5]]), other, other)  # 0.05 short in m(1, 0)
        tensor(0.1000)
    """
    check_number("margin", margin, least=0)
    check_choice("form", form, RegForm)
    check_square("errors", errors)
    check_shape("hard_caption", hard_caption, (len(errors),))
    check_shape("hard_image", hard_image, (len(errors),))
    pair, q, r = torch.arange(len(errors), device=errors.device), hard_caption, hard_image
    asked = HardErrors(errors.diag(), errors[pair, q], errors[q, pair], errors[pair, r], errors[r, pair])
    return distinctness(asked, q, r, margin=margin, form=form)


def distinctness(
    errors: HardErrors,
    hard_caption: Int[Tensor, " pair"],
    hard_image: Int[Tensor, " pair"],
    *,
    margin: float,
    form: RegForm,
) -> Float[Tensor, ""]:
    """`distinctness_loss` of the errors that it compares.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr.errors import HardErrors, distinctness
        >>> own, other, on_zero, on_one = torch.tensor([[0.5, 0.5], [1, 0], [0.7, 0.55], [0.55, 0.7]])
        >>> asked = HardErrors(own, on_zero, on_one, on_zero, on_one)
        >>> distinctness(asked, other.long(), other.long(), margin=0.1, form="symmetric")
        tensor(0.1000)
    """
    own, by_caption, on_caption, by_image, on_image = errors
    pair = torch.arange(len(own), device=own.device)

    def violation(own: Tensor, others: Tensor, rival: Tensor) -> Tensor:
        return (margin + own - others).clamp_min(0).masked_fill(rival == pair, 0)

    on_the_caption = violation(own[hard_caption], on_caption, hard_caption)
    last = violation(own[hard_image], on_image, hard_image) if form == "symmetric" else on_the_caption
    first = violation(own, by_caption, hard_caption) + violation(own, by_image, hard_image)
    return (first + on_the_caption + last).mean()


def _errors(
    items: Items, weight: Float[Tensor, "pair discriminator dim"], bias: Float[Tensor, "pair discriminator"]
) -> Float[Tensor, "pair discriminator"]:
    """Errors on pairs of the discriminators that each of them is given."""
    bias = bias + (weight @ items.center[..., None])[..., 0]
    logits = weight @ items.features.transpose(1, 2) + bias[..., None]  # on a CPU five times as fast as the transpose
    return (F.softplus(_wrongness(items.is_word, logits) * logits) @ items.share[..., None])[..., 0]


def _wrongness(is_word: Bool[Tensor, " item"], like: Tensor) -> Float[Tensor, " item"]:
    """The sign of a logit that is wrong about an item."""
    return torch.where(is_word, -1.0, 1.0).to(like)


def _chosen(items: Items, which: Int[Tensor, " pair"]) -> Items:
    """The items of some pairs, as errors need them."""
    features, center, share = (tensor[which] for tensor in (items.features, items.center, items.share))
    return items._replace(features=features, center=center, share=share)
