"""The runs of the experiment: those that choose the settings, and those that are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scripts.experiments.addr.settings import CANDIDATES, HEADS, SETTINGS, TOWERS, WITHOUT, Experiment
from scripts.experiments.study import TEST, remembered, validation
from xmodal.data.split import open_split
from xmodal.evaluation import evaluate_protocol
from xmodal.model import Matcher
from xmodal.training.checkpoints import BEST
from xmodal.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping


def configure(
    experiment: Experiment, head: str, adversary: Mapping[str, Any] | None, *, name: str, epochs: int, seed: int
) -> TrainConfig:
    """One run: the recipe of this data set with another head, and a joint space and a number of epochs of its own."""
    text = {"name": "gru", "dim": experiment.dim, "word_dim": 300, "bidirectional": True, **TOWERS.get(head, {})}
    image: dict[str, Any] = {"name": "regions", "dim": experiment.dim, **TOWERS.get(head, {})}
    options, folder = dict(HEADS[head]), HEADS[head]["name"]
    return TrainConfig(
        output=experiment.output / experiment.data_set / name / folder / f"seed{seed}",
        data=DataConfig(folder=experiment.data / experiment.data_set, **experiment.on.augmentation),
        model=ModelConfig(image=image, text=text, head=options),
        objective={"name": "info_nce", "temperature": 0.05, "learn_temperature": True},
        adversary={**SETTINGS, "beta_warmup_steps": experiment.on.warmup, **adversary} if adversary is not None else {},
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine"),
        epochs=epochs,
        seed=seed,
    )


def tuning_runs(experiment: Experiment, head: str) -> dict[str, TrainConfig]:
    """Short runs without ADDR and with every candidate, all with the same seed, which the comparison does not use."""
    tried = {name: CANDIDATES[name] for name in experiment.on.tried[head]}
    arms: dict[str, dict[str, Any] | None] = {WITHOUT: None, **tried}
    return {
        name: configure(
            experiment,
            head,
            arm,
            name=f"tuning/{name.replace(', ', '_').replace(' ', '-')}",
            epochs=experiment.on.tuning_epochs,
            seed=1000,
        )
        for name, arm in arms.items()
    }


def choose(experiment: Experiment, head: str) -> str:
    """The candidate with the best rsum on the dev split."""
    runs = tuning_runs(experiment, head)
    return max(runs.keys() - {WITHOUT}, key=lambda name: validation(runs[name])["rsum"])


def comparison(experiment: Experiment, head: str, setting: str) -> dict[str, list[TrainConfig]]:
    """The runs of both arms, seed by seed."""
    arms = {"baseline": None, "ADDR": CANDIDATES[setting]}
    return {
        name: [
            configure(experiment, head, arm, name=name, epochs=experiment.on.epochs, seed=seed)
            for seed in range(experiment.seeds)
        ]
        for name, arm in arms.items()
    }


def test(run: TrainConfig) -> dict[str, Any]:
    """Test results of a run's best checkpoint, computed once."""

    def evaluate() -> dict[str, Any]:
        split = open_split(run.data.folder, "test")
        scores = Matcher.from_pretrained(run.output / BEST).score_all(split.source, split.sentences)
        return evaluate_protocol(scores, split.relevance)

    return remembered(run.output / TEST, evaluate)
