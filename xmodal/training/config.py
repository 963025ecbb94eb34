"""What a training run is: frozen dataclasses, read from a YAML recipe and from the command line.

Whoever makes one, each field takes what it is annotated with, ranges included, and each part options that it has.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval, Len

from xmodal.schema import LARGEST, Count, CountOrNone, Name, NotNegative, Share, check_fields
from xmodal.spelling import near_miss
from xmodal.training.part import PARTS_OF_MATCHING, PARTS_OF_RETRIEVAL
from xmodal.training.recipes import find_recipe, read_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xmodal.training.part import Part

Workers = Annotated[int, Interval(ge=0, le=1024)]
Pixels = Annotated[int, Interval(ge=1, le=100_000)]
Size = Annotated[int, Interval(ge=1, le=1_000_000)]


@dataclass(frozen=True)
class DataConfig:
    """Where the data is. A folder holds `{split}.h5` region stores, `captions.jsonl` and `vocabulary.json`."""

    folder: Path = Path("data/f30k")
    """Folder with the region stores, the captions and the vocabulary."""
    train: Name = "train"
    """Split to train on."""
    validation: Name = "dev"
    """Split that picks the best checkpoint."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where the images come from, by name with its options: `{name: pixels, folder: ..., size: 224}` for photographs;
    empty for the region stores of the folder."""
    validation_images: CountOrNone = 0
    """Use only so many images of the validation split, the first ones (1000 for COCO, as published); 0 uses all."""
    drop_regions: Share = 0.0
    """Share of the regions left out at random in training (size augmentation; 0.2 in vse_infty)."""
    drop_words: Share = 0.0
    """Share of the words left out at random in training."""
    corrupt_words: Share = 0.0
    """Share of the words that are chosen at random in training: half of them are masked, a tenth becomes any word and
    the others are left out (0.2 in vse_infty)."""
    views: Count = 1
    """How often a batch holds each of its pairs, with regions and words left out anew every time: 2 for the objective
    `esa`."""
    workers: Workers = 0
    """Processes that load batches; 0 loads in the training process."""

    def __post_init__(self) -> None:
        check_fields(self)


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
    captioning_weight: NotNegative = 1.0
    """Weight of the captioner's loss beside the ranking loss."""
    word_vectors: Path | None = None
    """Text file of pretrained word vectors (GloVe format: a word and its numbers a line) to start a GRU from."""
    start_from: Path | None = None
    """Folder of a matcher, trained or imported, whose weights this one begins with wherever both have the same parts,
    and whose vocabulary it takes."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class OptimizerConfig:
    """How the parameters move."""

    name: Literal["adam", "adamw", "adamax"] = "adam"
    """Optimizer, with torch's defaults."""
    learning_rate: NotNegative = 2e-4
    """Peak learning rate."""
    rates: dict[str, NotNegative] = field(default_factory=dict)
    """Factors on the learning rate by the beginning of a parameter's name: {matcher.text_encoder.transformer: 0.1}."""
    rates_from_epoch: CountOrNone = 0
    """Epochs before the factors hold; until then every part learns at the full rate (DAML's schedule)."""
    repeated: dict[str, Count] = field(default_factory=dict)
    """How many steps along each gradient parameters take, by the beginning of their name, and how often they count in
    clipping, as if the optimizer listed them so often: {matcher.captioner: 2} in the released VSRN."""
    weight_decay: NotNegative = 0.0
    """Weight decay."""
    clip_norm: NotNegative = 2.0
    """Largest norm of the whole gradient; 0 does not clip."""
    schedule: Literal["step", "cosine", "constant", "factors"] = "step"
    """After the warm-up: multiply by `decay` every `decay_epochs` epochs, fall to 0 along a cosine, stay, or go by
    `factors`."""
    decay_epochs: Count = 15
    """Epochs between two decays of the step schedule."""
    decay: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Factor of the step schedule."""
    warmup_steps: CountOrNone = 0
    """Steps over which the learning rate grows linearly to its peak."""
    warmup_from: Share = 0.0
    """Share of the peak that the warm-up begins with; 0 for the first of `warmup_steps` equal ones."""
    factors: dict[str, NotNegative] = field(default_factory=dict)
    """For the schedule `factors`: by each the peak is multiplied from a step or an epoch on, counted from 0, until the
    next one holds: {epoch 0: 0.4, epoch 48: 1.0, epoch 100: 0.1}, {step 10000: 0.25}."""

    def __post_init__(self) -> None:
        check_fields(self)
        for start in self.factors:
            if not re.fullmatch(r"(step|epoch) \d{1,9}", start):
                raise ValueError(f"factors: {start!r} does not say when; wanted 'epoch 8', 'step 10000' or the like")
        if (self.schedule == "factors") != bool(self.factors):
            raise ValueError(
                f"schedule is {self.schedule!r} and factors are {self.factors or 'not given'}; the schedule 'factors' "
                "needs them, and no other one reads them"
            )


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it trains."""

    output: Path = Path("runs/unnamed")
    """Run folder: configuration, log, checkpoints."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: Count = 30
    """Passes over the training data."""
    batch_size: Annotated[int, Interval(ge=2, le=LARGEST)] = 128
    """Items in one batch, over all processes together."""
    accumulate: Count = 1
    """Batches whose gradients are averaged into one step."""
    validate_every: CountOrNone = 0
    """Steps between validations; 0 validates at the end of every epoch only."""
    log_every: Count = 10
    """Steps between readings of what steps came to, each of which waits for a GPU: every step is logged and checked to
    be finite, in groups of so many."""
    criterion: str = "rsum"
    """Which result of the validation picks the best checkpoint: the largest. Several results are added: i2t.R@1 +
    t2i.R@1."""
    best_at: Literal["every_validation", "epoch_ends"] = "every_validation"
    """Which validations may pick the best checkpoint; the others are only logged."""
    patience: CountOrNone = 0
    """Validations without a better result after which training ends; 0 goes on to the last epoch."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass; parameters stay in float32."""
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 0
    """Seed of the initialization, the order of the data and everything else."""
    resume: bool = False
    """Go on from the run folder's last checkpoint."""
    resume_if_present: bool = False
    """Go on from the last checkpoint if there is one, else start: for supervisors that start a run again and again."""
    keep: Annotated[int, Interval(ge=1, le=1000)] = 2
    """How many of the last checkpoints to keep: should the last one get damaged, there is another."""
    progress: bool = True
    """Show progress bars and the results of every validation."""

    def __post_init__(self) -> None:
        check_fields(self)


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
        _check_parts(self, PARTS_OF_MATCHING)
        _check_criterion(self.criterion, ["rsum", *(f"{way}.R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))])


@dataclass(frozen=True)
class LabelledDataConfig:
    """Images with class labels, or features of them; see `xmodal.data.labelled`."""

    path: Path = Path("data/cub.jsonl")
    """An index, a folder with one folder a class, or a file of features."""
    train: Name = "train"
    """Split to train on."""
    validation: Annotated[tuple[Name, ...], Len(1)] = ("dev",)
    """Splits, with other classes, that pick the best checkpoint; [query, gallery] where a data set has them."""
    images_per_class: Count = 4
    """Images of each class in a batch."""
    batches_per_epoch: CountOrNone = 0
    """Batches in an epoch; 0 draws about as many images as there are."""
    resize: Pixels = 256
    """Pixels of the shorter side of an image before it is cropped."""
    crop: Pixels = 224
    """Side of the square that is cut out: at random for training, from the center for testing."""
    square: bool = False
    """Stretch an image to a square before it is cropped, instead of keeping its shape."""
    workers: Workers = 0
    """Processes that read images; 0 reads in the training process."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class EmbedderConfig:
    """A backbone and what is put on it; see `xmodal.embedder.Embedder`."""

    backbone: dict[str, Any] = field(default_factory=lambda: {"name": "torchvision", "network": "resnet50"})
    """The backbone, by name with its options; an MLP's `input_dim` is read from the file of features."""
    dim: Size = 512
    """Length of the embeddings."""
    head: Literal["linear", "metric"] = "linear"
    """One linear layer, or DAML's two."""
    normalize: bool = True
    """Whether embeddings are compared by cosine."""
    start_from: Path | None = None
    """Folder of an embedder whose weights this one begins with wherever both have the same parts."""

    def __post_init__(self) -> None:
        check_fields(self)


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
    recall_at: Annotated[tuple[Count, ...], Len(1)] = (1, 2, 4, 8)
    """Levels K of R@K."""
    criterion: str = "R@1"
    """Which result of the validation picks the best checkpoint: R@1, mAP@R, ..., or a sum: R@1 + mAP@R."""
    task: Literal["retrieval"] = "retrieval"
    """What is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_parts(self, PARTS_OF_RETRIEVAL)
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
        ValueError: for a key that does not exist, naming the nearest one that does, or a value that cannot be, with the
            path of the key.

    >>> from_dict(DataConfig, {"folder": "data/coco"}).folder.name
    'coco'
    >>> from_dict(TrainConfig, {"data": {"drop_regions": 1.5}})
    Traceback (most recent call last):
    ...
    ValueError: configuration: data.drop_regions is 1.5; wanted a share below 1, 0 for nothing
    """
    try:
        return _from_dict(kind, values, "")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _from_dict(kind: type, values: Any, path: str) -> Any:
    """What stands at a path of a configuration, which ends in a dot unless it is empty."""
    if not isinstance(values, dict):
        raise ValueError(f"{path.removesuffix('.') or 'it'} must be a mapping of options, got {str(values)[:80]!r}")
    types = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in types:
            near = near_miss(str(key), types)
            place = path.removesuffix(".") or "it"
            raise ValueError(f"{place} has no option {str(key)[:80]!r}{near}; known: {', '.join(types)}")
        nested = dataclasses.is_dataclass(types[key])
        arguments[key] = _from_dict(typing.cast("type", types[key]), value, f"{path}{key}.") if nested else value
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{path}{error}") from error


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
    values = read_recipe(find_recipe(path))
    task = values.get("task", "matching")
    if not isinstance(task, str) or task not in CONFIGS:
        raise ValueError(
            f"recipe {path}: task is {task!r}{near_miss(str(task), CONFIGS)}; wanted {' or '.join(CONFIGS)}"
        )
    return from_dict(CONFIGS[task], values, f"recipe {path}")


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


def _check_parts(config: RunConfig, parts: Mapping[str, Part]) -> None:
    """Make sure that the options of every part exist and are of the types that it takes; keep them as plain data."""
    for path, part in parts.items():
        outer, _, last = path.rpartition(".")
        holder = getattr(config, outer) if outer else config
        values = getattr(holder, last)
        if isinstance(values, dict):  # while the command line is read, a dataclass stands here
            object.__setattr__(holder, last, part.check(values, path))


def _check_criterion(criterion: str, known: list[str]) -> None:
    for name in _added(criterion):
        if name not in known:
            raise ValueError(
                f"criterion is {criterion!r}: {name!r} is no result{near_miss(name, known)}; wanted one of "
                f"{', '.join(known)}, or a sum of some"
            )
