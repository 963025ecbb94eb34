"""Tables of the evidence: what each arm gains over the tuned baseline, run by run, and how often runs fell."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from scripts.experiments.addr.arms import BASELINE, TUNED
from scripts.experiments.addr.plan import TUNING_SEED, Evidence, Run
from scripts.experiments.study import gain, spread
from xmodal.evaluation.report import markdown_table

if TYPE_CHECKING:
    from scripts.experiments.addr.plan import Known
    from scripts.experiments.record import Results

MEASURED = {"test": "rsum", "test_without_whole_image": "rsum without whole images"}
"""What is recorded of the test split, by what its column is called; the second only where images have such regions."""

COLUMNS = (
    "setting",
    "beta",
    "seeds",
    *(name for measured in MEASURED.values() for name in (measured, "over the baseline")),
    "cosine of the means",
    "in the basin",
)


def tables(evidence: Evidence, known: Known) -> str:
    """A table a data set and regime; an arm is compared over the seeds that both have, if these are two or more."""
    compared = {(Run(*key)): results for key, results in known.items() if Run(*key).seed != TUNING_SEED}
    parts = []
    for data_set in evidence.data_sets:
        for regime in evidence.regimes:
            rows = [
                row
                for head in evidence.heads
                for row in _rows(evidence, compared, Run(data_set, head, regime, "", "", None, 0, evidence.dim, 0))
            ]
            if rows:
                parts.append(f"{data_set}, {regime}: test\n\n{markdown_table([['', *COLUMNS], *rows])}")
    return "\n\n".join(parts) or "no two runs of one arm are recorded yet"


def _rows(evidence: Evidence, compared: dict[Run, Results], like: Run) -> list[list[str]]:
    """The arms of one head, setting by setting, each with the baseline of the same setting."""
    arms: dict[tuple[str, str, float | None], dict[int, Results]] = {}
    for run, results in compared.items():
        if (run.data_set, run.head, run.regime, run.dim) == (like.data_set, like.head, like.regime, like.dim):
            arms.setdefault((run.setting, run.arm, run.beta), {})[run.seed] = results
    order = list(TUNED), list(evidence.arms)
    named = sorted(
        (arm for arm in arms if arm[1] in evidence.arms),
        key=lambda arm: (order[0].index(arm[0]), order[1].index(arm[1]), arm[2] or 0.0),
    )
    return [
        _row(like.head, arm, arms[arm], arms.get((arm[0], BASELINE, None), {})) for arm in named if len(arms[arm]) > 1
    ]


def _row(
    head: str, arm: tuple[str, str, float | None], runs: dict[int, Results], baseline: dict[int, Results]
) -> list[str]:
    """What the runs of an arm gave, and what they gained over the baseline in the seeds that both have."""
    setting, name, beta = arm
    cosine = fmean(results["alignment"]["mean_cosine"][-1] for results in runs.values())
    fallen = sum(results["alignment"]["basin_at_step"] is not None for results in runs.values())
    return [
        head if name == BASELINE else f"{head} {name}",
        setting,
        "" if beta is None else f"{beta:g}",
        str(len(runs)),
        *(cell for measured in MEASURED for cell in _gained(measured, runs, {} if name == BASELINE else baseline)),
        f"{cosine:.2f}",
        f"{fallen} of {len(runs)}",
    ]


def _gained(measured: str, runs: dict[int, Results], baseline: dict[int, Results]) -> tuple[str, str]:
    """The rsum of runs, and its gain over the baseline in the seeds that both have; empty for what was not measured."""
    of_runs, of_baseline = (
        {seed: results[measured] for seed, results in sorted(of.items()) if results[measured] is not None}
        for of in (runs, baseline)
    )
    shared = [seed for seed in of_runs if seed in of_baseline]
    before, after = ([of[seed] for seed in shared] for of in (of_baseline, of_runs))
    return (
        spread(list(of_runs.values()), "rsum") if len(of_runs) > 1 else "",
        gain(before, after, "rsum") if len(shared) > 1 else "",
    )
