"""The page of the experiment: tables and curves."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from scripts.experiments.addr.runs import test, tuning_runs
from scripts.experiments.addr.settings import CANDIDATES, WITHOUT, Experiment
from scripts.experiments.study import gain, spread, validation
from xmodal.data.atomic import written_whole
from xmodal.evaluation.pages import fill_page
from xmodal.evaluation.report import RECALLS, markdown_table
from xmodal.figures import new_figure, save_figure
from xmodal.training.checkpoints import LOG

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xmodal.training.config import TrainConfig

    Arms = Mapping[str, Mapping[str, Sequence[TrainConfig]]]

TEMPLATE = Path(__file__).with_name("page.md")
METRICS = tuple(name.replace(" ", ".") for name in RECALLS)


def write_page(experiment: Experiment, chosen: Mapping[str, str], arms: Arms) -> None:
    """Tables and curves.

    Args:
        experiment: what was done.
        chosen: the setting of every head.
        arms: the compared runs of every head, `baseline` and `ADDR`, seed by seed.
    """
    page = experiment.pages / f"addr_{experiment.data_set}.md"
    curves = page.with_suffix(".png")
    draw_curves({head: pair["ADDR"][0] for head, pair in arms.items()}, curves)
    text = fill_page(
        TEMPLATE,
        data_set=experiment.data_set,
        title=experiment.on.title,
        dim=experiment.dim,
        epochs=experiment.on.epochs,
        tuning_epochs=experiment.on.tuning_epochs,
        seeds=experiment.seeds,
        compared=markdown_table(_compared(arms)),
        chosen="\n".join(f"- {head}: {setting}" for head, setting in chosen.items()),
        tuned=markdown_table(_tuned(experiment)),
        seconds=markdown_table(_seconds(arms)),
        curves=curves.name,
    )
    with written_whole(page) as whole:
        whole.write_text(text)
    print(f"wrote {page}")


def _compared(arms: Arms) -> list[list[str]]:
    """Test results of both arms and their difference, head by head."""
    table = [["test", *RECALLS]]
    for head, pair in arms.items():
        baseline, addr = ([test(run) for run in pair[arm]] for arm in ("baseline", "ADDR"))
        table.append([head, *(spread(baseline, metric) for metric in METRICS)])
        table.append([f"{head} + ADDR", *(spread(addr, metric) for metric in METRICS)])
        table.append(["difference", *(gain(baseline, addr, metric) for metric in METRICS)])
    return table


def _tuned(experiment: Experiment) -> list[list[str]]:
    """What every candidate did on the dev split."""
    tried = [tuning_runs(experiment, head) for head in experiment.heads]
    rows = [
        [name, *(f"{validation(runs[name])['rsum']:.1f}" if name in runs else "" for runs in tried)]
        for name in (WITHOUT, *CANDIDATES)
        if any(name in runs for runs in tried)
    ]
    return [["dev rsum", *experiment.heads], *rows]


def _seconds(arms: Arms) -> list[list[str]]:
    """How long a step took."""
    rows = [
        [arm, *(f"{median(logged(pair[arm][0].output, 'seconds')):.2f}" for pair in arms.values())]
        for arm in ("baseline", "ADDR")
    ]
    return [["median seconds a step", *arms], *rows]


def logged(folder: Path, name: str) -> list[float]:
    """The values of a name in the log of a run's folder, in the order of steps."""
    lines = map(json.loads, (folder / LOG).read_text().splitlines())
    return [line[name] for line in lines if name in line]


def draw_curves(runs: Mapping[str, TrainConfig], path: Path) -> None:
    """The discriminators' error, its distinctness term and the ratio of gradients over the steps of one run a head."""
    names = {
        "loss/addr/adv": "L_adv",
        "loss/addr/reg": "L_reg",
        "addr/gradient_ratio": "adversarial / ranking gradient",
    }
    figure = new_figure(12, 3.5)
    plots = figure.subplots(1, len(names))
    for axes, (name, title) in zip(plots, names.items(), strict=True):
        for head, run in runs.items():
            axes.plot(logged(run.output, name), label=head, linewidth=1)
        axes.set(title=title, xlabel="step")
    plots[0].legend()
    save_figure(figure, path)
