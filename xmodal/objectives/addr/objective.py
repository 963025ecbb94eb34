"""ADDR's two players: the terms that discriminators and encoders minimize in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from xmodal.numerics import (
    NotNegative,
    Positive,
    Size,
    Steps,
    at_least_float32,
    check_count,
    divisors,
    full_mask,
    may_pad,
    normalize,
    without_padding,
)
from xmodal.objectives.addr.base import DomainObjective, Learn, Reduction, check_not_negative
from xmodal.objectives.addr.batch import Discriminators, DomainFeatures, Items, check_features
from xmodal.objectives.addr.errors import (
    Balance,
    RegForm,
    Rivals,
    distinctness,
    distinctness_loss,
    hard_errors,
    hard_negatives,
    item_weights,
    pair_errors,
)
from xmodal.objectives.addr.forms import build_form
from xmodal.objectives.checks import check_matched, check_shape
from xmodal.objectives.choices import check_choice

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.objectives.addr.errors import HardErrors


SHORTEST = 1e-8
"""Items that are shorter are divided by this instead of by their length."""

Through = Literal["both", "words", "regions"]

EncoderLoss = Literal["saturating", "non_saturating", "confusion"]


class ADDR(DomainObjective):
    """The discriminators, and the terms that they and the encoders minimize in turn.

    Features of any length and dtype enter; they are L2-normalized here, in at least float32. Forms that keep
    something of a pair (`amortized`, `table`) learn L_reg by their optimizer. Forms that fit a pair anew take, after
    the fit, one gradient step on L_reg in every pair's own weights, and `fast_weights` also learns its start from it,
    through all K steps (to first order through the step on L_reg).

    Args:
        dim: dim of the features.
        form: `fast_weights`, `ridge`, `amortized` or `table`, or `shared`, a control of ours; see `FORMS`.
        alpha: margin of L_reg.
        beta: weight of the error that the encoders maximize. 0 leaves them alone: the baseline, bit for bit.
        beta_warmup_steps: optimizer steps over which the weight grows linearly from 0 to beta; 0 starts at beta.
        beta_hold_steps: steps at beta between the warm-up and the decay.
        beta_decay_steps: steps over which the weight falls linearly from beta to 0, where it stays and the
            discriminators rest; 0 keeps it at beta for good.
        lambda_reg: weight of L_reg among what the discriminators minimize; 0 for none.
        reg_form: `symmetric` or `literal`; see `distinctness_loss`.
        balance: `class`, `mean` or `sum`; see `pair_errors`.
        center: measure a pair's features from the midpoint of its mean word and its mean region before fitting its
            discriminator. Without it the steps of `fast_weights` can diverge.
        encoder_loss: what the encoders minimize of the discriminators' judgment. `saturating`, the paper's: minus the
            error, whose gradient vanishes where a discriminator is sure. Ours: `non_saturating`, the error with words
            and regions exchanged (Goodfellow et al., 2014), and `confusion`, the mean of the two errors, which is least
            where a discriminator cannot tell (Tzeng et al., ICCV 2015).
        encoder_reg: weight of L_reg among what the encoders minimize, the discriminators being fixed; ours, and 0, for
            none, in the paper. It comes and goes as beta does.
        through: `both`, or the only side that the encoders' gradient reaches, `words` or `regions`.
        reduction: `sum` over the pairs, beside a ranking loss that sums, as published; `mean` beside one that averages.
        steps: of `fast_weights`.
        rate: of the steps of `fast_weights`, and, times `lambda_reg`, of the step on L_reg. Where words and regions
            lie far apart a lower rate keeps the error, and with it the encoders' gradient, from vanishing.
        ridge: of `ridge`.
        hidden: of `amortized`.
        pairs: of `table`: pairs in the training set.

    Raises:
        ValueError: for an option that is unknown or out of range.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import ADDR, DomainFeatures
        >>> words, regions = torch.randn(4, 12, 64, requires_grad=True), torch.randn(4, 36, 64)
        >>> real = torch.ones(4, 36, dtype=torch.bool)
        >>> features = DomainFeatures(words, regions, real[:, :12], real)
        >>> addr, scores = ADDR(dim=64), torch.randn(4, 4)
        >>> items = addr.items(features)
        >>> discriminators = addr.discriminators(items, scores)
        >>> addr.discriminator_terms(items, scores, discriminators)["total"].backward()  # and their optimizer's step
        >>> addr.encoder_terms(features, discriminators)["total"].backward()  # beside the ranking loss
    """

    log_name = "addr"

    def __init__(
        self,
        dim: Size,
        form: str = "fast_weights",
        alpha: NotNegative = 0.1,
        beta: NotNegative = 1.0,
        beta_warmup_steps: Steps = 0,
        beta_hold_steps: Steps = 0,
        beta_decay_steps: Steps = 0,
        lambda_reg: NotNegative = 0.3,
        reg_form: RegForm = "symmetric",
        balance: Balance = "class",
        center: bool = True,
        encoder_loss: EncoderLoss = "saturating",
        encoder_reg: NotNegative = 0.0,
        through: Through = "both",
        reduction: Reduction = "sum",
        steps: Size = 5,
        rate: NotNegative = 10.0,
        ridge: Positive = 0.1,
        hidden: Size = 128,
        pairs: Size | None = None,
    ) -> None:
        super().__init__(beta, beta_warmup_steps, beta_hold_steps, beta_decay_steps, reduction)
        check_choice("reg_form", reg_form, RegForm)
        check_choice("balance", balance, Balance)
        check_choice("encoder_loss", encoder_loss, EncoderLoss)
        check_choice("through", through, Through)
        check_not_negative(alpha=alpha, lambda_reg=lambda_reg, encoder_reg=encoder_reg, rate=rate)
        check_count("dim", dim)
        self.form = build_form(form, dim, steps=steps, rate=rate, ridge=ridge, hidden=hidden, pairs=pairs)
        self.sparse = bool(self.form.sparse)
        self.alpha = alpha
        self.lambda_reg = lambda_reg
        self.reg_form: RegForm = reg_form
        self.balance: Balance = balance
        self.center = center
        self.encoder_loss: EncoderLoss = encoder_loss
        self.encoder_reg = encoder_reg
        self.through: Through = through
        self.rate = rate

    def forward(
        self,
        features: DomainFeatures,
        scores: Float[Tensor, "pair pair"],
        step: int | None = None,
        learn: Learn | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """The discriminators take a step, then they say what the encoders are to minimize.

        To the `encoder_terms` this adds, from before that step, `reg` and `discriminator`, what the discriminators
        minimize. Without `learn` their parameters stay as they are.
        """
        items = self.items(features)
        rivals = Rivals.among(items, scores)
        discriminators = self._fitted(items, rivals)
        own = self._own_terms(items, rivals, discriminators)
        if learn is not None:
            learn(own["total"])
        if not self.form.fits_anew:
            discriminators = self._fitted(items, rivals)
        terms = self.encoder_terms(features, discriminators, scores, step=step)
        return {**terms, "reg": own["reg"].detach(), "discriminator": own["total"].detach()}

    def items(self, features: DomainFeatures) -> Items:
        """What the discriminators see of a batch."""
        check_features(features)
        words, regions, word_mask, region_mask = features[:4]
        with torch.no_grad(), _full_precision(features):
            # Written once and then changed in place: these are the largest tensors here.
            joined = torch.cat([at_least_float32(words), at_least_float32(regions)], dim=1)
            for part, real in zip(joined.split([words.shape[1], regions.shape[1]], dim=1), features[2:4], strict=True):
                _blank_padding(part, real)
            mask = torch.cat([word_mask, region_mask], dim=1)
            joined *= (mask / _length(joined))[..., None]
            weight = torch.cat(item_weights(word_mask, region_mask, "class", joined.dtype), dim=1)
            share = torch.cat(item_weights(word_mask, region_mask, self.balance, joined.dtype), dim=1)
            center = (weight[:, None] @ joined)[:, 0]
            if self.center:
                joined -= center[:, None]
            else:
                center = torch.zeros_like(center)
            is_word = torch.arange(joined.shape[1], device=joined.device) < words.shape[1]
            return Items(joined, center, is_word, weight, share, features.image, features.pair)

    def discriminators(self, items: Items, scores: Float[Tensor, "pair pair"] | None = None) -> Discriminators:
        """The discriminators of a batch, for unit features.

        Without scores there are no hard negatives, and no step on L_reg.
        """
        rivals = None if scores is None or not self._sets_apart else Rivals.among(items, scores)
        return self._fitted(items, rivals)

    @property
    def _sets_apart(self) -> bool:
        """Whether pairs take a step on L_reg in their own weights."""
        return bool(self.lambda_reg and self.form.fits_anew)

    def _fitted(self, items: Items, rivals: Rivals | None) -> Discriminators:
        with _full_precision(items):
            fitted = self.form(items)
            if rivals is not None and self._sets_apart:
                fitted = self._set_apart(fitted, items, rivals)
            return _uncentered(fitted, items)

    def _set_apart(self, fitted: Discriminators, items: Items, rivals: Rivals) -> Discriminators:
        """One gradient step on L_reg in the weights of every pair."""
        with torch.enable_grad():
            leaves = Discriminators(*(tensor.detach().requires_grad_() for tensor in fitted))
            reg = self._reg(hard_errors(items, _uncentered(leaves, items), rivals), rivals)
            weight_slope, bias_slope = torch.autograd.grad(len(items.share) * self.lambda_reg * reg, leaves)
        # The mean over the terms of those pairs in which a discriminator takes part: early in training one caption is
        # the hardest negative of nearly every image, and the sum would throw its discriminator far off.
        hardest = torch.cat([rivals.caption, rivals.image])
        one = items.share.new_ones(len(hardest))
        parts = one[: len(items.share)].index_add(0, hardest, one)  # bincount would wait for a GPU
        items_per_pair = items.share.sum(dim=1).mean()
        rate = self.rate / (parts * items_per_pair)  # of the same length whether errors are sums or means over items
        return Discriminators(fitted.weight - rate[:, None] * weight_slope, fitted.bias - rate * bias_slope)

    def discriminator_terms(
        self, items: Items, scores: Float[Tensor, "pair pair"], discriminators: Discriminators
    ) -> dict[str, Float[Tensor, ""]]:
        """What the discriminators' parameters minimize: `total` = `adv` + lambda * `reg`.

        `adv` is the mean over pairs of L_p(f_p), `reg` is L_reg.
        """
        return self._own_terms(items, Rivals.among(items, scores), discriminators)

    def _own_terms(self, items: Items, rivals: Rivals, discriminators: Discriminators) -> dict[str, Float[Tensor, ""]]:
        with _full_precision(items):
            errors = hard_errors(items, discriminators, rivals)
            adv, reg = errors.own.mean(), self._reg(errors, rivals)
            return {"adv": adv, "reg": reg, "total": adv + self.lambda_reg * reg}

    def encoder_terms(
        self,
        features: DomainFeatures,
        discriminators: Discriminators,
        scores: Float[Tensor, "pair pair"] | None = None,
        *,
        step: int | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """What the encoders minimize at an optimizer step (0-based), the discriminators being fixed.

        Without a `step` the warm-up of beta is over, and its decay has not begun.

        `total` is beta(step) times the `encoder_loss`, summed or averaged over the pairs. As published that is minus
        L_p(f_p): with the discriminators at their minimum that is the gradient through them as well (envelope theorem).
        `adv` is the mean of L_p(f_p), whatever the reduction; `accuracy` is the share of words and of regions,
        averaged, on the right side of their pair's discriminator. With `encoder_reg`, which needs the scores, L_reg is
        part of the total, and is given as `encoder_reg`.
        """
        check_features(features)
        check_shape("weight", discriminators.weight, tuple(features.words.shape[::2]))
        check_shape("bias", discriminators.bias, tuple(features.words.shape[:1]))
        scale = self.scale_at(step)
        beta, reg_weight = self.beta * scale, self.encoder_reg * scale
        words, regions, word_mask, region_mask = features[:4]
        has_effect = beta or reg_weight
        words = words if has_effect and self.through != "regions" else words.detach()
        regions = regions if has_effect and self.through != "words" else regions.detach()
        features = features._replace(words=words, regions=regions)
        with _full_precision(features):
            fixed = Discriminators(*(tensor.detach() for tensor in discriminators))
            sides = (words, word_mask), (regions, region_mask)
            word_logits, region_logits = (_unit_logits(side, mask, *fixed) for side, mask in sides)

            def weighted(of_words: Tensor, of_regions: Tensor, balance: Balance) -> Tensor:
                word_weight, region_weight = item_weights(word_mask, region_mask, balance, of_words.dtype)
                return (word_weight * of_words).sum() + (region_weight * of_regions).sum()

            error = weighted(F.softplus(-word_logits), F.softplus(region_logits), self.balance)
            right = weighted((word_logits > 0).to(error), (region_logits <= 0).to(error), "class")
            loss = -error
            if self.encoder_loss != "saturating":
                exchanged = weighted(F.softplus(word_logits), F.softplus(-region_logits), self.balance)
                loss = exchanged if self.encoder_loss == "non_saturating" else (error + exchanged) / 2
            divisor = 1 if self.reduction == "sum" else len(words)
            terms = {
                "adv": error.detach() / len(words),
                "accuracy": right / len(words),
                "beta": torch.full_like(right, beta),
                "total": beta * (loss / divisor),
            }
            if self.encoder_reg:
                reg = self._encoder_reg(features, fixed, scores)
                terms["total"] = terms["total"] + reg_weight * reg * (len(words) / divisor)
                terms["encoder_reg"] = reg.detach()
            return terms

    def _encoder_reg(
        self, features: DomainFeatures, discriminators: Discriminators, scores: Float[Tensor, "pair pair"] | None
    ) -> Float[Tensor, ""]:
        """L_reg as the encoders see it."""
        if scores is None:
            raise ValueError("encoder_reg needs the scores, from which L_reg takes the hard negatives")
        masks = features.word_mask, features.region_mask
        sides = (without_padding(at_least_float32(side), mask) for side, mask in zip(features[:2], masks, strict=True))
        words, regions = (normalize(side, floor=SHORTEST) for side in sides)
        errors = pair_errors(words, regions, *masks, *discriminators, balance=self.balance)
        hard = hard_negatives(scores, features.image)
        return distinctness_loss(errors, *hard, margin=self.alpha, form=self.reg_form)

    def _reg(self, errors: HardErrors, rivals: Rivals) -> Float[Tensor, ""]:
        return distinctness(errors, rivals.caption, rivals.image, margin=self.alpha, form=self.reg_form)


def addr_loss(
    words: Float[Tensor, "pair word dim"],
    regions: Float[Tensor, "pair region dim"],
    word_mask: Bool[Tensor, "pair word"] | None = None,
    region_mask: Bool[Tensor, "pair region"] | None = None,
    scores: Float[Tensor, "pair pair"] | None = None,
    *,
    beta: float = 1.0,
    form: Literal["fast_weights", "ridge"] = "fast_weights",
    **options,
) -> dict[str, Float[Tensor, ""]]:
    """ADDR in one line beside any ranking loss, with discriminators that keep nothing from batch to batch.

    The start of `fast_weights` is zero here; `ADDR` learns it.

    Args:
        words: word features of matched pairs, of any length.
        regions: region features in the same space.
        word_mask: True = real word; None means that all are real.
        region_mask: True = real region; None means that all are real.
        scores: every image against every caption, from which L_reg takes the hard negatives; None leaves L_reg out.
        beta: weight of the error.
        form: a form without memory.
        **options: as for `ADDR`.

    Returns:
        `total`, to be added to the ranking loss, `adv`, `accuracy` and `beta`; see `ADDR.encoder_terms`.

    Raises:
        ValueError: for shapes or masks that do not fit, a pair without a real word or region or an unknown option.

    Example:
        >>> import torch
        >>> from xmodal.objectives import addr_loss
        >>> words, regions = torch.randn(4, 12, 64), torch.randn(4, 36, 64)
        >>> terms = addr_loss(words, regions, scores=torch.randn(4, 4), beta=0.2)
        >>> bool(torch.isclose(terms["total"], -0.2 * 4 * terms["adv"]))
        True
    """
    if form not in ("fast_weights", "ridge"):
        raise ValueError(f"form must be fast_weights or ridge, got {form!r}; ADDR has the forms that learn")
    check_matched(words, regions, word_mask, region_mask, look=True)
    word_mask, region_mask = full_mask(words, word_mask), full_mask(regions, region_mask)
    addr = ADDR(words.shape[-1], form, beta=beta, **options)
    addr.to(words.device, torch.promote_types(words.dtype, torch.float32))
    features = DomainFeatures(words, regions, word_mask, region_mask)
    return addr.encoder_terms(features, addr.discriminators(addr.items(features), scores), scores)


def _unit_logits(
    items: Float[Tensor, "pair item dim"],
    mask: Bool[Tensor, "pair item"],
    weight: Float[Tensor, "pair dim"],
    bias: Float[Tensor, " pair"],
) -> Float[Tensor, "pair item"]:
    """Logits of every pair's discriminator on its own items; these are divided by their lengths, not the items.

    Padding is given the bias, whatever it holds.
    """
    return _Projections.apply(at_least_float32(items), mask, weight) + bias[:, None]  # type: ignore[no-any-return]


class _Projections(torch.autograd.Function):
    """Products of a pair's items, each divided by its length, with a fixed vector of the pair; zero for padding.

    Items are the largest tensors here: their gradient is written once, where autograd would write a part of it for the
    product and one for the lengths, and another for their sum.
    """

    @staticmethod
    def forward(ctx: Any, items: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        length = _length(items)
        projections = ((weight[:, None] @ items.transpose(1, 2))[:, 0] / length).masked_fill(~mask, 0.0)
        ctx.save_for_backward(items, mask, weight, length, projections)
        return projections

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        items, mask, weight, length, projections = ctx.saved_tensors
        scaled = gradient / length
        # A length that is held from below does not depend on the item.
        radial = torch.where(length > SHORTEST, scaled * projections / length, 0.0)
        slopes = scaled[..., None] * weight[:, None]
        return _blank_padding(slopes.addcmul_(radial[..., None], items, value=-1), mask), None, None


def _length(items: Float[Tensor, "pair item dim"]) -> Float[Tensor, "pair item"]:
    return divisors(torch.linalg.vector_norm(items, dim=-1), floor=SHORTEST)


def _blank_padding(items: Tensor, mask: Tensor) -> Tensor:
    """`without_padding`, in place."""
    return items.masked_fill_(~mask[..., None], 0.0) if may_pad(mask) else items


def _uncentered(centered: Discriminators, items: Items) -> Discriminators:
    """For the features themselves, what is for features seen from their pair's center."""
    return Discriminators(centered.weight, centered.bias - (centered.weight * items.center).sum(dim=1))


def _full_precision(inputs: DomainFeatures | Items) -> torch.autocast:
    return torch.autocast(inputs[0].device.type, enabled=False)
