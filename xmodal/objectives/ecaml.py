"""Energy confusion (Chen & Deng, AAAI 2019): the embedding layer pulls together classes that a metric loss parts.

The paper's equations were not at hand; the released code (chenbinghui1/ECAML) is followed. The metric loss moves the
backbone and the embedding layer; confusion moves the embedding layer alone. That is the whole of the adversarial part:
one backward pass, nothing reversed, nothing alternated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from xmodal.numerics import NotNegative, Size, at_least_float32, check_count, check_number
from xmodal.objectives.choices import check_choice
from xmodal.objectives.metric import AS_GIVEN, METRIC_LOSSES, check_labels, metric_loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

EnergyForm = Literal["log", "expectation"]


def energy_confusion_loss(
    embeddings: Float[Tensor, "image dim"],
    labels: Int[Tensor, " image"],
    *,
    form: EnergyForm = "log",
    negatives: int | None = None,
    same_class: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """How far apart the classes of a batch are: E, half the mean squared distance of images of different classes.

    Args:
        embeddings: of the images of a batch, not normalized.
        labels: class of every image.
        form: `log` is log E, whose gradient is dE / E, as in the released code; `expectation` is E itself.
        negatives: None takes every pair of different classes. A number takes, of every image except the last
            2 * negatives, so many pairs with images at least two places later in the batch, drawn at random, and
            keeps those of different classes (released: 10). E is then still divided by the number of all pairs of
            different classes in the batch, as released, and so smaller; the gradient of log E does not depend on it.
        same_class: whether the pairs of one class count too, divided by the number of all pairs of one class in the
            batch, as released. With two images of each class side by side, no such pair is ever drawn.
        generator: draws the pairs; None is torch's global generator of the device.

    Raises:
        ValueError: as `check_labels`, for an unknown form, or if no pair is left.

    Example:
        >>> import torch
        >>> from xmodal.objectives import energy_confusion_loss
        >>> embeddings = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
        >>> energy_confusion_loss(embeddings, torch.tensor([0, 0, 1]), form="expectation")  # 4 / 2 for both pairs
        tensor(2.)
        >>> energy_confusion_loss(embeddings, torch.tensor([0, 0, 1]))
        tensor(0.6931)
    """
    check_choice("form", form, EnergyForm)
    check_labels(embeddings, labels)
    pairs = torch.ones(len(labels), len(labels), dtype=torch.bool, device=labels.device).triu(1)
    same = labels[:, None] == labels[None, :]
    selected = pairs if same_class else pairs & ~same
    if negatives is not None:
        selected = selected & _drawn_pairs(len(labels), negatives, labels.device, generator)
    if not selected.any():
        kind = "" if same_class else " of different classes"
        raise ValueError(f"no pair of images{kind} to confuse, got labels {labels.tolist()}")
    embeddings = at_least_float32(embeddings)
    energy = _half_mean_square(embeddings, selected & ~same, pairs & ~same)
    if same_class:
        energy = energy + _half_mean_square(embeddings, selected & same, pairs & same)
    return energy if form == "expectation" else energy.clamp_min(torch.finfo(energy.dtype).tiny).log()


def row_norm_penalty(weight: Float[Tensor, "dim feature"]) -> Float[Tensor, ""]:
    """Mean over a layer's rows w of (|w|^2 - 1)^2, which asks for unit rows (released with ECAML, after BIER).

    Example:
        >>> import torch
        >>> from xmodal.objectives import row_norm_penalty
        >>> row_norm_penalty(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor(0.5000)
    """
    return (weight.square().sum(dim=1) - 1).square().mean()


class EnergyConfusion(nn.Module):
    """A metric loss with `energy_confusion_loss` on top: the objective of ECAML.

    The features are detached before confusion, so that its gradient reaches the embedding layer and never the
    backbone, as released. The embedding layer runs twice a step; it should have no dropout and no batch norm.

    Args:
        metric: the metric loss by `name` with its options, see `MetricLoss`; released: binomial, N-pair or triplet.
        dim: length of an embedding.
        classes: number of training classes.
        weight: of the confusion; 0.13 in the released setting for Cars with the binomial loss.
        form: as for `energy_confusion_loss`.
        negatives: as for `energy_confusion_loss`; 10 in the released code, drawn from torch's global generator.
        same_class: as for `energy_confusion_loss`; True in the released code.
        row_weight: of `row_norm_penalty` on the embedding layer; 0.5 in the released code, 0 leaves it out.

    The released embedding layer learns at 10 times the backbone's rate, its bias at 20 times.

    Raises:
        ValueError: as `MetricLoss`, or for an unknown form.

    Example:
        >>> import torch
        >>> from xmodal.objectives import EnergyConfusion
        >>> objective = EnergyConfusion({"name": "binomial"})
        >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> objective(features, labels, embed=torch.nn.Linear(4, 2)).keys()
        dict_keys(['metric', 'confusion', 'row_norm', 'total'])
    """

    parts: ClassVar[dict[str, Any]] = {"metric": METRIC_LOSSES}
    """The options that are options of something else."""

    def __init__(
        self,
        metric: Mapping[str, Any],
        dim: Size | None = None,
        classes: Size | None = None,
        weight: NotNegative = 0.13,
        form: EnergyForm = "log",
        negatives: Size | None = None,
        row_weight: NotNegative = 0.5,
        same_class: bool = False,
    ) -> None:
        super().__init__()
        check_choice("form", form, EnergyForm)
        check_number("weight", weight, least=0)
        check_number("row_weight", row_weight, least=0)
        if negatives is not None:
            check_count("negatives", negatives)
        self.metric = metric_loss(metric, dim, classes)
        self.weight = weight
        self.form: EnergyForm = form
        self.negatives = negatives
        self.row_weight = row_weight
        self.same_class = same_class

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
            ValueError: as `energy_confusion_loss`, or if the rows of an `embed` that is not a Linear are asked for.
        """
        if self.row_weight and not isinstance(embed, nn.Linear):
            raise ValueError(
                f"row_weight is for an embedding layer that is a Linear, got {type(embed).__name__}; set row_weight: 0"
            )
        terms = {
            "metric": self.metric(embed(features), labels),
            "confusion": energy_confusion_loss(
                embed(features.detach()),
                labels,
                form=self.form,
                negatives=self.negatives,
                same_class=self.same_class,
            ),
        }
        total = terms["metric"] + self.weight * terms["confusion"]
        if isinstance(embed, nn.Linear) and self.row_weight:
            terms["row_norm"] = row_norm_penalty(embed.weight)
            total = total + self.row_weight * terms["row_norm"]
        return {**terms, "total": total}


def _half_mean_square(
    embeddings: Float[Tensor, "image dim"], selected: Bool[Tensor, "image image"], pairs: Bool[Tensor, "image image"]
) -> Float[Tensor, ""]:
    """Half the squared distances of the selected pairs, over how many pairs there are."""
    first, second = selected.nonzero(as_tuple=True)
    return (embeddings[first] - embeddings[second]).square().sum() / (2 * pairs.sum().clamp_min(1))


def _drawn_pairs(
    images: int, negatives: int, device: torch.device, generator: torch.Generator | None
) -> Bool[Tensor, "image image"]:
    """Of every image except the last 2 * negatives, `negatives` pairs with images at least two places later."""
    if not 0 < 2 * negatives < images:
        raise ValueError(f"negatives must be at least 1 and less than half the batch of {images}, got {negatives}")
    keys = torch.rand(images, images, device=device, generator=generator)
    places = torch.arange(images, device=device)
    keys = keys.masked_fill(places[None, :] < places[:, None] + 2, -1)[: images - 2 * negatives]
    drawn = torch.zeros(images, images, dtype=torch.bool, device=device)
    drawn[: len(keys)].scatter_(1, keys.topk(negatives, dim=1).indices, True)
    return drawn
