"""What the evidence compares: heads, settings that are tuned, arms, and the regimes in which they are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scripts.experiments.addr.settings import HEADS, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPARED: dict[str, dict[str, Any]] = {
    "SCAN t-i LSE": HEADS["SCAN t-i LSE"],
    "SCAN i-t AVG": {"name": "scan", "direction": "i2t", "aggregation": "mean", "temperature": 4.0},
    "BFAN prob": HEADS["BFAN prob"],
    "VSRN": HEADS["VSRN"],
}

PLAIN = "as it is"

TUNED: dict[str, dict[str, float]] = {
    PLAIN: {},
    "longer": {"epochs": 2},
    "dropout": {"dropout": 0.2},
    "dropout, longer": {"dropout": 0.2, "epochs": 2},
    "dropout, temperature 0.1": {"dropout": 0.2, "temperature": 0.1},
    "dropout, temperature 0.02": {"dropout": 0.2, "temperature": 0.02},
}
"""Settings of the baseline that are tried on the dev split. Dropout is that of region features and word embeddings, the
temperature that at which InfoNCE starts, epochs are a multiple of the data set's."""

BASELINE, PERMANENT, DECAYING, MATCHED = "baseline", "+ ADDR", "+ ADDR decaying", "+ mean match decaying"

ADDED: dict[str, dict[str, Any]] = {
    PERMANENT: {**SETTINGS, "form": "ridge"},
    DECAYING: {**SETTINGS, "form": "ridge", "decays": True},
    MATCHED: {"name": "mean_match", "reduction": "mean", "decays": True},
}
"""What each arm adds to the tuned baseline."""

BETAS: dict[str, tuple[float, ...]] = {PERMANENT: (3.0, 10.0), DECAYING: (3.0, 10.0), MATCHED: (1.0, 3.0)}
"""Weights that are tried on the dev split."""

ARMS = (BASELINE, *ADDED)

DECAY = 1 / 6
"""Share of a run's steps over which what decays falls from its full weight at step 0: half of the first of three epochs
on COCO objects."""

INFO_NCE: dict[str, Any] = {"name": "info_nce", "temperature": 0.05, "learn_temperature": True}
HINGE: dict[str, Any] = {"name": "hinge", "margin": 0.2, "hardest": 1.0, "reduction": "mean"}
"""The published loss, with a warm-up of one epoch from all negatives to the hardest."""


@dataclass(frozen=True)
class Regime:
    """Under what conditions the arms are compared."""

    share: float = 1.0
    """Of the training images that are used, always the same ones."""
    shuffled: float = 0.0
    """Share of the training captions that are exchanged among themselves."""
    epochs: int = 1
    """How many times more epochs than the data set's: fewer images make shorter epochs."""
    objective: Mapping[str, Any] = field(default_factory=lambda: INFO_NCE)


ALL = "all"

REGIMES: dict[str, Regime] = {
    ALL: Regime(),
    "10% of the images": Regime(share=0.1, epochs=5),
    "25% of the images": Regime(share=0.25, epochs=3),
    "20% of the captions shuffled": Regime(shuffled=0.2),
    "40% of the captions shuffled": Regime(shuffled=0.4),
    "hinge": Regime(objective=HINGE),
}
"""Settings are tuned in the first. What the best checkpoint does where test images lack their whole-image region is
measured in every one."""


@dataclass(frozen=True)
class Source:
    """A data set as a run of a few minutes of one core takes it."""

    epochs: int
    drop: float
    """Share of regions and of words left out in training."""
    minutes: float
    """What a run takes, about; once runs are recorded, theirs is taken."""


SOURCES = {
    "coco_objects": Source(epochs=3, drop=0.2, minutes=1.8),
    "flickr8k_full": Source(epochs=3, drop=0.0, minutes=3.8),
}
