"""Readers of what others left behind: checkpoints (`*.pth.tar`), those of SCAN, BFAN and VSRN here, and vocabularies.

Such files are pickles, most of them written by Python 2, and a pickle can run any code. Nothing here does: torch's
restricted unpickler reads the checkpoints and `xmodal.data.unpickling` the vocabularies, and what either does not
understand is refused by name.
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from xmodal.data.torch_files import load_torch
from xmodal.data.unpickling import PlainUnpickler, Refused
from xmodal.data.vocabulary import SPECIAL_WORDS, Vocabulary, in_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

Architecture = Literal["scan", "bfan", "vsrn"]
"""Those that are read here; `xmodal.data.released` reads the later ones."""

PARTS = ("image", "text", "sim", "criterion")
"""What the models of a checkpoint are called here, in their order."""

NORMALIZATIONS = {
    "softmax": "softmax",
    "l2norm": "l2",
    "clipped_l2norm": "clipped_l2",
    "l1norm": "l1",
    "clipped_l1norm": "clipped_l1",
    "clipped": "clipped",
    "no_norm": "none",
}
"""SCAN's `raw_feature_norm` in our words."""

AGGREGATIONS = {"LogSumExp": "logsumexp", "Mean": "mean", "Max": "max", "Sum": "sum"}
"""SCAN's `agg_func` in our words."""

PUBLISHED_NAMES = (
    (r"image_encoder\.projection\.parametrizations\.weight\.original0", "image:fc.weight_g"),
    (r"image_encoder\.projection\.parametrizations\.weight\.original1", "image:fc.weight_v"),
    (r"image_encoder\.projection\.(\w+)", r"image:fc.\1"),
    (r"head\.graph\.(\d+)\.subject\.(\w+)", r"image:Rs_GCN_{layer}.theta.\2"),
    (r"head\.graph\.(\d+)\.object\.(\w+)", r"image:Rs_GCN_{layer}.phi.\2"),
    (r"head\.graph\.(\d+)\.value\.(\w+)", r"image:Rs_GCN_{layer}.g.\2"),
    (r"head\.graph\.(\d+)\.output\.(\w+)", r"image:Rs_GCN_{layer}.W.0.\2"),
    (r"head\.graph\.(\d+)\.norm\.(\w+)", r"image:Rs_GCN_{layer}.W.1.\2"),
    (r"head\.rnn\.(\w+)", r"image:img_rnn.\1"),
    (r"head\.pooled_norm\.(\w+)", r"image:bn.\1"),
    (r"text_encoder\.embedding\.weight", "text:embed.weight"),
    (r"text_encoder\.rnn\.(\w+)", r"text:rnn.\1"),
)
"""Names of a Matcher's parameters and buffers, and of the same in a released checkpoint: model, colon, name.

`{layer}` stands for the number of the graph layer, which the released code counts from 1.
"""


class LegacyCheckpoint(NamedTuple):
    """What a released checkpoint holds: weights by published name (see `PUBLISHED_NAMES`) and training options."""

    path: Path
    weights: dict[str, Tensor]
    options: dict[str, Any]

    def weight(self, name: str) -> Tensor:
        """A weight by its published name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.weights:
            raise ValueError(f"{self.path} has no weight {name}; is it a checkpoint of another architecture?")
        return self.weights[name]


def load_checkpoint(path: str | Path) -> LegacyCheckpoint:
    """Read a released checkpoint, of Python 2 or 3, without running code from it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file asks for anything but tensors, plain values and `argparse.Namespace`, cannot be read, or
            is not laid out as a checkpoint of any architecture that is known here.

    >>> weights = [{"fc.weight": torch.ones(4, 8)}, {"embed.weight": torch.ones(10, 3)}]
    >>> torch.save({"model": weights, "opt": argparse.Namespace(lambda_softmax=9.0)}, "model.pth.tar")
    >>> checkpoint = load_checkpoint("model.pth.tar")
    >>> checkpoint.weight("image:fc.weight").shape, checkpoint.options
    (torch.Size([4, 8]), {'lambda_softmax': 9.0})
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        record = load_torch(path)
    except Refused as error:
        raise ValueError(
            f"{path} is refused: {error}. A checkpoint needs tensors, plain values and "
            "argparse.Namespace only; save it again with these."
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        if isinstance(error, UnicodeDecodeError):
            raise ValueError(
                f"{path} holds byte strings of Python 2 that are no text, numpy's numbers for one, which torch does "
                "not read safely. Load it where you trust it and save 'model' and 'opt' again, without them."
            ) from error
        raise ValueError(f"{path} cannot be read as a torch checkpoint: {error}") from error
    return _laid_out(path, record)


def _laid_out(path: Path, record: Any) -> LegacyCheckpoint:
    """The parts of a checkpoint's record."""
    models: Any = record.get("model") if isinstance(record, dict) else None
    if isinstance(models, dict):
        models = _parts_of_one(models)
    several = isinstance(models, (list, tuple)) and 2 <= len(models) <= len(PARTS)
    if not (several and all(isinstance(m, dict) for m in models)):
        found = f"keys {sorted(map(str, record))}" if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{path} holds {found}; wanted 'model': [image weights, text weights, ...] and 'opt'")
    options = record.get("opt", record.get("args", {}))
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    if not isinstance(options, dict):
        raise ValueError(f"{path}: 'opt' is a {type(options).__name__}; wanted an argparse.Namespace or a dict")
    weights = {
        f"{part}:{_bare(name)}": value
        for part, model in zip(PARTS, models, strict=False)
        for name, value in model.items()
    }
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: {name} is a {type(value).__name__}; wanted a tensor")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    return LegacyCheckpoint(path, weights, plain)


def _parts_of_one(model: dict[Any, Any]) -> list[dict[str, Any]]:
    """The parts of a model that was saved as one (ADAPT); a second name of the same weights is left out."""
    prefixes = ("img_enc.", "txt_enc.", "similarity.similarity.", "")
    parts: list[dict[str, Any]] = [{} for _ in prefixes]
    for name, value in model.items():
        bare = _bare(name)
        twin = model.get(f"module.{bare.removeprefix('ml_')}", model.get(bare.removeprefix("ml_")))
        if bare.startswith("ml_similarity.") and _are_equal(value, twin):
            continue
        place = next(place for place, prefix in enumerate(prefixes) if bare.startswith(prefix))
        parts[place][bare.removeprefix(prefixes[place])] = value
    return parts


def _are_equal(one: Any, other: Any) -> bool:
    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return tensors and one.shape == other.shape and torch.equal(one, other)


def _bare(name: Any) -> str:
    """A weight's name without what `DataParallel` put in front of it."""
    return str(name).removeprefix("module.")


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Read a released vocabulary, json or pickled; every word keeps its number.

    A pickle, of any protocol and of Python 2 or 3, holds an object of a class called Vocabulary, or a dict, that has
    `word2idx`, or `word2idx` alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a pickle asks for another class or holds no vocabulary, or its numbers are not 0, 1, 2, ...

    >>> Vocabulary(["a", "dog"]).save("vocabulary.json")
    >>> load_vocabulary("vocabulary.json").words
    ['<pad>', '<start>', '<end>', '<unk>', 'a', 'dog']
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no vocabulary at {path}")
    with path.open("rb") as file:
        start = file.read(4)
    if start.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")[:1] in (b"{", b"["):
        return Vocabulary.load(path)
    record = _unpickled(path)
    number = getattr(record, "word2idx", record)
    number = number.get("word2idx", number) if isinstance(number, dict) else None
    try:
        words = in_order(number)
    except ValueError as error:
        raise ValueError(f"{path} holds no vocabulary: {error}") from error
    if absent := [word for word in SPECIAL_WORDS if word not in words]:
        raise ValueError(f"{path} lacks the special words {absent}")
    return Vocabulary(words)


def _unpickled(path: Path) -> Any:
    """What a pickled vocabulary holds. Text of Python 2 is UTF-8, as far as it can be read so."""
    data = path.read_bytes()
    try:
        try:
            return PlainUnpickler(io.BytesIO(data), classes=("Vocabulary",), encoding="utf-8").load()
        except UnicodeDecodeError:
            return PlainUnpickler(io.BytesIO(data), classes=("Vocabulary",), encoding="latin1").load()
    except Refused as error:
        raise ValueError(f"{path} is refused: {error}. A vocabulary needs the class Vocabulary only.") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{path} cannot be read as a pickled vocabulary: {error}") from error


def matcher_options(
    checkpoint: LegacyCheckpoint, architecture: Architecture, given: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """The arguments `image`, `text` and `head` of the `xmodal.model.Matcher` that a checkpoint was trained as.

    Sizes and flavors are read off the weights; what they do not tell, off the training options.

    Args:
        checkpoint: from `load_checkpoint`.
        architecture: `scan`, `bfan` or `vsrn`.
        given: training options, by their published names, that the checkpoint does not hold.

    Raises:
        ValueError: an option is missing, contradicts the one given or has a value that cannot be imported, or the
            weights are not those of such a model.

    >>> weights = {
    ...     "image:fc.weight": torch.ones(4, 8),
    ...     "text:embed.weight": torch.ones(10, 3),
    ...     "text:rnn.weight_ih_l0": torch.ones(12, 3),
    ...     "text:rnn.weight_hh_l0": torch.ones(12, 4),
    ... }
    >>> options = {"focal_type": "prob", "lambda_softmax": 20.0, "no_imgnorm": False, "no_txtnorm": False}
    >>> matcher_options(LegacyCheckpoint(Path("bfan.pth.tar"), weights, options), "bfan")["head"]
    {'name': 'bfan', 'focal': 'prob', 'temperature': 20.0}
    """
    weights, options = checkpoint.weights, PublishedOptions(checkpoint, given or {})
    weight_norm = "image:fc.weight_v" in weights
    projection = checkpoint.weight("image:fc.weight_v" if weight_norm else "image:fc.weight")
    # VSRN's head normalizes for itself.
    normalize_regions, normalize_words = (
        (False, False) if architecture == "vsrn" else (not options["no_imgnorm"], not options["no_txtnorm"])
    )
    return {
        "image": {
            "name": "regions",
            "input_dim": projection.shape[1],
            "dim": projection.shape[0],
            "normalize": normalize_regions,
            "weight_norm": weight_norm,
        },
        "text": {
            "name": "gru",
            **gru_sizes(checkpoint, "text:rnn"),
            "word_dim": checkpoint.weight("text:embed.weight").shape[1],
            "normalize": normalize_words,
        },
        "head": {"name": architecture, **_HEAD_OPTIONS[architecture](checkpoint, options)},
    }


def gru_sizes(checkpoint: LegacyCheckpoint, name: str) -> dict[str, Any]:
    """The sizes of a GRU, read off its weights: `dim`, `layers` and whether it is `bidirectional`.

    >>> weights = {"text:rnn.weight_hh_l0": torch.ones(12, 4), "text:rnn.weight_ih_l0": torch.ones(12, 3)}
    >>> gru_sizes(LegacyCheckpoint(Path("scan.pth.tar"), weights, {}), "text:rnn")
    {'dim': 4, 'bidirectional': False, 'layers': 1}
    """
    return {
        "dim": checkpoint.weight(f"{name}.weight_hh_l0").shape[1],
        "bidirectional": f"{name}.weight_ih_l0_reverse" in checkpoint.weights,
        "layers": sum(
            re.fullmatch(re.escape(name) + r"\.weight_ih_l\d+", known) is not None for known in checkpoint.weights
        ),
    }


def matcher_weights(
    checkpoint: LegacyCheckpoint,
    wanted: Mapping[str, Tensor],
    names: Sequence[tuple[str, str]] = PUBLISHED_NAMES,
    *,
    unused: Sequence[str] = (),
) -> dict[str, Tensor]:
    """The weights of a checkpoint under the names of a Matcher.

    Args:
        checkpoint: from `load_checkpoint`.
        wanted: `state_dict()` of the Matcher made with `matcher_options`, or what of it the checkpoint holds.
        names: as `PUBLISHED_NAMES`.
        unused: patterns of weights that the released code keeps and does not use.

    Raises:
        ValueError: the checkpoint lacks a weight, holds another one or one of another shape.

    >>> checkpoint = LegacyCheckpoint(Path("scan.pth.tar"), {"image:fc.bias": torch.ones(2)}, {})
    >>> matcher_weights(checkpoint, {"image_encoder.projection.bias": torch.zeros(2)})
    {'image_encoder.projection.bias': tensor([1., 1.])}
    """
    published = {ours: _published_name(ours, names) for ours in wanted}
    missing = [theirs for theirs in published.values() if theirs not in checkpoint.weights]
    unknown = [
        theirs
        for theirs in sorted(checkpoint.weights.keys() - published.values())
        if not any(re.fullmatch(pattern, theirs) for pattern in unused)
    ]
    if missing or unknown:
        raise ValueError(
            f"{checkpoint.path} is not a checkpoint of this architecture: it lacks {missing or 'nothing'} and holds "
            f"{unknown or 'nothing'} besides"
        )
    weights = {}
    for ours, theirs in published.items():
        value, shape = checkpoint.weights[theirs], wanted[ours].shape
        # Convolutions of width one are linear layers to us, and a length may be a scalar or a vector of one.
        if tuple(d for d in value.shape if d != 1) != tuple(d for d in shape if d != 1):
            raise ValueError(f"{checkpoint.path}: {theirs} has shape {tuple(value.shape)}; wanted {tuple(shape)}")
        weights[ours] = value.reshape(shape)
    return weights


class PublishedOptions:
    """The training options of a checkpoint, completed by those given; none is ever assumed.

    >>> checkpoint = LegacyCheckpoint(Path("scan.pth.tar"), {}, {"agg_func": "Mean"})
    >>> options = PublishedOptions(checkpoint, {"lambda_lse": 6.0})
    >>> options["lambda_lse"], options.translated("agg_func", AGGREGATIONS)
    (6.0, 'mean')
    """

    def __init__(self, checkpoint: LegacyCheckpoint, given: Mapping[str, Any]) -> None:
        self.path = checkpoint.path
        for name, value in given.items():
            if checkpoint.options.get(name, value) != value:
                raise ValueError(
                    f"{self.path} was trained with {name}={checkpoint.options[name]!r}; {value!r} cannot replace it"
                )
        self.values = {**checkpoint.options, **given}

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise ValueError(
                f"{self.path} does not say which {name} it was trained with; give --{name.replace('_', '-')}"
            )
        return self.values[name]

    def translated(self, name: str, words: Mapping[str, str]) -> str:
        """The value of an option in our words."""
        if self[name] not in words:
            raise ValueError(f"{self.path}: {name}={self[name]!r} is unknown; known: {', '.join(words)}")
        return words[self[name]]


def _scan_options(checkpoint: LegacyCheckpoint, options: PublishedOptions) -> dict[str, Any]:
    head = {
        "direction": options.translated("cross_attn", {"t2i": "t2i", "i2t": "i2t"}),
        "normalization": options.translated("raw_feature_norm", NORMALIZATIONS),
        "aggregation": options.translated("agg_func", AGGREGATIONS),
        "temperature": float(options["lambda_softmax"]),
    }
    return {**head, "lse_scale": float(options["lambda_lse"])} if head["aggregation"] == "logsumexp" else head


def _bfan_options(checkpoint: LegacyCheckpoint, options: PublishedOptions) -> dict[str, Any]:
    focal = options.translated("focal_type", {"prob": "prob", "equal": "equal"})
    return {"focal": focal, "temperature": float(options["lambda_softmax"])}


def _vsrn_options(checkpoint: LegacyCheckpoint, options: PublishedOptions) -> dict[str, Any]:
    for name, published in (("measure", "cosine"), ("use_abs", False), ("no_imgnorm", False)):
        if options.values.get(name, published) != published:
            raise ValueError(f"{options.path} was trained with {name}={options[name]!r}; wanted {published!r}")
    return {
        "dim": len(checkpoint.weight("image:Rs_GCN_1.g.bias")),
        "layers": len({name.split(".")[0] for name in checkpoint.weights if name.startswith("image:Rs_GCN_")}),
        # Not told by the data set: Flickr30k models from before 2020 are built like those of COCO.
        "norm": "batch" if "image:bn.weight" in checkpoint.weights else "l2",
    }


_HEAD_OPTIONS = {"scan": _scan_options, "bfan": _bfan_options, "vsrn": _vsrn_options}


def _published_name(ours: str, names: Sequence[tuple[str, str]]) -> str:
    """What a parameter or buffer of a Matcher is called in a released checkpoint."""
    for pattern, theirs in names:
        match = re.fullmatch(pattern, ours)
        if match:
            layer = int(match[1]) + 1 if "{layer}" in theirs else None
            return match.expand(theirs).replace("{layer}", str(layer))
    raise ValueError(f"{ours} has no counterpart in a checkpoint of this architecture")
