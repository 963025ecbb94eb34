"""Deep adversarial metric learning (Duan et al., CVPR 2018; TIP 2020): negatives that a generator makes hard.

From an anchor a, its positive p and an easy negative n a generator makes a synthetic negative g, near the anchor, near
the negative it came from, and on the wrong side of the margin in the learned metric; the metric loss is then taken on
g in place of n. Triplet and contrastive are the paper's equations; N-pair, lifted and angular with synthetic negatives
were not readable and are this project's reading.
"""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from xmodal.objectives.metric import check_labels, check_pairs
from xmodal.objectives.precision import at_least_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Float, Int
    from torch import Tensor

TripletLayout = Literal["cyclic", "random", "thirds"]
Gradients = Literal["joint", "split"]


class Triplets(NamedTuple):
    """Rows of a batch: every pair of an anchor and a positive, and the negatives that it is compared with."""

    anchor: Int[Tensor, " pair"]
    positive: Int[Tensor, " pair"]
    negative: Int[Tensor, "pair negative"]


def batch_triplets(
    labels: Int[Tensor, " image"],
    *,
    layout: TripletLayout = "cyclic",
    negatives: int | None = 1,
    generator: torch.Generator | None = None,
) -> Triplets:
    """Triplets of a batch.

    Args:
        labels: class of every image.
        layout: `cyclic` makes every image an anchor: its positive is the next image of its class and its negatives are
            the next ones of other classes, counting on from the end of the batch to its start. `random` does so on a
            shuffled batch. `thirds` is the released layout: a third of anchors, their positives, their negatives,
            each in the same order, with one negative a pair.
        negatives: how many for each pair; None takes as many as every image has. Without effect on `thirds`.
        generator: shuffles; None is torch's global generator of the device.

    Raises:
        ValueError: if an image has no positive or too few negatives, or the labels do not have the layout.

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import batch_triplets
        >>> triplets = batch_triplets(torch.tensor([0, 0, 1, 1]))
        >>> triplets.positive.tolist(), triplets.negative.tolist()
        ([1, 0, 3, 2], [[2], [2], [0], [0]])
    """
    if layout not in get_args(TripletLayout):
        raise ValueError(f"layout must be one of {', '.join(get_args(TripletLayout))}; got {layout!r}")
    places = torch.arange(len(labels), device=labels.device)
    if layout == "thirds":
        anchor, positive, negative = places.tensor_split(3)
        whole = len(anchor) == len(negative)
        if not (whole and (labels[anchor] == labels[positive]).all() and (labels[anchor] != labels[negative]).all()):
            raise ValueError(
                "layout 'thirds' needs a batch of anchors, then positives of the same classes, then negatives of "
                f"others, equally many of each; got labels {labels.tolist()}"
            )
        return Triplets(anchor, positive, negative[:, None])
    check_pairs(labels)
    order = places
    if layout == "random":
        order = torch.randperm(len(labels), device=labels.device, generator=generator)
    shuffled = labels[order]
    same = shuffled[:, None] == shuffled[None, :]
    fewest = int((~same).sum(dim=1).min())
    if negatives is not None and not 1 <= negatives <= fewest:
        raise ValueError(f"negatives must be in 1..{fewest} for every image of the batch to have them, got {negatives}")
    ahead = (places[None, :] - places[:, None]) % len(labels)
    positive = ahead.masked_fill(~same | (ahead == 0), len(labels)).argmin(dim=1)
    negative = ahead.masked_fill(same, len(labels)).argsort(dim=1)[:, : negatives or fewest]
    return Triplets(order, order[positive], order[negative])


def triplet_on_synthetic(
    anchor: Float[Tensor, "pair dim"],
    positive: Float[Tensor, "pair dim"],
    negative: Float[Tensor, "pair negative dim"],
    *,
    margin: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean of [|a - p|^2 - |a - n|^2 + margin]_+; the released code halves it.

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import triplet_on_synthetic
        >>> anchor, positive, negative = torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[[1.5]]])
        >>> triplet_on_synthetic(anchor, positive, negative)
        tensor(0.)
    """
    return (_squared(anchor, positive)[:, None] - _squared(anchor[:, None], negative) + margin).clamp_min(0).mean()


def contrastive_on_synthetic(
    anchor: Float[Tensor, "pair dim"],
    positive: Float[Tensor, "pair dim"],
    negative: Float[Tensor, "pair negative dim"],
    *,
    margin: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean of |a - p|^2 plus mean of [margin - |a - n|^2]_+.

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import contrastive_on_synthetic
        >>> anchor, positive, negative = torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[[0.5]]])
        >>> contrastive_on_synthetic(anchor, positive, negative)
        tensor(1.7500)
    """
    return _squared(anchor, positive).mean() + (margin - _squared(anchor[:, None], negative)).clamp_min(0).mean()


def n_pair_on_synthetic(
    anchor: Float[Tensor, "pair dim"],
    positive: Float[Tensor, "pair dim"],
    negative: Float[Tensor, "pair negative dim"],
    *,
    l2_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of log(1 + sum_n exp(a.n - a.p)) (Sohn 2016), plus l2_weight times half the mean of |a|^2 + |p|^2.

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import n_pair_on_synthetic
        >>> anchor, positive, negative = torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[[2.0]]])
        >>> n_pair_on_synthetic(anchor, positive, negative)
        tensor(0.6931)
    """
    excess = torch.einsum("pd,pnd->pn", anchor, negative) - (anchor * positive).sum(dim=1, keepdim=True)
    length = (anchor.square() + positive.square()).sum(dim=1).mean() / 2
    return F.softplus(excess.logsumexp(dim=1)).mean() + l2_weight * length


def lifted_on_synthetic(
    anchor: Float[Tensor, "pair dim"],
    positive: Float[Tensor, "pair dim"],
    negative: Float[Tensor, "pair negative dim"],
    *,
    margin: float = 1.0,
) -> Float[Tensor, ""]:
    """Half the mean of [log sum_n (exp(margin - |a - n|) + exp(margin - |p - n|)) + |a - p|]_+^2 (Song et al. 2016).

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import lifted_on_synthetic
        >>> anchor, positive, negative = torch.tensor([[0.0]]), torch.tensor([[0.0]]), torch.tensor([[[1.0]]])
        >>> lifted_on_synthetic(anchor, positive, negative)
        tensor(0.2402)
    """
    both = torch.stack([anchor, positive], dim=1)
    distances = torch.linalg.vector_norm(both[:, :, None] - negative[:, None], dim=-1)
    pulled = torch.linalg.vector_norm(anchor - positive, dim=-1)
    return ((margin - distances).flatten(1).logsumexp(dim=1) + pulled).clamp_min(0).square().mean() / 2


def angular_on_synthetic(
    anchor: Float[Tensor, "pair dim"],
    positive: Float[Tensor, "pair dim"],
    negative: Float[Tensor, "pair negative dim"],
    *,
    alpha: float = 45.0,
) -> Float[Tensor, ""]:
    """Mean of log(1 + sum_n exp(4 tan^2(alpha) (a + p).n - 2 (1 + tan^2(alpha)) a.p)) on unit vectors.

    The batch form of angular loss (Wang et al. 2017); alpha in degrees.

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import angular_on_synthetic
        >>> anchor = positive = torch.tensor([[1.0, 0.0]])
        >>> easy, hard = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])
        >>> angular_on_synthetic(anchor, positive, easy), angular_on_synthetic(anchor, positive, hard)
        (tensor(0.0181), tensor(4.0181))
    """
    anchor, positive, negative = (F.normalize(x, dim=-1) for x in (anchor, positive, negative))
    squared_tangent = math.tan(math.radians(alpha)) ** 2
    repelled = 4 * squared_tangent * torch.einsum("pd,pnd->pn", anchor + positive, negative)
    pulled = 2 * (1 + squared_tangent) * (anchor * positive).sum(dim=1, keepdim=True)
    return F.softplus((repelled - pulled).logsumexp(dim=1)).mean()


SYNTHETIC_LOSSES: dict[str, Callable[..., Any]] = {
    "triplet": triplet_on_synthetic,
    "contrastive": contrastive_on_synthetic,
    "n_pair": n_pair_on_synthetic,
    "lifted": lifted_on_synthetic,
    "angular": angular_on_synthetic,
}
"""J_m by name: a metric loss of anchors, positives and any negatives, synthetic or real."""


def generator_losses(
    anchor: Float[Tensor, "pair feature"],
    negative: Float[Tensor, "pair negative feature"],
    synthetic: Float[Tensor, "pair negative feature"],
    embedded_anchor: Float[Tensor, "pair dim"],
    embedded_positive: Float[Tensor, "pair dim"],
    embedded_synthetic: Float[Tensor, "pair negative dim"],
    *,
    margin: float = 1.0,
) -> dict[str, Float[Tensor, ""]]:
    """J_hard, J_reg and J_adv (DAML, CVPR 2018), each a mean over the synthetic negatives g.

    Args:
        anchor: features of the anchors.
        negative: features of the real negatives.
        synthetic: features of the synthetic negatives.
        embedded_anchor: embeddings of the anchors.
        embedded_positive: embeddings of the positives.
        embedded_synthetic: embeddings of the synthetic negatives.
        margin: alpha, in squared distances.

    Returns:
        `hard`, |g - a|^2 in feature space; `regularization`, |g - n|^2 in feature space; `adversarial`,
        [|g - a|^2 - |p - a|^2 - margin]_+ of the embeddings (which the released code halves).

    Example:
        >>> import torch
        >>> from xmodal.objectives.daml import generator_losses
        >>> a, n, g = torch.zeros(1, 2), torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.5)
        >>> generator_losses(a, n, g, a, a, g, margin=0.25)
        {'hard': tensor(0.5000), 'regularization': tensor(0.5000), 'adversarial': tensor(0.2500)}
    """
    to_synthetic = _squared(embedded_anchor[:, None], embedded_synthetic)
    to_positive = _squared(embedded_anchor, embedded_positive)[:, None]
    return {
        "hard": _squared(synthetic, anchor[:, None]).mean(),
        "regularization": _squared(synthetic, negative).mean(),
        "adversarial": (to_synthetic - to_positive - margin).clamp_min(0).mean(),
    }


class HardNegativeGenerator(nn.Module):
    """An MLP from the features of anchor, positive and negative to those of a synthetic negative.

    Args:
        dim: length of a feature.
        layers: linear layers, the first from 3 * dim to dim, each followed by ReLU; 2 as released.
        batch_norm: before every ReLU. With three layers this is the generator of the GeDML library's DAML.
        final_relu: after the last layer too, as released; without it a synthetic negative may be negative somewhere,
            as features that do not come from a ReLU are.
        std: of the initial weights, normal around 0; 0.02 as released. Biases start at 0.

    Raises:
        ValueError: for fewer than one layer.

    Example:
        >>> import torch
        >>> from xmodal.objectives import HardNegativeGenerator
        >>> HardNegativeGenerator(dim=4)(*torch.ones(3, 5, 4)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self, dim: int, layers: int = 2, batch_norm: bool = False, final_relu: bool = True, std: float = 0.02
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        self.layers = nn.Sequential()
        for number in range(layers):
            linear = nn.Linear(dim if number else 3 * dim, dim)
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)
            self.layers.append(linear)
            if batch_norm:
                self.layers.append(nn.BatchNorm1d(dim))
            if number < layers - 1 or final_relu:
                self.layers.append(nn.ReLU())

    def forward(
        self,
        anchor: Float[Tensor, "triplet feature"],
        positive: Float[Tensor, "triplet feature"],
        negative: Float[Tensor, "triplet feature"],
    ) -> Float[Tensor, "triplet feature"]:
        """Features of a synthetic negative for every triplet."""
        return self.layers(torch.cat([anchor, positive, negative], dim=1))


class DAML(nn.Module):
    """Metric learning on synthetic negatives: J_hard + reg_weight J_reg + adv_weight J_adv + metric_weight J_m.

    For the first `warmup_steps` optimizer steps the metric loss on real negatives is trained alone, on the embeddings;
    its terms are then `metric` and `total` only, and the generator gets no gradient. (The released code warms up on the
    features instead, 20 of 100 epochs; its embedding layer is Linear-ReLU-Linear that starts as the identity.)

    The released rates after the warm-up: a thousandth of the base rate for the backbone, a tenth for the generator, the
    whole for the embedding layer; during the warm-up the whole for the backbone. Released weights are 1 throughout, on
    an adversarial and a metric term that it halves.

    Args:
        feature_dim: length of the backbone's pooled features.
        metric: J_m by `name`: triplet, contrastive, n_pair, lifted or angular, with its options: `margin` (in squared
            distances for triplet and contrastive, distances for lifted), `l2_weight` (n_pair), `alpha` (angular,
            degrees).
        margin: of J_adv, in squared distances.
        reg_weight: lambda_1, of J_reg.
        adv_weight: lambda_2, of J_adv.
        metric_weight: lambda, of J_m.
        warmup_steps: see above.
        triplets: how triplets are taken from a batch, see `batch_triplets`.
        negatives: for each pair; 0 is one for triplet and contrastive, as released, and for the others, which sum over
            negatives, as many as every image of the batch has.
        normalize: compare unit vectors; the released code does not.
        gradients: `joint` lets every term move backbone, generator and embedding layer, as the released code does.
            `split` reads the paper's two minimizations as players: the three terms of J_gen move the generator only,
            J_m backbone and embedding layer only.
        generator: options of `HardNegativeGenerator`.

    Raises:
        ValueError: for an option that does not exist or is out of its range.

    Example:
        >>> import torch
        >>> from xmodal.objectives import DAML
        >>> objective = DAML(feature_dim=4, metric={"name": "triplet", "margin": 1.0})
        >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> objective(features, labels, embed=torch.nn.Linear(4, 2), step=0).keys()
        dict_keys(['hard', 'regularization', 'adversarial', 'metric', 'total'])
    """

    def __init__(
        self,
        feature_dim: int,
        metric: Mapping[str, Any],
        margin: float = 1.0,
        reg_weight: float = 1.0,
        adv_weight: float = 1.0,
        metric_weight: float = 1.0,
        warmup_steps: int = 0,
        triplets: TripletLayout = "cyclic",
        negatives: int = 0,
        normalize: bool = False,
        gradients: Gradients = "joint",
        generator: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if triplets not in get_args(TripletLayout):
            raise ValueError(f"triplets must be one of {', '.join(get_args(TripletLayout))}; got {triplets!r}")
        if gradients not in get_args(Gradients):
            raise ValueError(f"gradients must be one of {', '.join(get_args(Gradients))}; got {gradients!r}")
        self.metric_name, self.metric = _synthetic_loss(metric)
        self.margin = margin
        self.weights = {"regularization": reg_weight, "adversarial": adv_weight, "metric": metric_weight}
        self.warmup_steps = warmup_steps
        self.triplets: TripletLayout = triplets
        self.negatives = negatives or (1 if self.metric_name in ("triplet", "contrastive") else None)
        self.normalize = normalize
        self.gradients: Gradients = gradients
        self.generator = HardNegativeGenerator(feature_dim, **(generator or {}))

    def forward(
        self, features: Float[Tensor, "image feature"], labels: Int[Tensor, " image"], *, embed: nn.Module, step: int
    ) -> dict[str, Float[Tensor, ""]]:
        """Named terms of a batch at an optimizer step (0-based); `total` is what training minimizes.

        Raises:
            ValueError: as `batch_triplets`, or for labels that do not fit the features.
        """
        check_labels(features, labels)
        triplets = batch_triplets(labels, layout=self.triplets, negatives=self.negatives)
        if step < self.warmup_steps:
            embeddings = self._metric_space(embed, features)
            metric = self.metric(*(embeddings[rows] for rows in triplets))
            return {"metric": metric, "total": self.weights["metric"] * metric}
        if self.gradients == "joint":
            made = judged = self._synthesize(features, triplets, self.generator, embed)
        else:
            made = self._synthesize(features.detach(), triplets, self.generator, _constant(embed))
            judged = self._synthesize(features, triplets, _constant(self.generator), embed)
        terms = generator_losses(*made, margin=self.margin)
        terms["metric"] = self.metric(*judged[3:])
        total = terms["hard"] + sum(weight * terms[name] for name, weight in self.weights.items())
        return {**terms, "total": total}

    def _synthesize(
        self, features: Tensor, triplets: Triplets, generate: Callable[..., Tensor], embed: Callable[..., Tensor]
    ) -> Synthesis:
        """Everything that the losses compare, with a synthetic negative in the place of every real one."""
        anchor, positive, negative = (features[rows] for rows in triplets)
        repeats = triplets.negative.shape[1]
        synthetic = generate(
            anchor.repeat_interleave(repeats, dim=0), positive.repeat_interleave(repeats, dim=0), negative.flatten(0, 1)
        )
        embeddings = self._metric_space(embed, features)
        return Synthesis(
            anchor,
            negative,
            synthetic.view_as(negative),
            embeddings[triplets.anchor],
            embeddings[triplets.positive],
            self._metric_space(embed, synthetic).unflatten(0, negative.shape[:2]),
        )

    def _metric_space(self, embed: Callable[..., Tensor], features: Tensor) -> Tensor:
        embeddings = at_least_float32(embed(features))
        return F.normalize(embeddings, dim=-1) if self.normalize else embeddings


class Synthesis(NamedTuple):
    """The arguments of `generator_losses`; the last three are those of a metric loss."""

    anchor: Float[Tensor, "pair feature"]
    negative: Float[Tensor, "pair negative feature"]
    synthetic: Float[Tensor, "pair negative feature"]
    embedded_anchor: Float[Tensor, "pair dim"]
    embedded_positive: Float[Tensor, "pair dim"]
    embedded_synthetic: Float[Tensor, "pair negative dim"]


def _constant(module: nn.Module) -> Callable[..., Tensor]:
    """A module whose parameters no gradient reaches, although gradients flow through it to its inputs."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return lambda *inputs: functional_call(module, parameters, inputs)


def _synthetic_loss(metric: Mapping[str, Any]) -> tuple[str, Callable[..., Tensor]]:
    """J_m by name, with its options bound."""
    options = dict(metric)
    name = options.pop("name", None)
    if name not in SYNTHETIC_LOSSES:
        raise ValueError(f"DAML has no metric loss {name!r}; known: {', '.join(SYNTHETIC_LOSSES)}")
    known = list(inspect.signature(SYNTHETIC_LOSSES[name]).parameters)[3:]
    for option in options:
        if option not in known:
            raise ValueError(f"DAML's metric loss {name!r} has no option {option!r}; known: {', '.join(known)}")
    return name, partial(SYNTHETIC_LOSSES[name], **options)


def _squared(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances of the last dimension's vectors."""
    return at_least_float32(first - second).square().sum(dim=-1)
