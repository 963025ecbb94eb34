"""What is on the leaderboard, and how a published recipe becomes a run of minutes on one core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xmodal.training.config import TrainConfig, from_dict
from xmodal.training.recipes import find_recipe, read_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIZES = ("dim", "hidden_dim", "fused_dim", "sim_dim", "relation_dim")
"""Options of a recipe that shrink with the joint space."""

POOLERS = ("pooling", "caption_pooling")

LEARNING_RATE = 1e-3
"""Of every run, falling with the cosine: a run has a hundredth of the published steps, and at the published rates,
which are two to ten times lower, no head gets far."""


@dataclass(frozen=True)
class Entry:
    """A head with the towers before it and the loss behind it."""

    recipe: str
    """Its own, for Flickr30k."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What is otherwise than in the recipe, part by part."""
    note: str = ""
    """Why."""
    batch_size: int = TrainConfig.batch_size
    """A head that computes something anew for every pair takes smaller batches, which have fewer pairs an epoch."""
    validation_images: int = 0
    """How many of the dev split tell the best checkpoint; 0 for all."""
    narrow: int = 1
    """By what the dim of the joint space is divided."""
    once: bool = False
    """Whether a run takes so long that there is one."""


FEWER: dict[str, Any] = {"batch_size": 32}
SLOW: dict[str, Any] = {**FEWER, "validation_images": 100, "once": True}
SLOWEST: dict[str, Any] = {**SLOW, "narrow": 4}
"""What a head takes less of that computes so much for every pair."""

GRU = {"name": "gru", "word_dim": 300, "bidirectional": True, "normalize": False}

WORDS = {"text": {**GRU, "normalize": True}}
BY_CHANNEL = "batch norm by channel, as images have any number of regions"

ENTRIES: dict[str, Entry] = {
    "mean of regions, mean of words": Entry(
        "scan_t2i_lse_f30k", {"head": {"name": "cosine"}}, "a plain dual encoder, trained as SCAN is"
    ),
    "SCAN t-i LSE": Entry("scan_t2i_lse_f30k"),
    "SCAN i-t AVG": Entry("scan_i2t_avg_f30k"),
    "BFAN equal": Entry("bfan_equal_f30k"),
    "BFAN prob": Entry("bfan_prob_f30k"),
    "VSRN": Entry("vsrn_f30k"),
    "MTFN": Entry("mtfn_f30k"),
    "DP-RNN word": Entry("dprnn_word_f30k", **SLOWEST),
    "DP-RNN object": Entry("dprnn_object_f30k", **SLOWEST),
    "RDAN-style": Entry("rdan_style_f30k", note="our reading of an abstract", **SLOWEST),
    "ADAPT t2i": Entry("adapt_t2i_f30k", WORDS, "without GloVe", **FEWER),
    "ADAPT i2t": Entry("adapt_i2t_f30k", WORDS, "without GloVe", **FEWER),
    "SGRAF SAF": Entry("sgraf_saf_f30k", note=BY_CHANNEL, **SLOW),
    "SGRAF SGR": Entry("sgraf_sgr_f30k", note=BY_CHANNEL, **SLOW),
    "GPO": Entry("gpo_f30k", {"text": GRU}, "with a bi-GRU"),
    "CHAN": Entry("chan_f30k", note="without GloVe"),
    "NAAF": Entry("naaf_f30k"),
    "ESA": Entry("esa_f30k", note="without GloVe"),
}


def configure(entry: Entry, *, data: Path, output: Path, dim: int, epochs: int, steps: int, seed: int) -> TrainConfig:
    """The recipe of an entry on another data set, with a smaller joint space and fewer steps.

    Args:
        entry: what is trained.
        data: the data folder.
        output: the run folder.
        dim: of the joint space; other sizes of the recipe shrink as it does.
        epochs: of the run.
        steps: in an epoch, over which losses of the hardest negatives warm up from all of them, unless the recipe has
            another way to begin.
        seed: of the run.
    """
    recipe = read_recipe(find_recipe(entry.recipe))
    model = {**recipe["model"], **entry.options, "word_vectors": None}
    model = _shrunk(model, model["image"]["dim"] / dim)
    return from_dict(
        TrainConfig,
        {
            "output": str(output),
            "data": {**recipe["data"], "folder": str(data), "validation_images": entry.validation_images},
            "model": model,
            "objective": _begun(recipe["objective"], steps),
            "optimizer": _shortened(recipe["optimizer"]),
            "epochs": epochs,
            "batch_size": entry.batch_size,
            "keep": 1,
            "seed": seed,
        },
    )


def _shrunk(value: Any, factor: float) -> Any:
    """A part of a recipe with smaller sizes, and with a batch norm that takes any number of regions."""
    if not isinstance(value, dict):
        return value
    small = {
        name: max(1, round(inner / factor)) if name in SIZES and isinstance(inner, int) else _shrunk(inner, factor)
        for name, inner in value.items()
        if name not in POOLERS
    }
    small |= {name: _shrunk(value[name], 1.0) for name in POOLERS if name in value}  # whose sizes are their own
    if small.get("norm") == "slot":
        del small["slots"]
        small["norm"] = "channel"
    return small


def _begun(objective: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A loss that begins with all negatives: the hardest alone lead nowhere in so few steps."""
    begins = objective.get("all_negatives_epochs") or objective.get("curriculum") or objective.get("warmup_steps")
    return dict(objective) if begins else {**objective, "warmup_steps": steps}


def _shortened(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer for a short run; its kind, decay and clipping stay."""
    kept = {name: optimizer[name] for name in ("name", "weight_decay", "repeated") if name in optimizer}
    return {**kept, "clip_norm": optimizer["clip_norm"] or 2.0, "learning_rate": LEARNING_RATE, "schedule": "cosine"}
