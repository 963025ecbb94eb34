"""The pictures of the experiment: what every method gains, and what an embedding of unseen emoji looks like."""

from __future__ import annotations

from pathlib import Path

from scripts.experiments.study import validation
from scripts.experiments.zero_shot.methods import METRIC_LOSSES
from scripts.experiments.zero_shot.runs import CRITERION, Arm, Experiment, compared, embed, gained, load_test, runs
from xmodal.evaluation.pages import fill_page
from xmodal.figures import new_figure, save_figure
from xmodal.search.neighbors import draw_map, draw_neighbors

EXAMPLES = Path(__file__).with_name("pictures.md")


def draw_gains(experiment: Experiment, path: Path) -> None:
    """What every method gains on every metric loss, with intervals."""
    figure = new_figure(4.5 * len(experiment.data), 7)
    for axes, data in zip(figure.subplots(1, len(experiment.data), squeeze=False)[0], experiment.data, strict=True):
        pairs = compared(data)
        colors = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(arm.method for arm, _ in pairs))}
        for place, (arm, baseline) in enumerate(pairs):
            difference = gained(experiment, arm, baseline)
            axes.plot([difference.low, difference.high], [place, place], color=colors[arm.method], linewidth=2)
            axes.plot(difference.mean, place, "o", color=colors[arm.method], markersize=4)
        axes.axvline(0, color="0.6", linewidth=1)
        axes.set_yticks(range(len(pairs)), [f"{arm.method} {arm.loss}".strip() for arm, _ in pairs], fontsize=7)
        axes.invert_yaxis()
        axes.set(title=data.stem, xlabel=f"{CRITERION} gained over the baseline")
    save_figure(figure, path)


OPEN_ARTWORK = ("Goog", "Twtr")
"""Folders of the vendors whose drawings may be shown: Noto (Apache 2.0) and Twemoji (CC BY 4.0)."""


def draw_examples(experiment: Experiment) -> str:
    """Neighbors and a map of unseen emoji by the baseline that is best on the dev split; text that shows them.

    Nothing is drawn of other data, whose pictures are not for us to publish, nor where the drawings are not there.
    """
    for data in experiment.data:
        images = load_test(data)
        rows = [row for row, path in enumerate(images.image_id) if Path(path).parent.name in OPEN_ARTWORK]
        if not rows or not all(Path(images.image_id[row]).is_file() for row in rows):
            continue
        arms = [Arm(data, "metric loss", loss) for loss in METRIC_LOSSES]
        best = max(arms, key=lambda arm: validation(runs(experiment, arm)[0])[CRITERION])
        embeddings, labels = embed(runs(experiment, best)[0])[rows], images.labels[rows]
        files = [images.image_id[row] for row in rows]
        sheet, plane = (experiment.page.with_name(f"zero_shot_{name}.jpg") for name in ("neighbors", "map"))
        draw_neighbors(embeddings, labels, files, range(0, len(rows), len(rows) // 5)[:5], sheet, count=6)
        shown = slice(0, 200)
        draw_map(embeddings[shown], labels[shown], plane, images=files[shown])
        return fill_page(EXAMPLES, loss=best.loss, sheet=sheet.name, plane=plane.name)
    return ""
