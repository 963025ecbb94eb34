"""Include and exclude loss (Wu et al., arXiv 1803.02504), jointly with softmax; center loss to compare it with.

The paper's equation is not public in what was at hand. Its abstract is: the distance of a sample to the center of its
class is forced, by a margin and in an exponential projection, below its mean distance to the centers of the other
classes. The three forms here are this project's readings of that sentence, and no value is a published one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.numerics import NotNegative, Positive, Range, Rate, Size, at_least_float32, check_count, check_number
from xmodal.objectives.choices import check_choice
from xmodal.objectives.metric import AS_GIVEN, check_labels

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

Classes = Annotated[int, Range(least=2, most=1_000_000)]
IEForm = Literal["magnet", "mean-distance", "exp-hinge"]


def include_exclude_loss(
    embeddings: Float[Tensor, "image dim"],
    labels: Int[Tensor, " image"],
    centers: Float[Tensor, "class dim"],
    *,
    form: IEForm = "magnet",
    margin: float = 1.0,
    variance: float | None = None,
) -> Float[Tensor, ""]:
    """Every image nearer to the center of its class than to the other centers on average, by a margin (our forms).

    With d_j the squared distance to center j, y the image's class and s = 1 / (2 variance), the mean over images of

    - `magnet`: [margin + s d_y + log mean_{j != y} exp(-s d_j)]_+, after magnet loss (Rippel et al. 2016);
    - `mean-distance`: [margin + d_y - mean_{j != y} d_j]_+, without the exponential;
    - `exp-hinge`: [margin + exp(-s mean_{j != y} d_j) - exp(-s d_y)]_+, where a margin of 1 or more never rests.

    Args:
        embeddings: of the images of a batch.
        labels: class of every image, a row of `centers`.
        centers: one for every training class, at least two.
        form: one of the three above.
        margin: in squared distances (`mean-distance`), log ratios (`magnet`) or similarities in 0..1 (`exp-hinge`).
        variance: of the exponential, in squared distances, > 0; None is the batch's mean d_y, held constant for the
            gradient.

    Raises:
        ValueError: for shapes that do not fit, labels without a center, fewer than two centers, an unknown form or a
            variance that is not positive.

    Example:
        >>> import torch
        >>> from xmodal.objectives import include_exclude_loss
        >>> centers = torch.tensor([[0.0], [3.0], [5.0]])
        >>> embeddings, labels = torch.tensor([[1.0]]), torch.tensor([0])
        >>> include_exclude_loss(embeddings, labels, centers, form="mean-distance", margin=10.0)  # 1 - (4 + 16) / 2
        tensor(1.)
    """
    check_choice("form", form, IEForm)
    if len(centers) < 2:
        raise ValueError(f"centers must be of at least two classes, got {len(centers)}")
    check_number("margin", margin, least=0)
    if variance is not None:
        check_number("variance", variance, above=0)
    included = _distances_to_own(embeddings, labels, centers)
    excluded = _distances_to_others(embeddings, labels, centers)
    if form == "mean-distance":
        return (margin + included - excluded.mean(dim=1)).clamp_min(0).mean()
    own_variance = included.detach().mean().clamp_min(torch.finfo(included.dtype).eps)
    scale = 0.5 / (own_variance if variance is None else variance)
    if form == "magnet":
        log_mean = (-scale * excluded).logsumexp(dim=1) - math.log(excluded.shape[1])
        return (margin + scale * included + log_mean).clamp_min(0).mean()
    similarities = (-scale * excluded.mean(dim=1)).exp() - (-scale * included).exp()
    return (margin + similarities).clamp_min(0).mean()


def center_loss(
    embeddings: Float[Tensor, "image dim"], labels: Int[Tensor, " image"], centers: Float[Tensor, "class dim"]
) -> Float[Tensor, ""]:
    """Half the mean squared distance of images to the centers of their classes (Wen et al., ECCV 2016).

    Args:
        embeddings: of the images of a batch.
        labels: class of every image, a row of `centers`.
        centers: one for every training class.

    Raises:
        ValueError: for shapes that do not fit and labels without a center.

    Example:
        >>> import torch
        >>> from xmodal.objectives import center_loss
        >>> center_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]), torch.tensor([[0.0], [3.0]]))
        tensor(0.2500)
    """
    return _distances_to_own(embeddings, labels, centers).mean() / 2


def moved_centers(
    centers: Float[Tensor, "class dim"],
    embeddings: Float[Tensor, "image dim"],
    labels: Int[Tensor, " image"],
    *,
    rate: float,
) -> Float[Tensor, "class dim"]:
    """Centers after a step of a moving average: those of the batch's classes move by `rate` toward its class means.

    Raises:
        ValueError: for shapes that do not fit or a rate that is not in (0, 1].

    Example:
        >>> import torch
        >>> from xmodal.objectives.ie import moved_centers
        >>> moved_centers(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]]), torch.tensor([1, 1]), rate=0.5)
        tensor([[0.],
                [1.]])
    """
    check_number("rate", rate, above=0, most=1)
    check_labels(embeddings, labels)
    labels = labels.long()
    counts = torch.bincount(labels, minlength=len(centers))[:, None]
    sums = torch.zeros_like(centers).index_add_(0, labels, embeddings.to(centers.dtype))
    return torch.where(counts > 0, centers.lerp(sums / counts.clamp_min(1), rate), centers)


class IncludeExclude(nn.Module):
    """Softmax cross entropy of a linear classifier on the embeddings, joined by `include_exclude_loss`.

    Args:
        dim: length of an embedding.
        classes: number of training classes, at least two.
        form: of `include_exclude_loss`, or `center` for `center_loss` in its place (the baseline).
        weight: of the loss on centers beside the cross entropy; 0 is plain softmax.
        margin: as for `include_exclude_loss`.
        variance: as for `include_exclude_loss`.
        center_rate: None learns the centers by gradient (a rate of their own is customary: center loss has 0.5); a
            number in (0, 1] moves them by `moved_centers` in training instead, before the loss of a batch is taken.

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> import torch
        >>> from xmodal.objectives import IncludeExclude
        >>> objective = IncludeExclude(dim=2, classes=3)
        >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 2])
        >>> objective(features, labels, embed=torch.nn.Linear(4, 2)).keys()
        dict_keys(['softmax', 'centers', 'total'])
    """

    centers: Tensor

    def __init__(
        self,
        dim: Size,
        classes: Classes,
        form: IEForm | Literal["center"] = "magnet",
        weight: NotNegative = 1.0,
        margin: NotNegative = 1.0,
        variance: Positive | None = None,
        center_rate: Rate | None = None,
    ) -> None:
        super().__init__()
        check_choice("form", form, [*get_args(IEForm), "center"])
        check_count("dim", dim)
        check_count("classes", classes, least=2)
        check_number("weight", weight, least=0)
        check_number("margin", margin, least=0)
        if variance is not None:
            check_number("variance", variance, above=0)
        if center_rate is not None:
            check_number("center_rate", center_rate, above=0, most=1)
        self.form: IEForm | Literal["center"] = form
        self.weight = weight
        self.margin = margin
        self.variance = variance
        self.center_rate = center_rate
        self.classifier = nn.Linear(dim, classes)
        centers = torch.randn(classes, dim) / math.sqrt(dim)
        if center_rate is None:
            self.centers = nn.Parameter(centers)
        else:
            self.register_buffer("centers", centers)

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
            ValueError: for shapes that do not fit and labels without a center.
        """
        embeddings = embed(features)
        check_labels(embeddings, labels, classes=len(self.centers))
        if self.training and self.center_rate is not None:
            self.centers.copy_(moved_centers(self.centers, embeddings.detach(), labels, rate=self.center_rate))
        # Centers that move are written to: what autograd keeps of a batch must not be what the next batch moves.
        centers = self.centers if self.center_rate is None else self.centers.clone()
        if self.form == "center":
            loss = center_loss(embeddings, labels, centers)
        else:
            options = {"form": self.form, "margin": self.margin, "variance": self.variance}
            loss = include_exclude_loss(embeddings, labels, centers, **options)
        softmax = F.cross_entropy(self.classifier(embeddings), labels.long())
        return {"softmax": softmax, "centers": loss, "total": softmax + self.weight * loss}


def _distances_to_own(embeddings: Tensor, labels: Tensor, centers: Tensor) -> Float[Tensor, " image"]:
    """Squared distances of images to the centers of their classes, in at least float32."""
    check_labels(embeddings, labels, classes=len(centers))
    if centers.shape[1:] != embeddings.shape[1:]:
        raise ValueError(
            f"centers must be (class, dim) with dim {embeddings.shape[1]} of the embeddings, got {tuple(centers.shape)}"
        )
    centers = at_least_float32(centers)
    return (embeddings.to(centers.dtype) - centers[labels.long()]).square().sum(dim=1)


def _distances_to_others(embeddings: Tensor, labels: Tensor, centers: Tensor) -> Float[Tensor, "image other"]:
    """Squared distances of images to the centers of all other classes, in at least float32.

    They come from one matrix product, from which small distances between vectors far from zero would take no right
    digit in float32: it is in float64, of what is left without the mean center.
    """
    dtype = at_least_float32(centers).dtype
    wide = dtype if centers.device.type == "mps" else torch.float64  # which has no float64
    origin = centers.detach().to(wide).mean(dim=0)
    e, c = embeddings.to(wide) - origin, centers.to(wide) - origin
    distances = e.square().sum(dim=1, keepdim=True) + c.square().sum(dim=1) - 2 * e @ c.T
    others = ~F.one_hot(labels.long(), len(centers)).bool()
    return distances[others].view(len(labels), -1).to(dtype)
