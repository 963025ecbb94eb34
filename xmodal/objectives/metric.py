"""Deep metric losses on embeddings and class labels: one adapter over pytorch-metric-learning.

What is published and maintained there is not written again here. Only the binomial deviance loss is: the library has
none of that form. The library (the extra `metric`) is imported when a loss is built, not with this package.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.numerics import (
    Angle,
    NotNegative,
    Positive,
    Size,
    at_least_float32,
    check_count,
    check_number,
    normalize,
)
from xmodal.objectives.choices import check_choice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Float, Int
    from torch import Tensor

Mining = Literal["all", "hard", "semihard", "distance_weighted", "multi_similarity"]

LIBRARY_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "contrastive": ("ContrastiveLoss", {"pos_margin": 0.0, "neg_margin": 1.0, "normalize": True}),
    "triplet": ("TripletMarginLoss", {"margin": 0.2, "normalize": True}),
    "n_pair": ("NPairsLoss", {"l2_weight": 0.0, "normalize": False}),
    "lifted": ("LiftedStructureLoss", {"pos_margin": 0.0, "neg_margin": 1.0, "normalize": True}),
    "angular": ("AngularLoss", {"alpha": 45.0}),
    "multi_similarity": ("MultiSimilarityLoss", {"alpha": 2.0, "beta": 50.0, "base": 0.5}),
    "margin": ("MarginLoss", {"margin": 0.2, "nu": 0.0, "beta": 1.2, "learn_beta": False, "normalize": True}),
    "proxy_nca": ("ProxyNCALoss", {"softmax_scale": 1.0}),
    "proxy_anchor": ("ProxyAnchorLoss", {"margin": 0.1, "alpha": 32.0}),
    "normalized_softmax": ("NormalizedSoftmaxLoss", {"temperature": 0.05}),
}
"""The class in `pytorch_metric_learning.losses` behind each name, and the options it takes with their defaults."""

BINOMIAL_OPTIONS = {"scale": 2.0, "threshold": 0.5, "negative_cost": 25.0}

PROXY_LOSSES = ("proxy_nca", "proxy_anchor", "normalized_softmax")
"""Losses that compare an image with one learned vector a class, not with the other images of the batch."""


def binomial_deviance_loss(
    embeddings: Float[Tensor, "image dim"],
    labels: Int[Tensor, " image"],
    *,
    scale: float = 2.0,
    threshold: float = 0.5,
    negative_cost: float = 25.0,
) -> Float[Tensor, ""]:
    """Binomial deviance on cosine similarities s (Yi et al. 2014; as in BIER, Opitz et al. 2017, with one learner).

    The mean over pairs of one class of log(1 + exp(-scale (s - threshold))), plus the mean over pairs of different
    classes of log(1 + exp(scale * negative_cost (s - threshold))).

    Args:
        embeddings: of the images of a batch, of any length: they are L2-normalized here.
        labels: class of every image.
        scale: alpha.
        threshold: beta, the cosine between the two kinds of pairs.
        negative_cost: by which pairs of different classes weigh more; 25 in ECAML's released code, 20 elsewhere.

    Raises:
        ValueError: as `check_labels` and `check_pairs`.

    Example:
        >>> import torch
        >>> from xmodal.objectives import binomial_deviance_loss
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> binomial_deviance_loss(embeddings, torch.tensor([0, 0, 1, 1]))  # log(1 + 1/e)
        tensor(0.3133)
        >>> binomial_deviance_loss(embeddings, torch.tensor([0, 1, 0, 1])) > 10
        tensor(True)
    """
    options = {"scale": scale, "threshold": threshold, "negative_cost": negative_cost}
    _check_options("binomial", options)
    check_labels(embeddings, labels)
    check_pairs(labels)
    directions = normalize(at_least_float32(embeddings), dim=1)
    logits = scale * (directions @ directions.T - threshold)
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return F.softplus(-logits[same & ~itself]).mean() + F.softplus(negative_cost * logits[~same]).mean()


class MetricLoss(nn.Module):
    """A metric loss by name: a batch of embeddings and their labels in, a scalar out.

    Args:
        name: `binomial` (`binomial_deviance_loss`) or a key of `LIBRARY_LOSSES`, which names the class of
            pytorch-metric-learning behind it.
        dim: length of an embedding; the proxy losses need it.
        classes: number of training classes; the proxy losses and `margin` with a learned beta need it.
        mining: which triplets (or, for `multi_similarity`, pairs) of the batch count: all, those that violate the
            margin and have the negative nearer than the positive (`hard`) or farther (`semihard`, Schroff et al.
            2015), negatives drawn inversely to the density of their distance (`distance_weighted`, Wu et al. 2017;
            drawn from torch's global generator), or Wang et al. 2019 (`multi_similarity`).
        options: the loss's own, see `LIBRARY_LOSSES` and `BINOMIAL_OPTIONS`. `normalize` compares unit vectors;
            `l2_weight` weighs the mean squared length of the embeddings (N-pair).

    Where the library departs from a paper, the library's form is what runs: its contrastive loss takes distances,
    not their squares, and it and the triplet loss average over the terms that are not zero; proxy-NCA has the proxy of
    the own class in the denominator. N-pair takes the first pair of every class, so it depends on the order of the
    batch; `angular` is given unit vectors, as published (the library itself normalizes anchors and positives only).

    Raises:
        ValueError: for a name, an option or a mining that does not exist, an option out of its range, or sizes that are
            missing.
        ImportError: if pytorch-metric-learning is not installed.

    Example:
        >>> import torch
        >>> from xmodal.objectives import MetricLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> MetricLoss("triplet", margin=0.2)(embeddings, torch.tensor([0, 0, 1, 1]))
        tensor(0.)
        >>> MetricLoss("proxy_anchor", dim=2, classes=2).loss.proxies.shape
        torch.Size([2, 2])
    """

    def __init__(
        self, name: str, *, dim: Size | None = None, classes: Size | None = None, mining: Mining = "all", **options: Any
    ) -> None:
        super().__init__()
        known = _defaults(name)
        for option in options:
            if option not in known:
                raise ValueError(f"metric loss {name!r} has no option {option!r}; known: {', '.join(known)}")
        check_choice("mining", mining, Mining)
        if mining != "all" and name in ("binomial", *PROXY_LOSSES):
            raise ValueError(f"metric loss {name!r} takes every image of a batch: mining must be 'all', got {mining!r}")
        options = {**known, **options}
        _check_options(name, options)
        for size, value in (("dim", dim), ("classes", classes)):
            if value is not None:
                check_count(size, value)
        self.name = name
        self.classes = classes if name in PROXY_LOSSES or options.get("learn_beta") else None
        self.options = options
        self.loss: Callable[..., Tensor] = binomial_deviance_loss
        self.miner: nn.Module | None = None
        if name != "binomial":
            self.loss = _library_loss(name, dim, classes, options)
            self.miner = _library_miner(mining, options)

    def forward(self, embeddings: Float[Tensor, "image dim"], labels: Int[Tensor, " image"]) -> Float[Tensor, ""]:
        """The loss of a batch, in at least float32.

        Raises:
            ValueError: as `check_labels` and, for losses that are not on proxies, `check_pairs`.
        """
        check_labels(embeddings, labels, classes=self.classes)
        if self.name not in PROXY_LOSSES:
            check_pairs(labels)
        embeddings = at_least_float32(embeddings)
        if self.name == "binomial":
            return self.loss(embeddings, labels, **self.options)
        if self.options.get("normalize", True):  # by the library, which divides vectors without a direction by 1e-12
            embeddings = embeddings.masked_fill((embeddings == 0).all(dim=1, keepdim=True), 0.0)
        if self.name == "angular":
            embeddings = F.normalize(embeddings, dim=1)
        mined = self.miner(embeddings, labels) if self.miner is not None else None
        return self.loss(embeddings, labels.long(), mined).reshape(())

    def extra_repr(self) -> str:
        """The name and the options, for printing."""
        return ", ".join([repr(self.name), *(f"{key}={value}" for key, value in self.options.items())])


AS_GIVEN = nn.Identity()
"""The embedding layer of objectives that are given embeddings instead of features."""


def _type_of(name: str, option: str) -> Any:
    """Similarities are any, what multiplies or divides is positive; distances, weights and margins are not negative."""
    default = _defaults(name)[option]
    if isinstance(default, bool) or option in ("threshold", "base"):
        return type(default)
    if name == "angular":
        return Angle
    return Positive if option in ("scale", "softmax_scale", "alpha", "beta", "temperature") else NotNegative


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options of a loss that are out of their ranges."""
    for option, value in options.items():
        kind = _type_of(name, option)
        if kind is Angle:
            check_number(option, value, above=0, below=90)
        elif kind is Positive:
            check_number(option, value, above=0)
        elif kind is NotNegative:
            check_number(option, value, least=0)
        elif kind is float:
            check_number(option, value)


def _defaults(name: str) -> dict[str, Any]:
    """The options of a loss with their defaults."""
    names = {"binomial": BINOMIAL_OPTIONS} | {key: options for key, (_, options) in LIBRARY_LOSSES.items()}
    if name not in names:
        raise ValueError(f"unknown metric loss {name!r}; known: {', '.join(names)}")
    return names[name]


def _named(name: str, defaults: Mapping[str, Any]) -> Callable[..., MetricLoss]:
    """What makes the metric loss of a name; its signature has the options of that loss."""

    def make(**options: Any) -> MetricLoss:
        """A metric loss.

        Args:
            mining: which triplets or pairs of a batch count.
            scale: by which similarities are multiplied.
            threshold: cosine between pairs of one class and pairs of two.
            negative_cost: by which pairs of two classes weigh more.
            margin: by which a pair of two classes must be farther apart than one of a class.
            pos_margin: distance from which on a pair of one class counts.
            neg_margin: distance up to which a pair of two classes counts.
            normalize: compare unit vectors.
            l2_weight: of the mean squared length of the embeddings.
            alpha: the angle in degrees (angular), or by which similarities of one class are multiplied.
            beta: by which similarities of two classes are multiplied, or the distance between the two kinds (margin).
            base: similarity from which both are measured.
            nu: weight of the regularizer of beta.
            learn_beta: learn a beta for every class.
            softmax_scale: by which similarities to the proxies are multiplied.
            temperature: by which similarities to the proxies are divided.
        """
        return MetricLoss(name, **options)

    options = [
        ("mining", Mining, "all"),
        *((option, _type_of(name, option), value) for option, value in defaults.items()),
    ]
    only = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(option, only, default=value, annotation=kind) for option, kind, value in options]
    vars(make)["__signature__"] = inspect.Signature(parameters)
    return make


METRIC_LOSSES: dict[str, Callable[..., MetricLoss]] = {
    name: _named(name, _defaults(name)) for name in ("binomial", *LIBRARY_LOSSES)
}
"""Metric losses by the name that a configuration uses; their signatures have their options."""


class MetricObjective(nn.Module):
    """A metric loss alone: the baseline that the other objectives are compared with.

    Args:
        metric: the loss by `name` with its options, see `MetricLoss`.
        dim: length of an embedding.
        classes: number of training classes.

    Example:
        >>> import torch
        >>> from xmodal.objectives import MetricObjective
        >>> objective = MetricObjective({"name": "binomial"})
        >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> objective(features, labels, embed=torch.nn.Linear(4, 2)).keys()
        dict_keys(['total'])
    """

    parts: ClassVar[dict[str, Any]] = {"metric": METRIC_LOSSES}
    """The options that are options of something else."""

    def __init__(self, metric: Mapping[str, Any], dim: Size | None = None, classes: Size | None = None) -> None:
        super().__init__()
        self.metric = metric_loss(metric, dim, classes)

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
            ValueError: as `check_labels` and, for losses that are not on proxies, `check_pairs`.
        """
        return {"total": self.metric(embed(features), labels)}


def metric_loss(options: Mapping[str, Any], dim: int | None = None, classes: int | None = None) -> MetricLoss:
    """The metric loss that a configuration's `{"name": ..., option: value, ...}` asks for.

    Raises:
        ValueError: if the name is missing, or as `MetricLoss`.

    Example:
        >>> from xmodal.objectives.metric import metric_loss
        >>> metric_loss({"name": "binomial", "negative_cost": 20.0})
        MetricLoss('binomial', scale=2.0, threshold=0.5, negative_cost=20.0)
    """
    if "name" not in options:
        raise ValueError(f"metric must be options with a name, such as {{'name': 'triplet'}}; got {dict(options)}")
    return MetricLoss(**options, dim=dim, classes=classes)


def check_labels(
    embeddings: Float[Tensor, "image dim"], labels: Int[Tensor, " image"], *, classes: int | None = None
) -> None:
    """Refuse embeddings and labels that do not fit each other.

    Args:
        embeddings: of the images of a batch.
        labels: class of every image.
        classes: if given, labels must be smaller and at least 0.

    Raises:
        ValueError: saying which condition fails.

    Example:
        >>> import torch
        >>> from xmodal.objectives.metric import check_labels
        >>> check_labels(torch.eye(3), torch.tensor([0, 1, 2]), classes=2)
        Traceback (most recent call last):
        ...
        ValueError: labels must be in 0..1, got 0..2
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        raise ValueError(
            "embeddings must be (image, dim) and labels (image,), of at least one image; "
            f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if classes is not None and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels must be in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")


def check_pairs(labels: Int[Tensor, " image"]) -> None:
    """Refuse a batch in which an image has no other of its class, or none of another class, to be compared with.

    Raises:
        ValueError: naming the class.

    Example:
        >>> import torch
        >>> from xmodal.objectives.metric import check_pairs
        >>> check_pairs(torch.tensor([0, 0, 1]))
        Traceback (most recent call last):
        ...
        ValueError: class 1 has a single image in the batch and so no positive pair; sample at least two images a class
    """
    present, counts = labels.unique(return_counts=True)
    if len(present) < 2:
        raise ValueError(f"a batch needs images of at least two classes for negative pairs, got {present.tolist()}")
    if counts.min() < 2:
        raise ValueError(
            f"class {int(present[counts.argmin()])} has a single image in the batch and so no positive pair; "
            "sample at least two images a class"
        )


def _library(module: str) -> Any:
    """A module of pytorch-metric-learning."""
    try:
        return importlib.import_module(f"pytorch_metric_learning.{module}")
    except ImportError as error:
        raise ImportError(
            "this metric loss needs pytorch-metric-learning, which is not installed: pip install 'xmodal[metric]'"
        ) from error


def _library_loss(name: str, dim: int | None, classes: int | None, options: dict[str, Any]) -> nn.Module:
    """The library's loss with the distance and the sizes that it needs."""
    arguments = dict(options)
    if "normalize" in options:
        distances = _library("distances")
        distance = distances.DotProductSimilarity if name == "n_pair" else distances.LpDistance
        arguments["distance"] = distance(normalize_embeddings=arguments.pop("normalize"))
    if "l2_weight" in options:
        arguments["embedding_reg_weight"] = arguments.pop("l2_weight")
        arguments["embedding_regularizer"] = _library("regularizers").LpRegularizer(p=2, power=2)
    if name in PROXY_LOSSES:
        if dim is None or classes is None:
            raise ValueError(f"metric loss {name!r} needs dim and classes, got {dim} and {classes}")
        arguments |= {"num_classes": classes, "embedding_size": dim}
    if options.get("learn_beta"):
        if classes is None:
            raise ValueError(f"metric loss {name!r} needs classes to learn a beta for each, got None")
        arguments["num_classes"] = classes
    return getattr(_library("losses"), LIBRARY_LOSSES[name][0])(**arguments)


def _library_miner(mining: Mining, options: dict[str, Any]) -> nn.Module | None:
    """The library's miner; it measures as the loss does, where it may."""
    if mining == "all":
        return None
    miners = _library("miners")
    if mining == "distance_weighted":  # its density is that of distances on the unit sphere
        return miners.DistanceWeightedMiner()
    if mining == "multi_similarity":
        return miners.MultiSimilarityMiner()
    distance = _library("distances").LpDistance(normalize_embeddings=options.get("normalize", True))
    return miners.TripletMarginMiner(options.get("margin", 0.2), type_of_triplets=mining, distance=distance)
