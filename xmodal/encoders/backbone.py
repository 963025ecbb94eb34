"""Backbones of image retrieval: from pixels, or from precomputed features, to one feature vector an image.

| name | what |
|---|---|
| `torchvision` | any classifier of torchvision without its last layer: `resnet50`, `googlenet`, `vit_b_16`, ... |
| `efficientnet-lite0` | EfficientNet-lite0, whose ImageNet weights come with a Python package |
| `mlp` | precomputed features, as they are or through hidden layers |
| `attended` | one of the first two, its intermediate maps pooled by attention |
| `projected` | any of these, then batch normalization, a linear layer and unit length (the trunk of DAML) |

A backbone takes the batch of a data set and has `feature_dim`. Pixels are uint8, or floats from 0 to 1; each backbone
normalizes them as it was trained to see them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from xmodal.encoders.levels import extract_levels, run_network
from xmodal.encoders.weights import torchvision_weights
from xmodal.inference import evaluating
from xmodal.names import build
from xmodal.numerics import DropShare, Size, normalize
from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Num
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BACKBONES: dict[str, Callable[..., nn.Module]] = {}
"""Backbones by the name that a configuration uses; filled at the end of this file."""

LAST_MAPS = ("layer4", "features", "permute", "encoder", "inception5b", "Mixed_7c")
"""Modules of torchvision's networks whose output is the last map; where a network has two of them, the later one."""

WITHOUT_EXTRAS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": False, "dropout": 0.0},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": False, "dropout": 0.0},
}
"""What torchvision's constructors must be told to make the network that its weights belong to, for features."""


class TorchvisionBackbone(nn.Module):
    """A network of torchvision up to the input of its last linear layer, the classifier.

    Args:
        network: torchvision's name for it: `resnet50` (He et al., CVPR 2016), `googlenet` (Szegedy et al., CVPR 2015),
            `vit_b_16` (Dosovitskiy et al., ICLR 2021), ...
        weights: torchvision's name for pretrained weights, which must be in its cache (`DEFAULT` for the best), or a
            file with the state dict; None leaves them random.
        freeze_batch_norm: keep the statistics, scales and offsets of batch normalization as they are while training.
        levels: modules whose outputs `maps` gives: `layer3`, `layer4` of a ResNet, `inception4e`, `inception5b` of
            GoogLeNet, `encoder.layers.encoder_layer_7` of a ViT.

    Raises:
        FileNotFoundError: the weights are not on this machine; the message says what to download.
        ValueError: torchvision has no such network, the network no such weights or level, a level is no map, or the
            file holds other weights.

    >>> backbone = TorchvisionBackbone("mobilenet_v3_small", weights=None, levels=["features.8"]).eval()
    >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    >>> backbone.feature_dim, backbone(images).shape, backbone.maps(images)[0].shape
    (1024, torch.Size([2, 1024]), torch.Size([2, 48, 4, 4]))
    """

    def __init__(
        self,
        network: str = "resnet50",
        weights: str | None = "DEFAULT",
        freeze_batch_norm: bool = False,
        levels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        model = _torchvision_model(network, weights)
        self.feature_dim = _drop_last_linear(network, model)
        self.network, self._levels = extract_levels(network, model, levels, with_end=True)
        self.freeze_batch_norm = freeze_batch_norm
        if freeze_batch_norm:
            for layer in self._batch_norms():
                layer.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Num[Tensor, "image 3 height width"]) -> Float[Tensor, "image feature"]:
        """What the classifier would get.

        Raises:
            ValueError: the network does not take images of this size.
        """
        return run_network(self.network, self._pixels(images))[self._levels.end]

    def maps(self, images: Num[Tensor, "image 3 height width"]) -> list[Float[Tensor, "image dim height width"]]:
        """The outputs of `levels`; those of a transformer as maps of its patches.

        Raises:
            ValueError: the network does not take images of this size.
        """
        return self._levels.maps(run_network(self.network, self._pixels(images)))

    def train(self, mode: bool = True) -> TorchvisionBackbone:
        """As usual, but frozen batch normalization stays in evaluation mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            for layer in self._batch_norms():
                layer.eval()
        return self

    def _pixels(self, images: Num[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3 height width"]:
        """Normalized, in the precision of the weights."""
        pixels = imagenet_pixels(images)
        return pixels.to(next(self.parameters(), pixels).dtype)

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class EfficientNetBackbone(nn.Module):
    """EfficientNet-lite0 (Tan and Le, ICML 2019) with ImageNet weights from a Python package.

    Batch normalization is folded into the convolutions, and so frozen; everything else can be trained. Width and height
    of the images are multiples of 32.

    Raises:
        ModuleNotFoundError: the network or its weights are not installed; the message says what to install.

    >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    >>> EfficientNetBackbone()(images).shape
    torch.Size([2, 1280])
    """

    feature_dim = 1280

    def __init__(self) -> None:
        super().__init__()
        from xmodal.encoders.extractors import EfficientNetLite0

        # The side matters only to its reading of image files, which is not used here.
        self.network = EfficientNetLite0(input_size=224)

    def forward(self, images: Num[Tensor, "image 3 height width"]) -> Float[Tensor, "image 1280"]:
        """The mean of the last map.

        Raises:
            ValueError: width or height is no multiple of 32.
        """
        return self.maps(images)[-1].mean(dim=(2, 3))

    def maps(self, images: Num[Tensor, "image 3 height width"]) -> list[Float[Tensor, "image dim height width"]]:
        """Three maps: of parts (112 dims, a 16th of the size), of wholes (320, a 32nd) and the last (1280, a 32nd).

        Raises:
            ValueError: width or height is no multiple of 32.
        """
        pixels = (unit_pixels(images) * 255 - 127) / 128
        parts, wholes = self.network(pixels.to(next(self.parameters()).dtype))
        return [parts, wholes, self.network.final(wholes)]


class MLP(nn.Module):
    """Precomputed features, as they are or through hidden layers with ReLU: for machines without a GPU.

    Args:
        input_dim: length of the features.
        hidden: width of each hidden layer, the last of which is the result; none leaves the features as they are.
        dropout: share of values dropped after each hidden layer.

    >>> MLP(1280, hidden=[512])(torch.randn(2, 1280)).shape
    torch.Size([2, 512])
    """

    def __init__(self, input_dim: Size, hidden: Sequence[int] = (), dropout: DropShare = 0.0) -> None:
        super().__init__()
        self.input_dim = input_dim
        widths = [input_dim, *hidden]
        self.feature_dim = widths[-1]
        layers = [
            nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout))
            for before, after in zip(widths, hidden, strict=False)
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Float[Tensor, "image input_dim"]) -> Float[Tensor, "image feature"]:
        """Features of features.

        Raises:
            ValueError: they have another length.
        """
        if features.ndim != 2 or features.shape[1] != self.input_dim:
            raise ValueError(
                f"features have shape {tuple(features.shape)}; wanted (image, {self.input_dim}). "
                "Set input_dim to the length of the features in the file."
            )
        return self.layers(features)


class AttentionPool(nn.Module):
    """One vector of a map: its positions weighted by what they show.

    The weight of a position is the softmax, over the map, of a linear function of the vector there. It starts out the
    same everywhere, as average pooling.

    Args:
        dim: channels of the map.

    >>> pool = AttentionPool(dim=2)
    >>> fmap = torch.arange(8.0).view(1, 2, 2, 2)
    >>> pool(fmap).tolist(), pool.attention(fmap).tolist()
    ([[1.5, 5.5]], [[[0.25, 0.25], [0.25, 0.25]]])
    """

    def __init__(self, dim: Size) -> None:
        super().__init__()
        self.score = nn.Conv2d(dim, 1, kernel_size=1, bias=False)
        nn.init.zeros_(self.score.weight)

    def attention(self, fmap: Float[Tensor, "image dim height width"]) -> Float[Tensor, "image height width"]:
        """The weight of every position; those of an image sum to one."""
        scores = self.score(fmap).squeeze(1)
        return scores.flatten(1).softmax(dim=1).view_as(scores)

    def forward(self, fmap: Float[Tensor, "image dim height width"]) -> Float[Tensor, "image dim"]:
        """The weighted mean."""
        return torch.einsum("idhw,ihw->id", fmap, self.attention(fmap))


class AttendedBackbone(nn.Module):
    """General discriminative features: attention over intermediate maps (Al-Kaabi et al., arXiv 2106.06420).

    Each level's map is pooled by attention of its own and scaled to a root mean square of one, so that none drowns the
    others; the vectors are joined. The paper's equations are not public: this form is our reading of its abstract
    (feature maps of intermediate layers, made more discriminative by attention).

    Args:
        backbone: options of a backbone with `maps`: `torchvision` with `levels`, or `efficientnet-lite0`.

    Raises:
        ValueError: the backbone has no maps, or none were chosen.

    >>> network = {"name": "torchvision", "network": "mobilenet_v3_small", "weights": None}
    >>> backbone = AttendedBackbone({**network, "levels": ["features.3", "features.8"]})
    >>> backbone.eval()(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape, backbone.feature_dim
    (torch.Size([2, 72]), 72)
    """

    parts: ClassVar[dict[str, Any]] = {"backbone": BACKBONES}
    """The options that are options of something else."""

    def __init__(self, backbone: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = build("backbone", BACKBONES, backbone)
        if not hasattr(self.backbone, "maps"):
            raise ValueError(f"backbone {backbone['name']!r} has no intermediate maps to attend to")
        dims = _map_dims(self.backbone)
        if not dims:
            raise ValueError(f"no levels to attend to; give backbone {backbone['name']!r} levels, as [layer3, layer4]")
        self.pools = nn.ModuleList([AttentionPool(dim) for dim in dims])
        self.feature_dim = sum(dims)

    def forward(self, images: Num[Tensor, "image 3 height width"]) -> Float[Tensor, "image feature"]:
        """The pooled levels, one after the other."""
        pooled = [pool(fmap) for pool, fmap in zip(self.pools, self.backbone.maps(images), strict=True)]
        return torch.cat([nn.functional.rms_norm(level, level.shape[-1:], eps=1e-12) for level in pooled], dim=1)


class ProjectedBackbone(nn.Module):
    """A backbone, batch normalization, a linear layer, unit length: what DAML calls a feature (Duan et al., CVPR 2018).

    Args:
        backbone: options of the backbone.
        dim: length of the features.

    >>> backbone = ProjectedBackbone({"name": "mlp", "input_dim": 1280}, dim=64)
    >>> backbone(torch.randn(4, 1280)).norm(dim=1).allclose(torch.ones(4))
    True
    """

    parts: ClassVar[dict[str, Any]] = {"backbone": BACKBONES}
    """The options that are options of something else."""

    def __init__(self, backbone: dict[str, Any], dim: Size = 512) -> None:
        super().__init__()
        self.backbone = build("backbone", BACKBONES, backbone)
        self.norm = nn.BatchNorm1d(self.backbone.feature_dim)
        self.linear = nn.Linear(self.backbone.feature_dim, dim)
        self.feature_dim = dim

    def forward(self, images: Num[Tensor, "image ..."]) -> Float[Tensor, "image dim"]:
        """Features of length one."""
        return normalize(self.linear(self.norm(self.backbone(images))))


BACKBONES |= {
    "torchvision": TorchvisionBackbone,
    "efficientnet-lite0": EfficientNetBackbone,
    "mlp": MLP,
    "attended": AttendedBackbone,
    "projected": ProjectedBackbone,
}


class MapNetwork(nn.Module):
    """A network of torchvision up to one map of the image; nothing of what comes after is kept.

    Args:
        network: as for `TorchvisionBackbone`.
        weights: as for `TorchvisionBackbone`.
        level: the module whose output is the map; None for the last one.

    Raises:
        FileNotFoundError: the weights are not on this machine; the message says what to download.
        ValueError: there is no such network, level or weights, the level is no map, or images are of a size that the
            network does not take.

    >>> network = MapNetwork("mobilenet_v3_small", weights=None, level="features.8")
    >>> network.dim, network(torch.zeros(2, 3, 64, 64)).shape
    (48, torch.Size([2, 48, 4, 4]))
    """

    def __init__(self, network: str, weights: str | None = "DEFAULT", level: str | None = None) -> None:
        super().__init__()
        model = _torchvision_model(network, weights)
        last = [name for name, _ in model.named_children() if name in LAST_MAPS]
        if level is None and not last:
            raise ValueError(f"which module of {network} gives its last map is not known; name one as the level")
        level = last[-1] if level is None else level
        self.network, self._levels = extract_levels(network, model, [level])
        self.dim = self._levels.dims[0]

    def forward(self, images: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image dim height width"]:
        """The map of normalized images; of a transformer that of its patches."""
        return self._levels.maps(run_network(self.network, images))[0]


def without_weights(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a backbone, changed so that building it reads no weights that are about to be replaced.

    >>> without_weights({"name": "projected", "backbone": {"name": "torchvision", "network": "resnet50"}})
    {'name': 'projected', 'backbone': {'name': 'torchvision', 'network': 'resnet50', 'weights': None}}
    """
    if "backbone" in options:
        return {**options, "backbone": without_weights(options["backbone"])}
    return {**options, "weights": None} if options.get("name") == "torchvision" else options


def unit_pixels(images: Num[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3 height width"]:
    """Pixels from 0 to 1.

    Raises:
        ValueError: these are not three color channels, or neither uint8 nor floating point.

    >>> unit_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)).flatten()
    tensor([0.0000, 0.2000, 1.0000])
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; wanted (image, 3, height, width). "
            "Precomputed features need the backbone 'mlp'."
        )
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}; wanted torch.uint8 from 0 to 255, as images.to(torch.uint8) gives, or "
            "floating point from 0 to 1"
        )
    return images


def imagenet_pixels(images: Num[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3 height width"]:
    """Pixels as the networks of torchvision were trained to see them.

    >>> mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    >>> imagenet_pixels(mean).flatten()
    tensor([0., 0., 0.])
    """
    pixels = unit_pixels(images)
    mean, std = (pixels.new_tensor(channel).view(3, 1, 1) for channel in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def _torchvision_model(network: str, weights: str | None) -> nn.Module:
    """A classifier of torchvision without what only its training needs."""
    from torchvision.models import get_model, list_models

    known = list_models()
    if network not in known:
        raise ValueError(f"torchvision has no network {network!r}{near_miss(network, known)}")
    model = get_model(network, weights=None, **WITHOUT_EXTRAS.get(network, {}))
    if weights is not None:
        _load_weights(model, network, weights)
    return model


def _load_weights(model: nn.Module, network: str, weights: str) -> None:
    from torchvision.models import get_model_weights

    names = [entry.name for entry in get_model_weights(network)]
    by_name = weights == "DEFAULT" or weights in names
    if not by_name and not Path(weights).suffix:
        raise ValueError(
            f"{network} has no weights {weights!r}{near_miss(weights, names)}; known: DEFAULT, {', '.join(names)}, or "
            "a file with the state dict"
        )
    entry = get_model_weights(network)[weights if by_name else "DEFAULT"]
    state = torchvision_weights(entry, None if by_name else weights)
    # Auxiliary classifiers help training and are no part of the features.
    state = {name: tensor for name, tensor in state.items() if not name.lower().startswith("aux")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not hold the weights of {network}: {error}") from error


def _drop_last_linear(network: str, model: nn.Module) -> int:
    """Put nothing in the place of the classifier; returns the length of what it got."""
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{network} does not end in a linear layer, so where its features are is unknown")
    path, layer = linear[-1]
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    return layer.in_features


def _map_dims(backbone: Any) -> list[int]:
    """Channels of each map, found by looking at nothing."""
    with evaluating(backbone):
        return [fmap.shape[1] for fmap in backbone.maps(torch.zeros(1, 3, 224, 224))]
