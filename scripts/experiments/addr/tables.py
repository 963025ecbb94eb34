"""Tables of the evidence: what each arm gains over the tuned baseline, run by run, and how often runs fell."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from scripts.experiments.addr.arms import BASELINE
from scripts.experiments.addr.plan import TUNING_SEED, Evidence, Run
from scripts.experiments.study import gain, spread
from xmodal.evaluation.report import markdown_table

if TYPE_CHECKING:
    from scripts.experiments.addr.plan import Known
    from scripts.experiments.addr.record import Results

COLUMNS = ("seeds", "rsum", "over the baseline", "cosine of the means", "in the basin")


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
    """The arms of one head."""
    arms: dict[str, dict[int, Results]] = {}
    for run, results in compared.items():
        if (run.data_set, run.head, run.regime, run.dim) == (like.data_set, like.head, like.regime, like.dim):
            arms.setdefault(run.arm, {})[run.seed] = results
    rows = []
    for arm in evidence.arms:
        runs = arms.get(arm, {})
        if len(runs) < 2:
            continue
        tests = [runs[seed]["test"] for seed in sorted(runs)]
        shared = sorted(runs.keys() & arms.get(BASELINE, {}).keys())
        difference = ""
        if arm != BASELINE and len(shared) > 1:
            before, after = ([arms[name][seed]["test"] for seed in shared] for name in (BASELINE, arm))
            difference = gain(before, after, "rsum")
        cosine = fmean(results["alignment"]["mean_cosine"][-1] for results in runs.values())
        fallen = sum(results["alignment"]["basin_at_step"] is not None for results in runs.values())
        name = like.head if arm == BASELINE else f"{like.head} {arm}"
        cells = [str(len(runs)), spread(tests, "rsum"), difference, f"{cosine:.2f}", f"{fallen} of {len(runs)}"]
        rows.append([name, *cells])
    return rows
