"""Do DAML, ECAML, a class adversary and IE help classes never seen? `python -m scripts.experiments.zero_shot`.

    python -m scripts.experiments.zero_shot --data data/grocery.h5 data/emoji.h5 --output runs/zero_shot

The data are features with the splits train, dev and test, which share no class. Settings are chosen on the dev split by
runs of one seed that the comparison does not use; the test split is read once, at the end. Everything that is finished
is kept, and the same command goes on where it was stopped; started twice, two processes share the runs.
"""

from __future__ import annotations

import torch

from scripts.experiments.study import train_all
from scripts.experiments.zero_shot.methods import METHODS, losses
from scripts.experiments.zero_shot.page import write_page
from scripts.experiments.zero_shot.runs import Arm, Experiment, runs, tuning_runs
from xmodal.entry import run_program


def main(experiment: Experiment) -> None:
    """Choose, compare, and write the page once all is there."""
    arms = [Arm(data, method, loss) for data in experiment.data for method in METHODS for loss in losses(method)]
    for baselines in (True, False):
        some = [arm for arm in arms if baselines == (not METHODS[arm.method].baseline)]
        train_all([run for arm in some for run in tuning_runs(experiment, arm).values()])
    train_all([run for arm in arms for run in runs(experiment, arm)])
    write_page(experiment)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_program(main, prog="python -m scripts.experiments.zero_shot")
