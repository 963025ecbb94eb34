"""Errors of discriminators on pairs, and what they say of pairs that should be told apart (ADDR, eq. 2 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional as F

from xmodal.numerics import check_number
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
        ValueError: for an unknown balance.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import pair_errors
        >>> real = torch.ones(2, 3, dtype=torch.bool)
        >>> words, regions = torch.ones(2, 3, 4), -torch.ones(2, 3, 4)
        >>> pair_errors(words, regions, real, real, torch.tensor([[0.5] * 4, [-0.5] * 4]), torch.zeros(2))
        tensor([[0.1269, 2.1269],
                [0.1269, 2.1269]])
    """
    share = torch.cat(item_weights(word_mask, region_mask, balance, words.dtype), dim=1)
    logits = torch.cat([words @ weight.T, regions @ weight.T], dim=1) + bias
    is_word = torch.arange(logits.shape[1], device=logits.device) < words.shape[1]
    return _errors_from_logits(logits, is_word, share)


def centered_errors(items: Items, discriminators: Discriminators) -> Float[Tensor, "pair pair"]:
    """`pair_errors` of items that are seen from their pair's center, by discriminators of unit features.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import ADDR, DomainFeatures
        >>> from xmodal.objectives.addr.errors import centered_errors
        >>> words, regions, real = torch.eye(4)[None, :2], torch.eye(4)[None, 2:], torch.ones(1, 2, dtype=torch.bool)
        >>> addr = ADDR(dim=4)
        >>> items = addr.items(DomainFeatures(words, regions, real, real))
        >>> centered_errors(items, addr.discriminators(items)).shape
        torch.Size([1, 1])
    """
    weight, bias = discriminators
    logits = items.features @ weight.T + (items.center @ weight.T + bias)[:, None]
    return _errors_from_logits(logits, items.is_word, items.share)


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

    A pair without a negative is given itself.

    Args:
        scores: every image (row) against every caption (column), matched pairs on the diagonal.
        image: image of every pair; captions of the same image are no negatives.

    Raises:
        ValueError: if scores are not square.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import hard_negatives
        >>> hard_negatives(torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.9, 0.3], [0.8, 0.0, 0.9]]))
        (tensor([1, 2, 0]), tensor([2, 0, 1]))
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"scores must be (pair, pair) with matched pairs on the diagonal, got {tuple(scores.shape)}")
    pair = torch.arange(len(scores), device=scores.device)
    image = pair if image is None else image
    negative = image[:, None] != image[None, :]
    scores = scores.detach().masked_fill(~negative, float("-inf"))
    alone = ~negative.any(dim=1)
    return torch.where(alone, pair, scores.argmax(dim=1)), torch.where(alone, pair, scores.argmax(dim=0))


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
        ValueError: for an unknown form or a negative margin.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import distinctness_loss
        >>> other = torch.tensor([1, 0])
        >>> distinctness_loss(torch.tensor([[0.5, 0.7], [0.55, 0.5]]), other, other)  # 0.05 short in m(1, 0)
        tensor(0.1000)
    """
    check_number("margin", margin, least=0)
    check_choice("form", form, RegForm)
    pair, q, r = torch.arange(len(errors), device=errors.device), hard_caption, hard_image

    def violation(a: Tensor, b: Tensor) -> Tensor:
        return (margin + errors[a, a] - errors[a, b]).clamp_min(0).masked_fill(a == b, 0)

    last = violation(r, pair) if form == "symmetric" else violation(q, pair)
    return (violation(pair, q) + violation(q, pair) + violation(pair, r) + last).mean()


def _errors_from_logits(
    logits: Float[Tensor, "pair item discriminator"], is_word: Bool[Tensor, " item"], share: Float[Tensor, "pair item"]
) -> Float[Tensor, "pair discriminator"]:
    errors = F.softplus(torch.where(is_word, -1.0, 1.0).to(logits)[:, None] * logits)
    return (share[:, None] @ errors)[:, 0]  # a product of a row and a matrix a pair
