"""Embedder: one tower, from images, or features of them, to points whose distances say how alike they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from xmodal.data.workers import read_ahead
from xmodal.encoders.backbone import BACKBONES, without_weights
from xmodal.inference import evaluating
from xmodal.names import build, storable
from xmodal.numerics import at_least_float32, check_count, normalize
from xmodal.pretrained import Pretrained

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float, Num
    from torch import Tensor

    from xmodal.data.labelled import LabelledSet


class Embedder(Pretrained, library_name="xmodal", license="apache-2.0"):
    """Embeds images for retrieval: a backbone, then a layer that is trained from scratch.

    Training takes the two apart: `features = embedder.backbone(images)`, then `embedder.embed(features)`. What
    `forward` gives is for retrieval.

    Args:
        backbone: `{"name": "torchvision", "network": "resnet50", ...}`, `{"name": "mlp", "input_dim": 1280}`, ...: the
            options of a backbone in `xmodal.encoders.backbone.BACKBONES`.
        dim: length of the embeddings.
        head: `linear` is one linear layer; `metric` is DAML's: two, with ReLU between, that start out as identity.
        normalize: whether embeddings for retrieval have length one, so that they are compared by cosine.

    Raises:
        ValueError: for an unknown name or option, with the nearest one that exists.

    Example:
        >>> import torch
        >>> from xmodal.embedder import Embedder
        >>> embedder = Embedder(backbone={"name": "mlp", "input_dim": 8, "hidden": [16]}, dim=4)
        >>> embedder(torch.randn(3, 8)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        dim: int = 512,
        head: Literal["linear", "metric"] = "linear",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = build("backbone", BACKBONES, backbone)
        known = {"input_dim": self.backbone.feature_dim, "dim": dim}
        self.embed = build("embedding head", HEADS, {"name": head}, known)
        self.dim, self.normalize = dim, normalize

    def forward(self, images: Num[Tensor, "image ..."]) -> Float[Tensor, "image dim"]:
        """Embeddings for retrieval, of pixels or of precomputed features, as the backbone wants them.

        Pixels of 8 bits are for the backbone to scale; all other numbers are cast to the embedder's type.
        """
        if images.is_floating_point():
            images = images.to(next(self.parameters()).dtype)
        embeddings = self.embed(self.backbone(images))
        return normalize(embeddings) if self.normalize else embeddings

    def embed_all(
        self, images: LabelledSet, *, batch_size: int = 128, workers: int = 0, progress: bool = False
    ) -> Float[Tensor, "image dim"]:
        """Embeddings for retrieval of all images of a set, in its order, in evaluation mode, on the CPU.

        They are of float32 at least, whatever the embedder computes in.

        Args:
            images: the set.
            batch_size: images embedded at once.
            workers: processes that read images ahead.
            progress: show a bar.
        """
        return embed_all(self, images, self.device, batch_size=batch_size, workers=workers, progress=progress)

    def _options_to_save(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "backbone": _storable_backbone(options["backbone"])}

    @classmethod
    def _options_to_load(cls, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "backbone": without_weights(options["backbone"])}


def _storable_backbone(options: dict[str, Any]) -> dict[str, Any]:
    if "backbone" in options:
        options = {**options, "backbone": _storable_backbone(options["backbone"])}
    return storable("backbone", BACKBONES, options)


def embed_all(
    module: nn.Module,
    images: LabelledSet,
    device: torch.device | str = "cpu",
    *,
    batch_size: int = 128,
    workers: int = 0,
    progress: bool = False,
) -> Float[Tensor, "image dim"]:
    """What a module, an embedder or a backbone alone, makes of all images of a set; see `Embedder.embed_all`.

    Example:
        >>> import torch
        >>> from xmodal.embedder import embed_all
        >>> from xmodal.data.labelled import LabelledFeatures
        >>> images = LabelledFeatures(torch.eye(3), ["1.jpg", "2.jpg", "3.jpg"], ["wren", "gull", "wren"], ["test"] * 3)
        >>> embed_all(torch.nn.Linear(3, 2), images, batch_size=2).shape
        torch.Size([3, 2])
    """
    check_count("batch_size", batch_size)
    # An own generator: embedding must not move the global one, or validating would change how training goes on.
    generator = torch.Generator()
    with read_ahead(images, workers, batch_size=batch_size, generator=generator) as batches:
        count = math.ceil(len(images) / batch_size)
        bar = tqdm(batches, "embedding", count, unit="batch", delay=2, leave=False, disable=not progress)
        return torch.cat([embed_batch(module, batch.images, device) for batch in bar])


def embed_batch(
    module: nn.Module, images: Num[Tensor, "image ..."], device: torch.device | str = "cpu"
) -> Float[Tensor, "image dim"]:
    """What a module, an embedder or a backbone alone, makes of a batch, in evaluation mode, on the CPU.

    Example:
        >>> import torch
        >>> from xmodal.embedder import embed_batch
        >>> embed_batch(torch.nn.Linear(3, 2), torch.eye(3)).requires_grad
        False
    """
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    with evaluating(module):
        # Pixels of 8 bits are for the backbone to scale; everything else comes as the module computes.
        return at_least_float32(module(images.to(device, dtype if images.is_floating_point() else None))).cpu()


def metric_head(input_dim: int, dim: int) -> nn.Sequential:
    """DAML's metric (Duan et al., CVPR 2018): linear, ReLU, linear, both layers identity at first.

    Example:
        >>> import torch
        >>> from xmodal.embedder import metric_head
        >>> metric_head(3, 2)(torch.tensor([[1.0, -2.0, 3.0]])).tolist()
        [[1.0, 0.0]]
    """
    layers = nn.Linear(input_dim, dim), nn.Linear(dim, dim)
    for layer in layers:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def linear_head(input_dim: int, dim: int) -> nn.Linear:
    """The linear layer that nearly all of metric learning puts on a backbone.

    Example:
        >>> from xmodal.embedder import linear_head
        >>> linear_head(1280, 512)
        Linear(in_features=1280, out_features=512, bias=True)
    """
    return nn.Linear(input_dim, dim)


HEADS = {"linear": linear_head, "metric": metric_head}
"""What makes embeddings of features, by the name that a configuration uses."""
