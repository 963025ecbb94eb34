"""What is compared: methods, the metric losses that they are put on, and what is tried on the dev split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


Options = dict[str, Any]

RATES = {f"rate {rate:g}": {"optimizer": {"learning_rate": rate}} for rate in (1e-4, 3e-4, 1e-3)}
"""Learning rates that are tried where nothing else is to choose."""

NOT_NORMALIZED = {
    f"{name}, not normalized": {**candidate, "objective": {"normalize": False}} for name, candidate in RATES.items()
}

METRIC_LOSSES: dict[str, Options] = {
    "contrastive": {},
    "triplet": {"mining": "semihard"},
    "n_pair": {},
    "angular": {},
    "binomial": {},
    "multi_similarity": {},
    "proxy_anchor": {},
    "margin": {"mining": "distance_weighted"},
}

SYNTHETIC_LOSSES: dict[str, Options] = {name: {} for name in ("contrastive", "triplet", "n_pair", "lifted", "angular")}
"""DAML's own forms of these losses, which take synthetic negatives or real ones."""

TRUNK: Options = {"name": "projected", "backbone": {"name": "mlp"}, "dim": 256}
"""DAML has a layer of its own between a network and the features that its generator makes."""

REAL_NEGATIVES_ONLY = 1_000_000
"""A warm-up longer than any run."""


@dataclass(frozen=True)
class Method:
    """An objective, the metric losses that it is put on, and what is tried on the dev split."""

    objective: Options
    losses: Mapping[str, Options] | None
    candidates: Mapping[str, Mapping[str, Options]]
    baseline: str = ""
    """The method that it is compared with, what was chosen for which it takes over; none for a baseline."""
    backbone: Options = field(default_factory=lambda: {"name": "mlp"})


DAML: Options = {"name": "daml", "normalize": True, "negatives": 5}

METHODS = {
    "metric loss": Method({"name": "metric"}, METRIC_LOSSES, RATES),
    "ECAML": Method(
        {"name": "ecaml"},
        METRIC_LOSSES,
        {f"weight {weight}": {"objective": {"weight": weight}} for weight in (0.03, 0.13, 0.5)},
        "metric loss",
    ),
    "class adversary": Method(
        {"name": "class_adversarial", "on": "embedding", "hidden_dim": 128, "ramp_steps": 100},
        METRIC_LOSSES,
        {f"weight {weight}": {"objective": {"weight": weight}} for weight in (0.03, 0.3, 1.0)},
        "metric loss",
    ),
    "real negatives": Method(
        {**DAML, "warmup_steps": REAL_NEGATIVES_ONLY}, SYNTHETIC_LOSSES, RATES | NOT_NORMALIZED, backbone=TRUNK
    ),
    "real negatives, trunk slowed": Method(
        {**DAML, "warmup_steps": REAL_NEGATIVES_ONLY},
        SYNTHETIC_LOSSES,
        {"as DAML's": {"optimizer": {"rates": {"embedder.backbone": 0.001}, "rates_from_epoch": 2}}},
        "real negatives",
        backbone=TRUNK,
    ),
    "DAML": Method(
        DAML,
        SYNTHETIC_LOSSES,
        {
            "no warm-up": {},
            "no warm-up, lambda_2 50": {"objective": {"adv_weight": 50.0}},
            "no warm-up, split gradients": {"objective": {"gradients": "split"}},
            "warm-up, then the released rates": {
                "objective": {"warmup_steps": 80},
                "optimizer": {
                    "rates": {"embedder.backbone": 0.001, "objective.generator": 0.1},
                    "rates_from_epoch": 2,
                },
            },
        },
        "real negatives",
        backbone=TRUNK,
    ),
    "softmax": Method({"name": "ie", "weight": 0.0}, None, RATES),
    **{
        title: Method(
            {"name": "ie", "form": form, "center_rate": 0.5},
            None,
            {f"weight {weight}": {"objective": {"weight": weight}} for weight in (0.01, 0.1, 1.0)},
            "softmax",
        )
        for title, form in {
            "softmax + center loss": "center",
            "IE magnet": "magnet",
            "IE mean-distance": "mean-distance",
            "IE exp-hinge": "exp-hinge",
        }.items()
    },
}
"""Methods by what the page calls them; a baseline stands before those that are compared with it."""


def losses(method: str) -> Sequence[str]:
    """The metric losses that a method is put on; one without a name where it is a loss of its own."""
    return list(METHODS[method].losses or [""])
