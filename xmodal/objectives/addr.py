"""ADDR: adversarial, discriminative domain regularization (Ren et al., ICPR 2020, arXiv 2010.12126).

Each matched pair p of a batch has a linear discriminator f_p = (W_p, b_p) of its own that tells the pair's words from
its regions. L_p(f_q), the error of q's discriminator on the items of p, is a binary cross entropy, at least 0:

    discriminators minimize  mean_p L_p(f_p) + lambda * L_reg      each f_p fits its own pair better than its negatives
    encoders       minimize  ranking loss - beta * sum_p L_p(f_p)   nothing tells the words of a pair from its regions

No code was released, and neither the form of the discriminators nor alpha, beta, lambda or the schedule is published:
the defaults here are ours. As printed, eq. 2 is a log likelihood whose minimum has no bound; the error is the one
reading that agrees with eq. 3 and 9. At inference nothing of this remains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.objectives.precision import at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Balance = Literal["class", "mean", "sum"]
RegForm = Literal["symmetric", "literal"]
Through = Literal["both", "words", "regions"]
Reduction = Literal["sum", "mean"]


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


# Errors -------------------------------------------------------------------------------------------------------------


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
    share = torch.cat(_item_weights(word_mask, region_mask, balance, words.dtype), dim=1)
    logits = torch.cat([words @ weight.T, regions @ weight.T], dim=1) + bias
    is_word = torch.arange(logits.shape[1], device=logits.device) < words.shape[1]
    return _errors_from_logits(logits, is_word, share)


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
        ValueError: for an unknown form.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import distinctness_loss
        >>> other = torch.tensor([1, 0])
        >>> distinctness_loss(torch.tensor([[0.5, 0.7], [0.55, 0.5]]), other, other)  # 0.05 short in m(1, 0)
        tensor(0.1000)
    """
    _check_choice("form", form, RegForm)
    pair, q, r = torch.arange(len(errors), device=errors.device), hard_caption, hard_image

    def violation(a: Tensor, b: Tensor) -> Tensor:
        return (margin + errors[a, a] - errors[a, b]).clamp_min(0).masked_fill(a == b, 0)

    last = violation(r, pair) if form == "symmetric" else violation(q, pair)
    return (violation(pair, q) + violation(q, pair) + violation(pair, r) + last).mean()


# Forms of the discriminators ------------------------------------------------------------------------------------------


class FastWeights(nn.Module):
    """K gradient steps on a pair's own error from a start that all pairs share and that is learned.

    The steps stay in the span of the pair's items, so they are done there: with W = W_0 + sum_i a_i x_i a step needs
    the Gram matrix of the items only. Few steps are what limits the capacity: with more dimensions than items every
    pair can be separated without an error, and the encoders would get no gradient.

    Args:
        dim: dim of the features.
        steps: K.
        rate: length of a step, for unit features and item weights that sum to one.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import ADDR, DomainFeatures, FastWeights
        >>> words, regions, real = torch.eye(4)[None, :2], torch.eye(4)[None, 2:], torch.ones(1, 2, dtype=torch.bool)
        >>> items = ADDR(dim=4).items(DomainFeatures(words, regions, real, real))
        >>> found = FastWeights(dim=4, steps=1)(items)
        >>> ((items.features @ found.weight.T).squeeze() + found.bias).detach()  # words, then regions
        tensor([ 1.2500,  1.2500, -1.2500, -1.2500])
    """

    fits_anew = True

    def __init__(self, dim: int, steps: int = 5, rate: float = 10.0) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.steps = steps
        self.rate = rate
        self.start = nn.Parameter(torch.zeros(dim))
        self.start_bias = nn.Parameter(torch.zeros(()))

    def forward(self, items: Items) -> Discriminators:
        """Differentiable in the start, through all steps."""
        kernel = items.features @ items.features.transpose(1, 2) + 1  # the 1 is the bias
        start = items.features @ self.start + self.start_bias
        dual = torch.zeros_like(start)
        for _ in range(self.steps):
            logits = start + (kernel @ dual[..., None])[..., 0]
            dual = dual - self.rate * items.weight * (logits.sigmoid() - items.is_word.to(logits))
        return _from_dual(dual, items, self.start, self.start_bias)


class Ridge(nn.Module):
    """Weighted ridge regression to +1 for words and -1 for regions, in closed form; no parameters.

    Args:
        dim: dim of the features.
        ridge: penalty on the squared norm of weight and bias, beside squared errors whose weights sum to one. It
            limits the capacity.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import ADDR, DomainFeatures, Ridge
        >>> words, regions, real = torch.eye(4)[None, :2], torch.eye(4)[None, 2:], torch.ones(1, 2, dtype=torch.bool)
        >>> items = ADDR(dim=4).items(DomainFeatures(words, regions, real, real))
        >>> found = Ridge(dim=4, ridge=0.25)(items)
        >>> (items.features @ found.weight.T).squeeze() + found.bias  # words, then regions
        tensor([ 0.5000,  0.5000, -0.5000, -0.5000])
    """

    fits_anew = True

    def __init__(self, dim: int, ridge: float = 0.1) -> None:
        super().__init__()
        if not ridge > 0:
            raise ValueError(f"ridge must be positive, got {ridge}")
        self.ridge = ridge

    def forward(self, items: Items) -> Discriminators:
        """Solved in the dual: one small symmetric system a pair."""
        root = items.weight.sqrt()  # zero for padding, whose rows of the system become those of the identity
        kernel = root[:, :, None] * (items.features @ items.features.transpose(1, 2) + 1) * root[:, None, :]
        target = root * torch.where(items.is_word, 1.0, -1.0).to(root)
        system = kernel + self.ridge * torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device)
        solution = torch.cholesky_solve(target[..., None], torch.linalg.cholesky(system))[..., 0]
        return _from_dual(root * solution, items)


class Amortized(nn.Module):
    """A small network maps a pair, as the means of its words and of its regions, to its discriminator.

    It never sees single items and has few hidden units, which limits the capacity. It starts at zero weights. Its
    initialization has a generator of its own.

    Args:
        dim: dim of the features.
        hidden: hidden units.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import ADDR, Amortized, DomainFeatures
        >>> words, regions, real = torch.eye(4)[None, :2], torch.eye(4)[None, 2:], torch.ones(1, 2, dtype=torch.bool)
        >>> items = ADDR(dim=4).items(DomainFeatures(words, regions, real, real))
        >>> found = Amortized(dim=4, hidden=8)(items)  # untrained
        >>> found.weight.tolist(), found.bias.tolist()
        ([[0.0, 0.0, 0.0, 0.0]], [0.0])
    """

    fits_anew = False

    def __init__(self, dim: int, hidden: int = 128) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        generator = torch.Generator().manual_seed(0)
        self.read = nn.Parameter(torch.randn(hidden, 2 * dim, generator=generator))  # means have norms of at most 1
        self.read_bias = nn.Parameter(torch.zeros(hidden))
        self.write = nn.Parameter(torch.zeros(dim + 1, hidden))
        self.write_bias = nn.Parameter(torch.zeros(dim + 1))

    def forward(self, items: Items) -> Discriminators:
        """Differentiable in the network's parameters."""
        means = torch.cat([_mean(items, of) for of in (items.is_word, ~items.is_word)], dim=1)
        hidden = F.gelu(F.linear(means, self.read, self.read_bias))
        output = F.linear(hidden, self.write, self.write_bias)
        return Discriminators(output[:, :-1], output[:, -1])


class Table(nn.Module):
    """Weights and bias of every pair of the training set in one row of a table: the poster, to the letter.

    Every row gets one update an epoch, of the sparse kind, so that its optimizer must be told (`SparseAdam`); 145,000
    pairs in 1024 dimensions take 0.6 GB, three times that with Adam's state.

    Args:
        dim: dim of the features.
        pairs: pairs of the training set.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import ADDR, DomainFeatures, Table
        >>> words, regions, real = torch.eye(4)[None, :2], torch.eye(4)[None, 2:], torch.ones(1, 2, dtype=torch.bool)
        >>> items = ADDR(dim=4).items(DomainFeatures(words, regions, real, real, pair=torch.tensor([7])))
        >>> table = Table(dim=4, pairs=100)
        >>> table(items).weight.shape, table.rows.weight.shape
        (torch.Size([1, 4]), torch.Size([100, 5]))
    """

    fits_anew = False

    def __init__(self, dim: int, pairs: int) -> None:
        super().__init__()
        self.rows = nn.Embedding.from_pretrained(torch.zeros(pairs, dim + 1), freeze=False, sparse=True)

    def forward(self, items: Items) -> Discriminators:
        """Differentiable in the rows of these pairs."""
        if items.pair is None:
            raise ValueError("the table form needs the features' `pair`: where every pair is in the training set")
        rows = self.rows(items.pair)
        return Discriminators(rows[:, :-1], rows[:, -1])


FORMS: dict[str, type[nn.Module]] = {
    "fast_weights": FastWeights,
    "ridge": Ridge,
    "amortized": Amortized,
    "table": Table,
}
"""Forms of the discriminators: Modules that take `Items` and give `Discriminators` of the centered features.

`fits_anew` says whether a form starts over with every batch or keeps what it learned of a pair.
"""


# The regularizer ------------------------------------------------------------------------------------------------------


class ADDR(nn.Module):
    """The discriminators, and the terms that they and the encoders minimize in turn.

    Features of any length and dtype enter; they are L2-normalized here, in at least float32. Forms that keep
    something of a pair (`amortized`, `table`) learn L_reg by their optimizer. Forms that fit a pair anew take, after
    the fit, one gradient step on L_reg in every pair's own weights, and `fast_weights` also learns its start from it,
    through all K steps (to first order through the step on L_reg).

    Args:
        dim: dim of the features.
        form: `fast_weights`, `ridge`, `amortized` or `table`; see `FORMS`.
        alpha: margin of L_reg.
        beta: weight of the error that the encoders maximize. 0 leaves them alone: the baseline, bit for bit.
        beta_warmup_steps: optimizer steps over which the weight grows linearly from 0 to beta.
        lambda_reg: weight of L_reg among what the discriminators minimize; 0 for none.
        reg_form: `symmetric` or `literal`; see `distinctness_loss`.
        balance: `class`, `mean` or `sum`; see `pair_errors`.
        center: measure a pair's features from the midpoint of its mean word and its mean region before fitting its
            discriminator. Without it the steps of `fast_weights` can diverge.
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
        >>> addr.encoder_terms(features, discriminators, step=0)["total"].backward()  # beside the ranking loss
    """

    def __init__(
        self,
        dim: int,
        form: str = "fast_weights",
        alpha: float = 0.1,
        beta: float = 1.0,
        beta_warmup_steps: int = 0,
        lambda_reg: float = 0.3,
        reg_form: RegForm = "symmetric",
        balance: Balance = "class",
        center: bool = True,
        through: Through = "both",
        reduction: Reduction = "sum",
        steps: int = 5,
        rate: float = 10.0,
        ridge: float = 0.1,
        hidden: int = 128,
        pairs: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("reg_form", reg_form, RegForm),
            ("balance", balance, Balance),
            ("through", through, Through),
            ("reduction", reduction, Reduction),
        ):
            _check_choice(name, value, known)
        for name, value in (("alpha", alpha), ("beta", beta), ("lambda_reg", lambda_reg), ("rate", rate)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}")
        if form == "table" and pairs is None:
            raise ValueError("the table form needs `pairs`, the number of pairs in the training set")
        options = {
            "fast_weights": {"steps": steps, "rate": rate},
            "ridge": {"ridge": ridge},
            "amortized": {"hidden": hidden},
            "table": {"pairs": pairs},
        }
        self.form = FORMS[form](dim, **options[form])
        self.alpha = alpha
        self.beta = beta
        self.beta_warmup_steps = beta_warmup_steps
        self.lambda_reg = lambda_reg
        self.reg_form: RegForm = reg_form
        self.balance: Balance = balance
        self.center = center
        self.through: Through = through
        self.reduction: Reduction = reduction
        self.rate = rate

    def items(self, features: DomainFeatures) -> Items:
        """What the discriminators see of a batch."""
        words, regions, word_mask, region_mask = features[:4]
        with torch.no_grad(), _full_precision(features):
            # Written once and then changed in place: these are the largest tensors here.
            joined = torch.cat([at_least_float32(words), at_least_float32(regions)], dim=1)
            mask = torch.cat([word_mask, region_mask], dim=1)
            joined *= (mask / _length(joined))[..., None]
            weight = torch.cat(_item_weights(word_mask, region_mask, "class", joined.dtype), dim=1)
            share = torch.cat(_item_weights(word_mask, region_mask, self.balance, joined.dtype), dim=1)
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
        with _full_precision(items):
            fitted = self.form(items)
            if scores is not None and self.lambda_reg and self.form.fits_anew:
                fitted = self._set_apart(fitted, items, scores)
            return _uncentered(fitted, items)

    def _set_apart(self, fitted: Discriminators, items: Items, scores: Float[Tensor, "pair pair"]) -> Discriminators:
        """One gradient step on L_reg in the weights of every pair."""
        with torch.enable_grad():
            leaves = Discriminators(*(tensor.detach().requires_grad_() for tensor in fitted))
            reg = self._reg(_errors(items, _uncentered(leaves, items)), items, scores)
            weight_slope, bias_slope = torch.autograd.grad(len(scores) * self.lambda_reg * reg, leaves)
        # The mean over the terms of those pairs in which a discriminator takes part: early in training one caption is
        # the hardest negative of nearly every image, and the sum would throw its discriminator far off.
        parts = 1 + torch.cat(hard_negatives(scores, items.image)).bincount(minlength=len(scores))
        items_per_pair = items.share.sum(dim=1).mean()
        rate = self.rate / (parts * items_per_pair)  # of the same length whether errors are sums or means over items
        return Discriminators(fitted.weight - rate[:, None] * weight_slope, fitted.bias - rate * bias_slope)

    def discriminator_terms(
        self, items: Items, scores: Float[Tensor, "pair pair"], discriminators: Discriminators
    ) -> dict[str, Float[Tensor, ""]]:
        """What the discriminators' parameters minimize: `total` = `adv` + lambda * `reg`.

        `adv` is the mean over pairs of L_p(f_p), `reg` is L_reg.
        """
        with _full_precision(items):
            errors = _errors(items, discriminators)
            adv, reg = errors.diag().mean(), self._reg(errors, items, scores)
            return {"adv": adv, "reg": reg, "total": adv + self.lambda_reg * reg}

    def encoder_terms(
        self, features: DomainFeatures, discriminators: Discriminators, *, step: int
    ) -> dict[str, Float[Tensor, ""]]:
        """What the encoders minimize at an optimizer step (0-based), the discriminators being fixed.

        `total` is -beta(step) times the sum or mean over pairs of L_p(f_p): with the discriminators at their minimum
        that is the gradient through them as well (envelope theorem). `adv` is the mean, whatever the reduction;
        `accuracy` is the share of words and of regions, averaged, on the right side of their pair's discriminator.
        """
        beta = self.beta * (min(1.0, step / self.beta_warmup_steps) if self.beta_warmup_steps else 1.0)
        words, regions, word_mask, region_mask = features[:4]
        words = words if beta and self.through != "regions" else words.detach()
        regions = regions if beta and self.through != "words" else regions.detach()
        with _full_precision(features):
            weight, bias = (tensor.detach() for tensor in discriminators)
            word_logits, region_logits = (_unit_logits(side, weight, bias) for side in (words, regions))

            def weighted(of_words: Tensor, of_regions: Tensor, balance: Balance) -> Tensor:
                word_weight, region_weight = _item_weights(word_mask, region_mask, balance, of_words.dtype)
                return (word_weight * of_words).sum() + (region_weight * of_regions).sum()

            error = weighted(F.softplus(-word_logits), F.softplus(region_logits), self.balance)
            right = weighted((word_logits > 0).to(error), (region_logits <= 0).to(error), "class")
            mean = error / len(words)
            return {
                "adv": mean.detach(),
                "accuracy": right / len(words),
                "beta": torch.full_like(right, beta),
                "total": -beta * (error if self.reduction == "sum" else mean),
            }

    def _reg(
        self, errors: Float[Tensor, "pair pair"], items: Items, scores: Float[Tensor, "pair pair"]
    ) -> Float[Tensor, ""]:
        hard = hard_negatives(scores, items.image)
        return distinctness_loss(errors, *hard, margin=self.alpha, form=self.reg_form)


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
    if word_mask is None:
        word_mask = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
    if region_mask is None:
        region_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
    addr = ADDR(words.shape[-1], form, beta=beta, **options)
    addr.to(words.device, torch.promote_types(words.dtype, torch.float32))
    features = DomainFeatures(words, regions, word_mask, region_mask)
    return addr.encoder_terms(features, addr.discriminators(addr.items(features), scores), step=0)


def _errors(items: Items, discriminators: Discriminators) -> Float[Tensor, "pair pair"]:
    """`pair_errors` of items that are seen from their pair's center."""
    weight, bias = discriminators
    logits = items.features @ weight.T + (items.center @ weight.T + bias)[:, None]
    return _errors_from_logits(logits, items.is_word, items.share)


def _errors_from_logits(
    logits: Float[Tensor, "pair item discriminator"], is_word: Bool[Tensor, " item"], share: Float[Tensor, "pair item"]
) -> Float[Tensor, "pair discriminator"]:
    errors = F.softplus(torch.where(is_word, -1.0, 1.0).to(logits)[:, None] * logits)
    return (share[:, None] @ errors)[:, 0]  # a product of a row and a matrix a pair


def _unit_logits(
    items: Float[Tensor, "pair item dim"], weight: Float[Tensor, "pair dim"], bias: Float[Tensor, " pair"]
) -> Float[Tensor, "pair item"]:
    """Logits of every pair's discriminator on its own items; these are divided by their lengths, not the items."""
    items = at_least_float32(items)
    return (items @ weight[..., None])[..., 0] / _length(items) + bias[:, None]


def _length(items: Float[Tensor, "pair item dim"]) -> Float[Tensor, "pair item"]:
    return torch.linalg.vector_norm(items, dim=-1).clamp_min(1e-8)


def _mean(items: Items, which: Bool[Tensor, " item"]) -> Float[Tensor, "pair dim"]:
    """The mean of the real words or regions, where they lie in the joint space."""
    weight = items.weight * which
    return ((weight / weight.sum(dim=1, keepdim=True))[:, None] @ items.features)[:, 0] + items.center


def _from_dual(
    dual: Float[Tensor, "pair item"], items: Items, weight: Tensor | float = 0.0, bias: Tensor | float = 0.0
) -> Discriminators:
    """A start and a combination of a pair's items."""
    return Discriminators(weight + (dual[:, None] @ items.features)[:, 0], bias + dual.sum(dim=1))


def _uncentered(centered: Discriminators, items: Items) -> Discriminators:
    """For the features themselves, what is for features seen from their pair's center."""
    return Discriminators(centered.weight, centered.bias - (centered.weight * items.center).sum(dim=1))


def _item_weights(
    word_mask: Bool[Tensor, "pair word"], region_mask: Bool[Tensor, "pair region"], balance: Balance, dtype: torch.dtype
) -> tuple[Float[Tensor, "pair word"], Float[Tensor, "pair region"]]:
    """How much every item counts in the error of its pair; padding does not."""
    _check_choice("balance", balance, Balance)
    words, regions = word_mask.to(dtype), region_mask.to(dtype)
    if balance == "sum":
        return words, regions
    word_count, region_count = words.sum(dim=1, keepdim=True), regions.sum(dim=1, keepdim=True)
    if balance == "mean":
        return words / (word_count + region_count), regions / (word_count + region_count)
    return words / (2 * word_count), regions / (2 * region_count)


def _full_precision(inputs: DomainFeatures | Items) -> torch.autocast:
    return torch.autocast(inputs[0].device.type, enabled=False)


def _check_choice(name: str, value: str, choices: object) -> None:
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
