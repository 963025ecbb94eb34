"""What is compared: heads, settings of ADDR that are tried, and data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


HEADS: dict[str, dict[str, Any]] = {
    "SCAN t-i LSE": {"name": "scan"},
    "BFAN prob": {"name": "bfan", "focal": "prob"},
    "VSRN": {"name": "vsrn"},
}

TOWERS: dict[str, dict[str, Any]] = {"VSRN": {"normalize": False}}
"""What the towers before a head are told besides: VSRN normalizes what it has reasoned."""

CANDIDATES: dict[str, dict[str, Any]] = {
    "beta 0.3": {"beta": 0.3},
    "beta 1": {"beta": 1.0},
    "beta 3": {"beta": 3.0},
    "beta 10": {"beta": 10.0},
    "beta 30": {"beta": 30.0},
    "beta 3, ridge": {"beta": 3.0, "form": "ridge"},
    "beta 10, ridge": {"beta": 10.0, "form": "ridge"},
    "beta 10, ridge 1": {"beta": 10.0, "form": "ridge", "ridge": 1.0},
    "beta 30, ridge": {"beta": 30.0, "form": "ridge"},
    "beta 10, rate 2": {"beta": 10.0, "rate": 2.0},
    "beta 30, rate 2": {"beta": 30.0, "rate": 2.0},
    "beta 3, no regularizer": {"beta": 3.0, "lambda_reg": 0.0},
    "beta 3, alpha 0.3, lambda 1": {"beta": 3.0, "alpha": 0.3, "lambda_reg": 1.0},
    "beta 3, not centered": {"beta": 3.0, "center": False},
    "beta 3, through regions": {"beta": 3.0, "through": "regions"},
    "beta 1, through words": {"beta": 1.0, "through": "words"},
    "beta 0.3, warm-up to the end": {"beta": 0.3, "beta_warmup_steps": 240},
    "beta 3, amortized": {"beta": 3.0, "form": "amortized"},
}
"""Settings of ADDR that are tried on the dev split; what is not said is as in `SETTINGS`. A mean of cosines' errors has
small gradients: at beta 1 theirs is about a hundredth of InfoNCE's."""

WITHOUT = "without ADDR"

SETTINGS = {"name": "addr", "form": "fast_weights", "reduction": "mean"}


@dataclass(frozen=True)
class DataSet:
    """What the heads are compared on, for how long, and which candidates are tried."""

    title: str
    augmentation: Mapping[str, Any]
    """Of `DataConfig`, as in the recipe of this data set."""
    warmup: int
    """Steps over which beta grows: an epoch."""
    epochs: int
    """Of the compared runs."""
    tuning_epochs: int
    """Of the runs that choose the settings."""
    tried: Mapping[str, Sequence[str]]
    """Candidates for each head."""


DATA_SETS = {
    "coco_objects": DataSet(
        title="COCO objects (3,452 / 500 / 1,000 images of COCO val2017, five captions each; regions are at most 12 "
        "ground-truth objects, class and box, and the whole image)",
        augmentation={"drop_regions": 0.2, "drop_words": 0.2},
        warmup=135,
        epochs=3,
        tuning_epochs=2,
        tried={
            "SCAN t-i LSE": (
                "beta 0.3",
                "beta 1",
                "beta 3",
                "beta 10",
                "beta 30",
                "beta 10, ridge",
                "beta 30, ridge",
                "beta 10, rate 2",
                "beta 30, rate 2",
                "beta 3, no regularizer",
                "beta 3, alpha 0.3, lambda 1",
                "beta 3, not centered",
                "beta 3, through regions",
                "beta 3, amortized",
            ),
            "BFAN prob": ("beta 0.3", "beta 1", "beta 3", "beta 10, ridge"),
            "VSRN": ("beta 0.3", "beta 1", "beta 3", "beta 10, ridge"),
        },
    ),
    "flickr8k": DataSet(
        title="Flickr8k photographs (762 / 113 / 125, five captions each; regions are 36 finds of SSD-MobileNetV3, "
        "described by EfficientNet-lite0 in 1,280 dims)",
        augmentation={},
        warmup=30,
        epochs=8,
        tuning_epochs=8,
        tried={
            "SCAN t-i LSE": ("beta 3", "beta 10", "beta 3, ridge", "beta 10, ridge"),
            "BFAN prob": ("beta 10", "beta 10, ridge", "beta 30, ridge", "beta 10, ridge 1"),
            "VSRN": ("beta 1, through words", "beta 0.3, warm-up to the end", "beta 3, ridge"),
        },
    ),
}


@dataclass(frozen=True)
class Experiment:
    """The three heads with and without ADDR."""

    data_set: Literal["coco_objects", "flickr8k"] = "coco_objects"
    """What to train and test on."""
    data: Path = Path("data")
    """Where the folder of this data set is, with region stores, captions and vocabulary."""
    output: Path = Path("runs/addr")
    """Where the runs go, in a folder of this data set."""
    pages: Path = Path("docs/results")
    """Where the page of this data set is written, with its picture."""
    heads: tuple[str, ...] = tuple(HEADS)
    """Which heads."""
    dim: int = 256
    """Dim of the joint space."""
    seeds: int = 5
    """Seeds of the comparison."""

    @property
    def on(self) -> DataSet:
        """The data set itself."""
        return DATA_SETS[self.data_set]
