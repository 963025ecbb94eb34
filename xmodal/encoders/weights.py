"""Weights that are on this machine already; nothing here downloads any."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from xmodal.data.torch_files import load_weights


def torchvision_weights(weights: Any, given: str | Path | None) -> dict[str, torch.Tensor]:
    """The state dict of a torchvision model: of the file given, or of torchvision's cache.

    Args:
        weights: the model's weights by torchvision's name for them, such as `ResNet50_Weights.IMAGENET1K_V2`.
        given: a file, instead of the one in the cache.

    Raises:
        FileNotFoundError: the file is not there; the message says what to download and where to put it.

    >>> from torchvision.models import ResNet50_Weights
    >>> torch.save({"fc.bias": torch.zeros(2)}, "mine.pth")
    >>> torchvision_weights(ResNet50_Weights.IMAGENET1K_V2, "mine.pth")
    {'fc.bias': tensor([0., 0.])}
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    path = cached if given is None else Path(given)
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}. Download {weights.url} and put the file at {cached}, "
            "or say where it is with the option `weights`: --weights, or in training that of the part, "
            "--model.image.weights or --model.backbone.weights."
        )
    return load_weights(path)


def load_pretrained(kind: Any, weights: str | Path) -> Any:
    """A transformers model, or what belongs to one: of a folder, or of Hugging Face's cache.

    Args:
        kind: a class of transformers with `from_pretrained`, such as `AutoModel`.
        weights: a folder, or the name of a model on the hub.

    Raises:
        FileNotFoundError: it is in neither place; the message says what to download and where to put it.

    >>> from transformers import AutoConfig, BertConfig
    >>> BertConfig(hidden_size=12).save_pretrained("bert")
    >>> load_pretrained(AutoConfig, "bert").hidden_size
    12
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        return kind.from_pretrained(weights, local_files_only=True)
    except OSError as error:
        name = weights if len(Path(weights).parts) == 2 and not Path(weights).is_absolute() else "NAME"
        raise FileNotFoundError(
            f"no model at {weights}, neither as a folder with config.json, preprocessor_config.json and "
            f"model.safetensors nor in the cache at {HF_HUB_CACHE}. Download it into the cache with `hf download "
            f"{name}`, or into a folder with `hf download {name} --local-dir FOLDER` and give --weights FOLDER."
        ) from error
