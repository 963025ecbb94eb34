"""The page of the experiment: tables and pictures."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from scripts.experiments.study import gain, spread
from scripts.experiments.zero_shot.methods import METHODS, losses
from scripts.experiments.zero_shot.pictures import draw_examples, draw_gains
from scripts.experiments.zero_shot.runs import (
    CRITERION,
    Arm,
    Experiment,
    choose,
    compared,
    gained,
    load_test,
    results,
    untrained,
)
from xmodal.data.atomic import written_whole
from xmodal.evaluation.pages import fill_page
from xmodal.evaluation.report import markdown_table

TEMPLATE = Path(__file__).with_name("page.md")
METRICS = (CRITERION, "R@1", "R-precision", "NMI", "F1")


def write_page(experiment: Experiment) -> None:
    """Tables and pictures."""
    sections = [section(experiment, data) for data in experiment.data]
    gains = experiment.page.with_name("zero_shot_gains.png")
    draw_gains(experiment, gains)
    drawn = draw_examples(experiment)
    text = fill_page(
        TEMPLATE,
        dim=experiment.dim,
        epochs=experiment.epochs,
        steps=experiment.batches_per_epoch,
        batch_size=experiment.batch_size,
        seeds=experiment.seeds,
        summary=summary(experiment),
        gains=gains.name,
        sections="\n".join(sections),
        examples=drawn,
    )
    with written_whole(experiment.page) as whole:
        whole.write_text(text)
    print(f"wrote {experiment.page}")


def section(experiment: Experiment, data: Path) -> str:
    """All numbers of one file of features."""
    header = ["method", "metric loss", "chosen", *METRICS, f"{CRITERION} gained"]
    bare = untrained(data)
    table = [header, ["untrained features", "", "", *(f"{bare[metric]:.1f}" for metric in METRICS), ""]]
    baseline_of = dict(compared(data))
    for name in METHODS:
        for loss in losses(name):
            arm = Arm(data, name, loss)
            found = results(experiment, arm)
            baseline = baseline_of.get(arm)
            gained = gain(results(experiment, baseline), found, CRITERION) if baseline else ""
            numbers = [spread(found, metric) for metric in METRICS]
            table.append([name, loss, choose(experiment, arm), *numbers, gained])
    images = load_test(data)
    about = f"{len(images)} test images of {len(images.class_names)} classes"
    return f"## {data.stem}: {about}\n\n{markdown_table(table)}\n"


def summary(experiment: Experiment) -> str:
    """What each method gained on average, and in how many of its metric losses surely so."""
    table = [["gained over its baseline", *(f"{data.stem}: mean, surely + / -" for data in experiment.data)]]
    for name, method in METHODS.items():
        if not method.baseline:
            continue
        cells = []
        for data in experiment.data:
            found = [gained(experiment, arm, baseline) for arm, baseline in compared(data) if arm.method == name]
            better = sum(difference.low > 0 for difference in found)
            worse = sum(difference.high < 0 for difference in found)
            cells.append(f"{mean(difference.mean for difference in found):+.1f}, {better} / {worse} of {len(found)}")
        table.append([f"{name} over {method.baseline}", *cells])
    return markdown_table(table)
