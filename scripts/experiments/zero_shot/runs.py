"""The runs of the experiment: those that choose the settings, and those that are compared."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from scripts.experiments.study import TEST, remembered, validation
from scripts.experiments.zero_shot.methods import METHODS, Options, losses
from xmodal.data.labelled import load_labelled
from xmodal.embedder import Embedder
from xmodal.evaluation.comparison import Difference, paired_difference
from xmodal.evaluation.labelled import evaluate_embeddings
from xmodal.objectives.metric import PROXY_LOSSES
from xmodal.training.checkpoints import BEST
from xmodal.training.config import EmbedderConfig, LabelledDataConfig, OptimizerConfig, RetrievalConfig

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from xmodal.data.labelled import LabelledFeatures


CRITERION = "mAP@R"

PROXY_RATE = 100.0
"""Factor on the learning rate of proxies, as usual for them (Kim et al., CVPR 2020)."""


@dataclass(frozen=True)
class Experiment:
    """Regularizers of metric learning on classes never seen."""

    data: tuple[Path, ...] = (Path("data/grocery.h5"), Path("data/emoji.h5"))
    """Files of features with the splits train, dev and test."""
    output: Path = Path("runs/zero_shot")
    """Where the runs go."""
    page: Path = Path("docs/results/zero_shot.md")
    """Page to write; its pictures go beside it."""
    dim: int = 128
    """Length of the embeddings."""
    epochs: int = 5
    """Epochs of every run; the best on the dev split counts."""
    batches_per_epoch: int = 40
    """Steps in an epoch."""
    batch_size: int = 64
    """Images in a batch, four of each class."""
    seeds: int = 5
    """Seeds of the comparison."""


@dataclass(frozen=True)
class Arm:
    """What is trained on what: a file of features, a method and, where it is put on one, a metric loss."""

    data: Path
    method: str
    loss: str = ""


def tuning_runs(experiment: Experiment, arm: Arm) -> dict[str, RetrievalConfig]:
    """A run with every candidate, all with the same seed."""
    return {
        name: configure(experiment, arm, name, f"tuning/{slug(name)}", seed=1000)
        for name in METHODS[arm.method].candidates
    }


def choose(experiment: Experiment, arm: Arm) -> str:
    """The candidate that is best on the dev split."""
    tried = tuning_runs(experiment, arm)
    return max(tried, key=lambda name: validation(tried[name])[CRITERION])


def runs(experiment: Experiment, arm: Arm) -> list[RetrievalConfig]:
    """The runs of the comparison, seed by seed."""
    chosen = choose(experiment, arm)
    return [configure(experiment, arm, chosen, f"seed{seed}", seed) for seed in range(experiment.seeds)]


def configure(experiment: Experiment, arm: Arm, candidate: str, name: str, seed: int) -> RetrievalConfig:
    """One run of an arm with one of its method's candidates."""
    method = METHODS[arm.method]
    chosen = settings(experiment, arm, candidate)
    objective = {**method.objective, **chosen["objective"]}
    if method.losses is not None:
        objective["metric"] = {"name": arm.loss, **method.losses[arm.loss]}
    rates = {"rates": {"objective.metric": PROXY_RATE}} if arm.loss in PROXY_LOSSES else {}
    return RetrievalConfig(
        output=experiment.output / arm.data.stem / slug(f"{arm.method} {arm.loss}") / name,
        data=LabelledDataConfig(arm.data, batches_per_epoch=experiment.batches_per_epoch),
        model=EmbedderConfig(method.backbone, experiment.dim),
        objective=objective,
        optimizer=OptimizerConfig(**{**rates, "schedule": "constant", **chosen["optimizer"]}),
        epochs=experiment.epochs,
        batch_size=experiment.batch_size,
        recall_at=(1,),
        criterion=CRITERION,
        seed=seed,
    )


def settings(experiment: Experiment, arm: Arm, candidate: str) -> dict[str, Options]:
    """What a candidate says of objective and optimizer, over what was chosen for the baseline."""
    method = METHODS[arm.method]
    settled: dict[str, Options] = {"objective": {}, "optimizer": {}}
    if method.baseline:
        baseline = replace(arm, method=method.baseline)
        settled = settings(experiment, baseline, choose(experiment, baseline))
    return {part: {**options, **method.candidates[candidate].get(part, {})} for part, options in settled.items()}


def slug(text: str) -> str:
    """A text as the name of a folder."""
    return "-".join(text.replace(",", "").replace("+", "").lower().split())


@functools.cache
def load_test(data: Path) -> LabelledFeatures:
    """The test split."""
    return cast("LabelledFeatures", load_labelled(data, "test"))  # this experiment is about files of features


def untrained(data: Path) -> Options:
    """Test results of the features as they are."""
    images = load_test(data)
    return evaluate_embeddings(images.features, images.labels, ks=[1])


def test(run: RetrievalConfig) -> Options:
    """Test results of a run's best checkpoint, computed once."""

    def evaluate() -> Options:
        images = load_test(run.data.path)
        return evaluate_embeddings(embed(run), images.labels, ks=[1])

    return remembered(run.output / TEST, evaluate)


def embed(run: RetrievalConfig) -> Float[Tensor, "image dim"]:
    """What a run's best checkpoint makes of the test split."""
    return Embedder.from_pretrained(run.output / BEST).embed_all(load_test(run.data.path))


def results(experiment: Experiment, arm: Arm) -> list[Options]:
    """Test results of an arm, seed by seed."""
    return [test(run) for run in runs(experiment, arm)]


def compared(data: Path) -> list[tuple[Arm, Arm]]:
    """Every method with a baseline, and that baseline, on a file of features."""
    return [
        (Arm(data, name, loss), Arm(data, method.baseline, loss))
        for name, method in METHODS.items()
        if method.baseline
        for loss in losses(name)
    ]


def gained(experiment: Experiment, arm: Arm, baseline: Arm) -> Difference:
    """The paired difference in the criterion."""
    sides = ([result[CRITERION] for result in results(experiment, side)] for side in (baseline, arm))
    return paired_difference(*sides)
