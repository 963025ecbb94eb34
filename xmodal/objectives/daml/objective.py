"""DAML's terms, put together for a batch."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from torch import nn
from torch.func import functional_call

from xmodal.numerics import NotNegative, Size, SizeOrNone, Steps, at_least_float32, check_count, check_number, normalize
from xmodal.objectives.choices import check_choice
from xmodal.objectives.daml.generator import HardNegativeGenerator
from xmodal.objectives.daml.losses import SYNTHETIC_LOSSES, generator_losses
from xmodal.objectives.daml.triplets import TripletLayout, Triplets, batch_triplets
from xmodal.objectives.metric import AS_GIVEN, check_labels
from xmodal.objectives.warmup import warmth

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Float, Int
    from torch import Tensor


Gradients = Literal["joint", "split"]


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
        >>> objective(features, labels, embed=torch.nn.Linear(4, 2)).keys()
        dict_keys(['hard', 'regularization', 'adversarial', 'metric', 'total'])
    """

    parts: ClassVar[dict[str, Any]] = {"metric": SYNTHETIC_LOSSES, "generator": HardNegativeGenerator}
    """The options that are options of something else."""

    def __init__(
        self,
        feature_dim: Size,
        metric: Mapping[str, Any],
        margin: NotNegative = 1.0,
        reg_weight: NotNegative = 1.0,
        adv_weight: NotNegative = 1.0,
        metric_weight: NotNegative = 1.0,
        warmup_steps: Steps = 0,
        triplets: TripletLayout = "cyclic",
        negatives: SizeOrNone = 0,
        normalize: bool = False,
        gradients: Gradients = "joint",
        generator: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("triplets", triplets, TripletLayout)
        check_choice("gradients", gradients, Gradients)
        check_number("margin", margin, least=0)
        check_count("warmup_steps", warmup_steps, least=0)
        check_count("negatives", negatives, least=0)
        self.metric_name, self.metric = _synthetic_loss(metric)
        self.margin = margin
        weights = {"reg_weight": reg_weight, "adv_weight": adv_weight, "metric_weight": metric_weight}
        for name, weight in weights.items():
            check_number(name, weight, least=0)
        self.weights = {"regularization": reg_weight, "adversarial": adv_weight, "metric": metric_weight}
        self.warmup_steps = warmup_steps
        self.triplets: TripletLayout = triplets
        self.negatives = negatives or (1 if self.metric_name in ("triplet", "contrastive") else None)
        self.normalize = normalize
        self.gradients: Gradients = gradients
        _check_known("DAML's generator", generator or {}, list(inspect.signature(HardNegativeGenerator).parameters)[1:])
        self.generator = HardNegativeGenerator(feature_dim, **(generator or {}))

    def forward(
        self,
        features: Float[Tensor, "image feature"],
        labels: Int[Tensor, " image"],
        *,
        embed: nn.Module = AS_GIVEN,
        step: int | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Named terms of a batch at an optimizer step (0-based); `total` is what training minimizes.

        Without a `step` every warm-up is over; without `embed` the features are the embeddings.

        Raises:
            ValueError: as `batch_triplets`, or for labels that do not fit the features.
        """
        check_labels(features, labels)
        triplets = batch_triplets(labels, layout=self.triplets, negatives=self.negatives)
        if warmth(step, self.warmup_steps) < 1:
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
        return normalize(embeddings) if self.normalize else embeddings


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
    _check_known(f"DAML's metric loss {name!r}", options, known)
    for option, value in options.items():
        check_number(option, value, **({"above": 0, "below": 90} if option == "alpha" else {"least": 0}))
    return name, partial(SYNTHETIC_LOSSES[name], **options)


def _check_known(whose: str, options: Mapping[str, Any], known: list[str]) -> None:
    for option in options:
        if option not in known:
            raise ValueError(f"{whose} has no option {option!r}; known: {', '.join(known)}")
