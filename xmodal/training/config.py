"""What a training run is: frozen dataclasses, read from a YAML recipe and from the command line."""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import yaml

from xmodal.names import near_miss
from xmodal.training.recipes import find_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class DataConfig:
    """Where the data is. A folder holds `{split}.h5` region stores, `captions.jsonl` and `vocabulary.json`."""

    folder: Path = Path("data/f30k")
    """Folder with the region stores, the captions and the vocabulary."""
    train: str = "train"
    """Split to train on."""
    validation: str = "dev"
    """Split that picks the best checkpoint."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where the images come from, by name with its options: `{name: pixels, folder: ..., size: 224}` for photographs;
    empty for the region stores of the folder."""
    validation_images: int = 0
    """Use only so many images of the validation split, the first ones (1000 for COCO, as published); 0 uses all."""
    drop_regions: float = 0.0
    """Share of the regions left out at random in training (size augmentation; 0.2 in vse_infty)."""
    drop_words: float = 0.0
    """Share of the words left out at random in training."""
    workers: int = 0
    """Processes that load batches; 0 loads in the training process."""

    def __post_init__(self) -> None:
        _check(self, workers=0, validation_images=0, drop_regions=0, drop_words=0)


@dataclass(frozen=True)
class ModelConfig:
    """The two towers and the head, each by name with its options; see `xmodal.model.Matcher`."""

    image: dict[str, Any] = field(default_factory=lambda: {"name": "regions", "dim": 1024})
    """Image encoder; `input_dim` is read from the region store."""
    text: dict[str, Any] = field(default_factory=lambda: {"name": "gru", "word_dim": 300, "bidirectional": True})
    """Text encoder: `gru` or `bert`; its `dim` is the image encoder's."""
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
    captioner: dict[str, Any] = field(default_factory=dict)
    """Options of a captioner trained jointly, for heads with region states (VSRN); empty for none."""
    captioning_weight: float = 1.0
    """Weight of the captioner's loss beside the ranking loss."""
    word_vectors: Path | None = None
    """Text file of pretrained word vectors (GloVe format: a word and its numbers a line) to start a GRU from."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How the parameters move."""

    name: Literal["adam", "adamw"] = "adam"
    """Optimizer, with torch's defaults."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    rates: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rate by the beginning of a parameter's name: {matcher.text_encoder.transformer: 0.1}."""
    rates_from_epoch: int = 0
    """Epochs before the factors hold; until then every part learns at the full rate (DAML's schedule)."""
    repeated: dict[str, int] = field(default_factory=dict)
    """How many steps along each gradient parameters take, by the beginning of their name, and how often they count in
    clipping, as if the optimizer listed them so often: {matcher.captioner: 2} in the released VSRN."""
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
    """Steps over which the learning rate grows linearly to its peak."""

    def __post_init__(self) -> None:
        _check(
            self,
            learning_rate=0,
            rates_from_epoch=0,
            weight_decay=0,
            clip_norm=0,
            decay_epochs=1,
            decay=0,
            warmup_steps=0,
        )
        for name, rate in self.rates.items():
            if not isinstance(rate, (int, float)) or rate < 0:
                raise ValueError(f"rates: the factor of {name!r} must be a number of at least 0, got {rate!r}")
        for name, times in self.repeated.items():
            if type(times) is not int or times < 1:
                raise ValueError(
                    f"repeated: {name!r} must be listed a whole number of times, at least 1, got {times!r}"
                )


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it trains."""

    output: Path = Path("runs/unnamed")
    """Run folder: configuration, log, checkpoints."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 128
    """Items in one batch, over all processes together."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step."""
    validate_every: int = 0
    """Steps between validations; 0 validates at the end of every epoch only."""
    criterion: str = "rsum"
    """Which result of the validation picks the best checkpoint: the largest. Several results are added: i2t.R@1 +
    t2i.R@1."""
    best_at: Literal["every_validation", "epoch_ends"] = "every_validation"
    """Which validations may pick the best checkpoint; the others are only logged."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass; parameters stay in float32."""
    seed: int = 0
    """Seed of the initialization, the order of the data and everything else."""
    resume: bool = False
    """Go on from the run folder's last checkpoint."""
    resume_if_present: bool = False
    """Go on from the last checkpoint if there is one, else start: for supervisors that start a run again and again."""
    keep: int = 2
    """How many of the last checkpoints to keep: should the last one get damaged, there is another."""
    progress: bool = True
    """Show progress bars and the results of every validation."""

    def __post_init__(self) -> None:
        _check(self, epochs=1, batch_size=2, accumulate=1, validate_every=0, seed=0, keep=1)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
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
    adversary: dict[str, Any] = field(default_factory=dict)
    """Domain discriminators that the encoders are trained against, `{name: addr, ...}`; empty for none."""
    scoring: Literal["eager", "triton"] = "eager"
    """What scores a training batch: the head's own code, or the fused kernel (SCAN and BFAN on a GPU; less memory)."""
    protocol: str = "plain"
    """Evaluation protocol of the validation."""
    task: Literal["matching"] = "matching"
    """What is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_criterion(self.criterion, ["rsum", *(f"{way}.R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))])


@dataclass(frozen=True)
class LabelledDataConfig:
    """Images with class labels, or features of them; see `xmodal.data.labelled`."""

    path: Path = Path("data/cub.jsonl")
    """An index, a folder with one folder a class, or a file of features."""
    train: str = "train"
    """Split to train on."""
    validation: tuple[str, ...] = ("dev",)
    """Splits, with other classes, that pick the best checkpoint; [query, gallery] where a data set has them."""
    images_per_class: int = 4
    """Images of each class in a batch."""
    batches_per_epoch: int = 0
    """Batches in an epoch; 0 draws about as many images as there are."""
    resize: int = 256
    """Pixels of the shorter side of an image before it is cropped."""
    crop: int = 224
    """Side of the square that is cut out: at random for training, from the center for testing."""
    square: bool = False
    """Stretch an image to a square before it is cropped, instead of keeping its shape."""
    workers: int = 0
    """Processes that read images; 0 reads in the training process."""

    def __post_init__(self) -> None:
        _check(self, images_per_class=1, batches_per_epoch=0, workers=0)


@dataclass(frozen=True)
class EmbedderConfig:
    """A backbone and what is put on it; see `xmodal.embedder.Embedder`."""

    backbone: dict[str, Any] = field(default_factory=lambda: {"name": "torchvision", "network": "resnet50"})
    """The backbone, by name with its options; an MLP's `input_dim` is read from the file of features."""
    dim: int = 512
    """Length of the embeddings."""
    head: Literal["linear", "metric"] = "linear"
    """One linear layer, or DAML's two."""
    normalize: bool = True
    """Whether embeddings are compared by cosine."""

    def __post_init__(self) -> None:
        _check(self, dim=1)


@dataclass(frozen=True)
class RetrievalConfig(RunConfig):
    """Train an embedder to retrieve images of classes that training never saw."""

    output: Path = Path("runs/retrieval")
    """Run folder: configuration, log, checkpoints."""
    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    model: EmbedderConfig = field(default_factory=EmbedderConfig)
    objective: dict[str, Any] = field(
        default_factory=lambda: {"name": "metric", "metric": {"name": "triplet", "mining": "semihard"}}
    )
    """Objective: `metric`, `daml`, `ecaml`, `ie` or `class_adversarial`, with its options."""
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """Levels K of R@K."""
    criterion: str = "R@1"
    """Which result of the validation picks the best checkpoint: R@1, mAP@R, ..., or a sum: R@1 + mAP@R."""
    task: Literal["retrieval"] = "retrieval"
    """What is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_criterion(self.criterion, [*(f"R@{k}" for k in self.recall_at), "R-precision", "mAP@R"])


CONFIGS: dict[str, type[RunConfig]] = {"matching": TrainConfig, "retrieval": RetrievalConfig}
"""Configurations by what they train, a recipe's `task`."""


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain data: what YAML and checkpoints store.

    >>> to_dict(DataConfig(Path("data/coco")))["folder"]
    'data/coco'
    """

    def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Path) else value for key, value in items}

    return dataclasses.asdict(config, dict_factory=plain)


def from_dict(kind: type, values: dict[str, Any], where: str = "configuration") -> Any:
    """The inverse of `to_dict`; what is left out takes its default.

    Raises:
        ValueError: for a key that does not exist, naming the nearest one that does, or a value that cannot be.

    >>> from_dict(DataConfig, {"folder": "data/coco"}).folder.name
    'coco'
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping of options, got {values!r}")
    types = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in types:
            raise ValueError(f"{where} has no option {key!r}{near_miss(str(key), types)}; known: {', '.join(types)}")
        if dataclasses.is_dataclass(types[key]):
            value = from_dict(typing.cast("type", types[key]), value, f"{where}: {key}")
        elif isinstance(value, str) and types[key] in (Path, Path | None):
            value = Path(value)
        elif isinstance(value, list) and get_origin(types[key]) is tuple:
            value = tuple(value)
        arguments[key] = value
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def load_recipe(path: str | Path) -> Any:
    """Read a YAML recipe; its `task` says what it trains, images with text (`matching`) where it is left out.

    A recipe of xmodal's own is also known by name, see `xmodal.training.recipes`. One that names another as its `base`,
    by a path that starts at its own folder or by name, says only what is different.

    Raises:
        FileNotFoundError: if it, or its base, is not there.
        ValueError: if it is no YAML, or as for `from_dict`.

    >>> _ = Path("mine.yaml").write_text("task: retrieval\\nepochs: 5\\nmodel: {dim: 64}\\n")
    >>> recipe = load_recipe("mine.yaml")
    >>> type(recipe).__name__, recipe.epochs, recipe.model.dim, recipe.batch_size
    ('RetrievalConfig', 5, 64, 128)
    """
    values = _read_recipe(find_recipe(path))
    task = values.get("task", "matching")
    if task not in CONFIGS:
        raise ValueError(
            f"recipe {path}: unknown task {task!r}{near_miss(str(task), CONFIGS)}; known: {', '.join(CONFIGS)}"
        )
    return from_dict(CONFIGS[task], values, f"recipe {path}")


def _read_recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe on top of those of its base."""
    if path.resolve() in above:
        raise ValueError(f"recipe {path} is a base of itself")
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} must be a mapping of options, got {values!r}")
    _check_names(values, path)
    base = values.pop("base", None)
    if base is None:
        return values
    try:
        found = find_recipe(str(base), beside=path.parent)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"recipe {path}, base: {error}") from error
    return _merged(_read_recipe(found, (*above, path.resolve())), values)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A mapping with some values changed; mappings inside it are merged alike."""
    both = base.keys() & changes.keys()
    inner = {key for key in both if isinstance(base[key], dict) and isinstance(changes[key], dict)}
    return {**base, **changes, **{key: _merged(base[key], changes[key]) for key in inner}}


def read_yaml(text: str) -> Any:
    """What a text in YAML says, with numbers as people write them.

    Raises:
        yaml.YAMLError: it is no YAML.

    >>> read_yaml("{rate: 2e-4, levels: [layer3]}")
    {'rate': 0.0002, 'levels': ['layer3']}
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """PyYAML takes 2e-4 for text, as YAML 1.1 asks for; here it is the number that whoever writes it means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _check_names(values: dict[Any, Any], path: Path) -> None:
    """Refuse option names that YAML 1.1 does not take for text."""
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(
                f"recipe {path}: the option name {name!r} is no text; YAML takes a bare on, off, yes or no for a truth "
                'value, so put it in quotes: "on"'
            )
        if isinstance(value, dict):
            _check_names(value, path)


def flatten(values: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, their keys joined.

    >>> flatten({"optimizer": {"name": "adam"}, "epochs": 3})
    {'optimizer.name': 'adam', 'epochs': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            flatten(value, separator, prefix + key + separator) if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def criterion_of(results: Mapping[str, Any], criterion: str) -> float:
    """What a criterion makes of the results of a validation: one of them, or a sum.

    >>> criterion_of({"i2t": {"R@1": 50.0}, "t2i": {"R@1": 40.0}, "rsum": 400.0}, "i2t.R@1 + t2i.R@1")
    90.0
    """
    flat = flatten(results)
    return sum(flat[name] for name in _added(criterion))


def _added(criterion: str) -> list[str]:
    return [name.strip() for name in criterion.split("+")]


def _check_criterion(criterion: str, known: list[str]) -> None:
    for name in _added(criterion):
        if name not in known:
            raise ValueError(
                f"criterion {criterion!r}: {name!r} is no result{near_miss(name, known)}; known: {', '.join(known)}, "
                "and their sums"
            )


def _check(config: Any, **least: float) -> None:
    """Refuse values of the wrong type, names that do not exist, and numbers below their least value."""
    for name, kind in typing.get_type_hints(type(config)).items():
        value, names = getattr(config, name), get_args(kind)
        if get_origin(kind) is Literal and value not in names:
            raise ValueError(
                f"{name} {value!r} does not exist{near_miss(str(value), names)}; known: {', '.join(names)}"
            )
        types = {int: (int,), float: (int, float), bool: (bool,), dict: (dict,)}.get(get_origin(kind) or kind)
        if types and type(value) not in types:
            raise ValueError(f"{name} must be of type {types[-1].__name__}, got {value!r}")
        if name in least and not value >= least[name]:
            raise ValueError(f"{name} must be at least {least[name]}, got {value}")
