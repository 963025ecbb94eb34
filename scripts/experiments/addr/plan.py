"""What is to be run: first the baseline is tuned, then what each arm adds, then the arms are compared over seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from scripts.experiments.addr.arms import ALL, ARMS, BASELINE, BETAS, COMPARED, REGIMES, SOURCES, TUNED
from scripts.experiments.study import check_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scripts.experiments.record import Results

    Known = Mapping[tuple[Any, ...], Results]

TUNING_SEED = 1000
"""A seed of its own, with which settings are chosen on the dev split."""


@dataclass(frozen=True)
class Evidence:
    """ADDR, its controls and a tuned baseline: which runs are wanted, and where they go."""

    data_sets: tuple[str, ...] = tuple(SOURCES)
    """Which data sets: coco_objects, flickr8k_full."""
    heads: tuple[str, ...] = tuple(COMPARED)
    """Which heads."""
    arms: tuple[str, ...] = ARMS
    """Which arms; those that add something are compared with the baseline."""
    regimes: tuple[str, ...] = (ALL,)
    """Under which conditions; `all` is all of the data as it is."""
    seeds: int = 5
    """Seeds of the comparison."""
    setting: str | None = None
    """Setting of the baseline, which is tuned unless it is given."""
    beta: float | None = None
    """Weight of what each arm adds, which is tuned unless it is given."""
    dim: int = 256
    """Dim of the joint space."""
    epochs: int | None = None
    """Epochs of a run that is not tuned to be longer; None takes what is planned for the data set."""
    data: Path = Path("data")
    """Where the folder of each data set is, with region stores, captions and vocabulary."""
    output: Path = Path("runs/addr_evidence")
    """Where runs are while they go on; what is recorded is removed."""
    record: Path = Path("docs/results/addr_runs.jsonl")
    """The results of all runs, one a line."""
    only_list: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Only say what is left to do, and how long it may take."""

    def __post_init__(self) -> None:
        settings = () if self.setting is None else (self.setting,)
        named = {
            "data_sets": (self.data_sets, SOURCES),
            "heads": (self.heads, COMPARED),
            "arms": (self.arms, ARMS),
            "regimes": (self.regimes, REGIMES),
            "setting": (settings, TUNED),
        }
        for option, (names, known) in named.items():
            check_names(option, names, known)
        if self.seeds < 1 or self.dim < 1 or (self.epochs is not None and self.epochs < 1):
            raise ValueError("seeds, dim and epochs must be at least 1")


@dataclass(frozen=True)
class Run:
    """What identifies a run."""

    data_set: str
    head: str
    regime: str
    arm: str
    setting: str
    """Of `TUNED`."""
    beta: float | None
    seed: int
    dim: int
    epochs: int
    """Of a run that is not longer by its setting or its regime."""

    @property
    def key(self) -> tuple[Any, ...]:
        """As a record knows it."""
        return tuple(asdict(self).values())

    @property
    def length(self) -> float:
        """How long it takes, in passes over all images."""
        regime = REGIMES[self.regime]
        return self.epochs * TUNED[self.setting].get("epochs", 1) * regime.epochs * regime.share


class Plan(NamedTuple):
    """Runs that are not recorded yet."""

    ready: list[Run]
    """Those that can begin."""
    waiting: list[Run]
    """Those that wait for settings to be chosen, which are guessed here: the first ones."""


def plan(evidence: Evidence, known: Known) -> Plan:
    """What is left to do after the runs that are known."""
    result = Plan([], [])
    for data_set in evidence.data_sets:
        for head in evidence.heads:
            for run, is_ready in _runs(evidence, known, data_set, head):
                if run.key not in known:
                    (result.ready if is_ready else result.waiting).append(run)
    return result


def _runs(evidence: Evidence, known: Known, data_set: str, head: str) -> Iterator[tuple[Run, bool]]:
    """All runs of one head on one data set, and whether the choices that they depend on are made."""
    epochs = evidence.epochs or SOURCES[data_set].epochs

    def run(regime: str, arm: str, setting: str, beta: float | None, seed: int) -> Run:
        return Run(data_set, head, regime, arm, setting, beta, seed, evidence.dim, epochs)

    settings = TUNED if evidence.setting is None else (evidence.setting,)
    tuning = [run(ALL, BASELINE, setting, None, TUNING_SEED) for setting in settings]
    yield from ((one, True) for one in _compared(tuning))
    best, is_tuned = _best(tuning, known)
    for arm in evidence.arms:
        betas = BETAS.get(arm, (None,)) if evidence.beta is None or arm not in BETAS else (evidence.beta,)
        tried = [run(ALL, arm, best.setting, beta, TUNING_SEED) for beta in betas]
        yield from ((one, is_tuned) for one in _compared(tried))
        chosen, is_chosen = _best(tried, known)
        for regime in evidence.regimes:
            for seed in range(evidence.seeds):
                yield run(regime, arm, best.setting, chosen.beta, seed), is_tuned and is_chosen


def _compared(tried: list[Run]) -> list[Run]:
    """Runs among which one is to be chosen: none where there is no choice."""
    return tried if len(tried) > 1 else []


def _best(tried: list[Run], known: Known) -> tuple[Run, bool]:
    """The run with the best rsum on the dev split, once all are known, or the only one; until then the first."""
    if any(run.key not in known for run in _compared(tried)):
        return tried[0], False
    return max(tried, key=lambda run: known[run.key]["dev"]["rsum"]) if len(tried) > 1 else tried[0], True


def minutes(run: Run, known: Known) -> float:
    """What a run may take: as those of its data set and head that are known, else as planned."""
    alike = [(Run(*key), results) for key, results in known.items()]
    rates = [
        results["seconds"] / 60 / other.length
        for other, results in alike
        if (other.data_set, other.head, other.dim) == (run.data_set, run.head, run.dim)
    ]
    source = SOURCES[run.data_set]
    return run.length * (median(rates) if rates else source.minutes / source.epochs)


def told(evidence: Evidence, known: Known) -> str:
    """What is left to do, head by head, with an estimate of time."""
    left = plan(evidence, known)
    lines = []
    for data_set in evidence.data_sets:
        for head in evidence.heads:
            ready, waiting = ([run for run in runs if (run.data_set, run.head) == (data_set, head)] for runs in left)
            hours = sum(minutes(run, known) for run in (*ready, *waiting)) / 60
            for run in ready:
                beta = "" if run.beta is None else f", beta {run.beta:g}"
                lines.append(f"  {data_set}, {head}, {run.regime}: {run.arm} ({run.setting}{beta}), seed {run.seed}")
            lines.append(
                f"{data_set}, {head}: {len(ready)} runs are ready, {len(waiting)} wait for what is tuned; "
                f"about {hours:.1f} hours of one core"
            )
    total = sum(minutes(run, known) for run in (*left.ready, *left.waiting)) / 60
    lines.append(f"{len(left.ready) + len(left.waiting)} runs are left, about {total:.1f} hours of one core")
    return "\n".join(lines)
