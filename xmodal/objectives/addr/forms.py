"""Forms of ADDR's discriminators: how a pair comes by its own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.numerics import NotNegative, Positive, Size, check_count, check_number
from xmodal.objectives.addr.batch import Discriminators, Items
from xmodal.objectives.choices import check_choice

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


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

    fits_anew, sparse = True, False

    def __init__(self, dim: Size, steps: Size = 5, rate: NotNegative = 10.0) -> None:
        super().__init__()
        check_count("steps", steps)
        check_number("rate", rate, least=0)
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

    fits_anew, sparse = True, False

    def __init__(self, dim: Size, ridge: Positive = 0.1) -> None:
        super().__init__()
        check_number("ridge", ridge, above=0)
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

    fits_anew, sparse = False, False

    def __init__(self, dim: Size, hidden: Size = 128) -> None:
        super().__init__()
        check_count("hidden", hidden)
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

    fits_anew, sparse = False, True

    def __init__(self, dim: Size, pairs: Size) -> None:
        super().__init__()
        check_count("pairs", pairs)
        self.rows = nn.Embedding.from_pretrained(torch.zeros(pairs, dim + 1), freeze=False, sparse=True)

    def forward(self, items: Items) -> Discriminators:
        """Differentiable in the rows of these pairs."""
        if items.pair is None:
            raise ValueError("the table form needs the features' `pair`: where every pair is in the training set")
        rows = self.rows(items.pair.long())
        return Discriminators(rows[:, :-1], rows[:, -1])


class Shared(nn.Module):
    """One discriminator for all pairs, which learns by its optimizer: a control that is ours, no form of the paper's.

    It is the plain domain discriminator of adversarial adaptation (Ganin and Lempitsky, ICML 2015): weights and bias
    are of the features themselves, wherever the center of a pair lies. It starts at zero. As all pairs have the same
    discriminator, L_reg, which sets them apart, is a constant.

    Args:
        dim: dim of the features.

    Example:
        >>> import torch
        >>> from xmodal.objectives.addr import ADDR, DomainFeatures, Shared
        >>> words, regions, real = torch.eye(4)[None, :2], torch.eye(4)[None, 2:], torch.ones(1, 2, dtype=torch.bool)
        >>> items = ADDR(dim=4).items(DomainFeatures(words, regions, real, real))
        >>> Shared(dim=4)(items).weight.shape, [parameter.shape for parameter in Shared(dim=4).parameters()]
        (torch.Size([1, 4]), [torch.Size([4]), torch.Size([])])
    """

    fits_anew, sparse = False, False

    def __init__(self, dim: Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, items: Items) -> Discriminators:
        """Differentiable in weight and bias."""
        return Discriminators(self.weight.expand_as(items.center), self.bias + items.center @ self.weight)


FORMS: dict[str, type[nn.Module]] = {
    "fast_weights": FastWeights,
    "ridge": Ridge,
    "amortized": Amortized,
    "table": Table,
    "shared": Shared,
}
"""Forms of the discriminators: Modules that take `Items` and give `Discriminators` of the centered features.

`fits_anew` says whether a form starts over with every batch or keeps what it learned of a pair, `sparse` whether its
gradients are.
"""


def build_form(name: str, dim: int, *, pairs: int | None = None, **options) -> nn.Module:
    """A form by its name, with those of the options that it takes.

    Args:
        name: one of `FORMS`.
        dim: dim of the features.
        pairs: pairs in the training set, which the table form needs.
        **options: of any of the forms.

    Raises:
        ValueError: for an unknown name, or a table without its number of pairs.

    Example:
        >>> from xmodal.objectives.addr.forms import build_form
        >>> build_form("ridge", dim=4, ridge=0.2, steps=3).ridge
        0.2
    """
    check_choice("form", name, FORMS)
    if name == "table" and pairs is None:
        raise ValueError("the table form needs `pairs`, the number of pairs in the training set")
    taken = inspect.signature(FORMS[name]).parameters
    return FORMS[name](dim, **{key: value for key, value in {"pairs": pairs, **options}.items() if key in taken})


def _mean(items: Items, which: Bool[Tensor, " item"]) -> Float[Tensor, "pair dim"]:
    """The mean of the real words or regions, where they lie in the joint space."""
    weight = items.weight * which
    return ((weight / weight.sum(dim=1, keepdim=True))[:, None] @ items.features)[:, 0] + items.center


def _from_dual(
    dual: Float[Tensor, "pair item"], items: Items, weight: Tensor | float = 0.0, bias: Tensor | float = 0.0
) -> Discriminators:
    """A start and a combination of a pair's items."""
    return Discriminators(weight + (dual[:, None] @ items.features)[:, 0], bias + dual.sum(dim=1))
