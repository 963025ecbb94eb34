"""Does ADDR help? The three heads with and without it, same seeds, same budget: `python -m scripts.experiments.addr`.

    python -m preprocess.coco_annotations compact --input coco_objects --output data/coco_objects --whole-image \
        --max-regions 12
    python -m scripts.experiments.addr --data-set coco_objects
    python -m scripts.experiments.addr --data-set flickr8k  # stores as docs/results/matching.md makes them

Settings are chosen on the dev split in runs of one seed that the comparison does not use; the test split is read once,
by the comparison, at the end. The same command started twice shares the runs between two processes. Everything that is
finished is kept, and a run that was stopped goes on.
"""

from __future__ import annotations

from scripts.experiments.addr.page import write_page
from scripts.experiments.addr.runs import choose, comparison, tuning_runs
from scripts.experiments.addr.settings import Experiment  # noqa: TC001 (tyro reads the annotations)
from scripts.experiments.study import train_all
from xmodal.entry import run_program


def main(experiment: Experiment) -> None:
    """Choose, compare, and write the page once all is there."""
    train_all([run for head in experiment.heads for run in tuning_runs(experiment, head).values()])
    chosen = {head: choose(experiment, head) for head in experiment.heads}
    arms = {head: comparison(experiment, head, setting) for head, setting in chosen.items()}
    runs = [run for pair in arms.values() for seed in zip(*pair.values(), strict=True) for run in seed]
    train_all(runs)
    write_page(experiment, chosen, arms)


if __name__ == "__main__":
    run_program(main, prog="python -m scripts.experiments.addr")
