"""What a training run is: frozen dataclasses, read from a YAML recipe and from the command line."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from xmodal.names import near_miss


@dataclass(frozen=True)
class DataConfig:
    """Where the data is. A folder holds `{split}.h5` region stores, `captions.jsonl` and `vocabulary.json`."""

    folder: Path = Path("data/f30k")
    """Folder with the region stores, the captions and the vocabulary."""
    train: str = "train"
    """Split to train on."""
    validation: str = "dev"
    """Split that picks the best checkpoint."""
    workers: int = 0
    """Processes that load batches; 0 loads in the training process."""
    in_memory: bool = False
    """Read the training store whole; only for sets that fit, for slow disks."""


@dataclass(frozen=True)
class ModelConfig:
    """The two towers and the head, each by name with its options; see `xmodal.model.Matcher`."""

    image: dict[str, Any] = field(default_factory=lambda: {"name": "regions", "dim": 1024})
    """Image encoder; `input_dim` is read from the region store."""
    text: dict[str, Any] = field(
        default_factory=lambda: {"name": "gru", "dim": 1024, "word_dim": 300, "bidirectional": True}
    )
    """Text encoder: `gru` or `bert`."""
    head: dict[str, Any] = field(
        default_factory=lambda: {
            "name": "scan",
            "direction": "t2i",
            "normalization": "clipped_l2",
            "aggregation": "logsumexp",
            "temperature": 9.0,
            "lse_scale": 6.0,
        }
    )
    """Matching head."""
    word_vectors: Path | None = None
    """Text file of pretrained word vectors (GloVe format: a word and its numbers a line) to start a GRU from."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How the parameters move."""

    name: Literal["adam", "adamw"] = "adam"
    """Optimizer, with torch's defaults."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Weight decay."""
    clip_norm: float = 2.0
    """Largest norm of the whole gradient; 0 does not clip."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """After the warm-up: multiply by `decay` every `decay_epochs` epochs, fall to 0 along a cosine, or stay."""
    decay_epochs: int = 15
    """Epochs between two decays of the step schedule."""
    decay: float = 0.1
    """Factor of the step schedule."""
    warmup_steps: int = 0
    """Steps over which the learning rate grows linearly from 0."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a matcher on region features and captions."""

    output: Path = Path("runs/scan")
    """Run folder: configuration, log, checkpoints."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: dict[str, Any] = field(
        default_factory=lambda: {
            "name": "hinge",
            "margin": 0.2,
            "hardest": 1.0,
            "reduction": "sum",
            "warmup_steps": 0,
            "mask_false_negatives": True,
        }
    )
    """Ranking objective: `hinge` or `info_nce`, with its options."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 30
    """Passes over the training captions."""
    batch_size: int = 128
    """Pairs in one batch, over all processes together."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step."""
    validate_every: int = 0
    """Steps between validations; 0 validates at the end of every epoch only."""
    protocol: str = "plain"
    """Evaluation protocol of the validation."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass; parameters stay in float32."""
    seed: int = 0
    """Seed of the initialization, the order of the data and everything else."""
    resume: bool = False
    """Go on from the run folder's last checkpoint."""
    progress: bool = True
    """Show progress bars."""


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain data: what YAML and checkpoints store."""
    return {
        key: to_dict(value) if isinstance(value, dict) else str(value) if isinstance(value, Path) else value
        for key, value in (dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config).items()
    }


def from_dict(kind: type, values: dict[str, Any], where: str = "configuration") -> Any:
    """The inverse of `to_dict`; what is left out takes its default.

    Raises:
        ValueError: for a key that does not exist, naming the nearest one that does.
    """
    types = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in types:
            raise ValueError(f"{where} has no option {key!r}{near_miss(key, types)}; known: {', '.join(types)}")
        if dataclasses.is_dataclass(types[key]):
            value = from_dict(types[key], value, f"{where}: {key}")  # type: ignore[arg-type]
        elif value is not None and types[key] in (Path, Path | None):
            value = Path(value)
        arguments[key] = value
    return kind(**arguments)


def load_recipe(path: str | Path, kind: type = TrainConfig) -> Any:
    """Read a YAML recipe.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not a mapping or names an option that does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"recipe {path} does not exist")
    values = yaml.safe_load(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} must be a mapping of options, got {type(values).__name__}")
    return from_dict(kind, values, f"recipe {path}")
