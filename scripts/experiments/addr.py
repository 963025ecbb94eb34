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

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import tyro

from scripts.experiments.study import TEST, gain, remembered, spread, train_all, validation
from xmodal.data.split import open_split
from xmodal.evaluation import evaluate_protocol
from xmodal.evaluation.report import RECALLS, markdown_table
from xmodal.model import Matcher
from xmodal.search.pictures import new_figure, save_figure
from xmodal.training.checkpoints import BEST, LOG
from xmodal.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

METRICS = tuple(name.replace(" ", ".") for name in RECALLS)

HEADS: dict[str, dict[str, Any]] = {
    "SCAN t-i LSE": {"name": "scan"},
    "BFAN prob": {"name": "bfan", "focal": "prob"},
    "VSRN": {"name": "vsrn"},
}

CANDIDATES: dict[str, dict[str, Any]] = {
    "beta 0.3": {"beta": 0.3},
    "beta 1": {"beta": 1.0},
    "beta 3": {"beta": 3.0},
    "beta 10": {"beta": 10.0},
    "beta 30": {"beta": 30.0},
    "beta 3, ridge": {"beta": 3.0, "form": "ridge"},
    "beta 10, ridge": {"beta": 10.0, "form": "ridge"},
    "beta 10, ridge 1": {"beta": 10.0, "form": "ridge", "ridge": 1.0},
    "beta 30, ridge": {"beta": 30.0, "form": "ridge"},
    "beta 10, rate 2": {"beta": 10.0, "rate": 2.0},
    "beta 30, rate 2": {"beta": 30.0, "rate": 2.0},
    "beta 3, no regularizer": {"beta": 3.0, "lambda_reg": 0.0},
    "beta 3, alpha 0.3, lambda 1": {"beta": 3.0, "alpha": 0.3, "lambda_reg": 1.0},
    "beta 3, not centered": {"beta": 3.0, "center": False},
    "beta 3, through regions": {"beta": 3.0, "through": "regions"},
    "beta 1, through words": {"beta": 1.0, "through": "words"},
    "beta 0.3, warm-up to the end": {"beta": 0.3, "beta_warmup_steps": 240},
    "beta 3, amortized": {"beta": 3.0, "form": "amortized"},
}
"""Settings of ADDR that are tried on the dev split; what is not said is as in `SETTINGS`. A mean of cosines' errors has
small gradients: at beta 1 theirs is about a hundredth of InfoNCE's."""

WITHOUT = "without ADDR"

SETTINGS = {"name": "addr", "form": "fast_weights", "reduction": "mean"}


@dataclass(frozen=True)
class DataSet:
    """What the heads are compared on, for how long, and which candidates are tried."""

    title: str
    augmentation: Mapping[str, Any]
    """Of `DataConfig`, as in the recipe of this data set."""
    warmup: int
    """Steps over which beta grows: an epoch."""
    epochs: int
    """Of the compared runs."""
    tuning_epochs: int
    """Of the runs that choose the settings."""
    tried: Mapping[str, Sequence[str]]
    """Candidates for each head."""


DATA_SETS = {
    "coco_objects": DataSet(
        title="COCO objects (3,452 / 500 / 1,000 images of COCO val2017, five captions each; regions are at most 12 "
        "ground-truth objects, class and box, and the whole image)",
        augmentation={"drop_regions": 0.2, "drop_words": 0.2},
        warmup=135,
        epochs=3,
        tuning_epochs=2,
        tried={
            "SCAN t-i LSE": (
                "beta 0.3",
                "beta 1",
                "beta 3",
                "beta 10",
                "beta 30",
                "beta 10, ridge",
                "beta 30, ridge",
                "beta 10, rate 2",
                "beta 30, rate 2",
                "beta 3, no regularizer",
                "beta 3, alpha 0.3, lambda 1",
                "beta 3, not centered",
                "beta 3, through regions",
                "beta 3, amortized",
            ),
            "BFAN prob": ("beta 0.3", "beta 1", "beta 3", "beta 10, ridge"),
            "VSRN": ("beta 0.3", "beta 1", "beta 3", "beta 10, ridge"),
        },
    ),
    "flickr8k": DataSet(
        title="Flickr8k photographs (762 / 113 / 125, five captions each; regions are 36 finds of SSD-MobileNetV3, "
        "described by EfficientNet-lite0 in 1,280 dims)",
        augmentation={},
        warmup=30,
        epochs=8,
        tuning_epochs=8,
        tried={
            "SCAN t-i LSE": ("beta 3", "beta 10", "beta 3, ridge", "beta 10, ridge"),
            "BFAN prob": ("beta 10", "beta 10, ridge", "beta 30, ridge", "beta 10, ridge 1"),
            "VSRN": ("beta 1, through words", "beta 0.3, warm-up to the end", "beta 3, ridge"),
        },
    ),
}


@dataclass(frozen=True)
class Experiment:
    """The three heads with and without ADDR."""

    data_set: Literal["coco_objects", "flickr8k"] = "coco_objects"
    """What to train and test on."""
    data: Path = Path("data")
    """Where the folder of this data set is, with region stores, captions and vocabulary."""
    output: Path = Path("runs/addr")
    """Where the runs go, in a folder of this data set."""
    pages: Path = Path("docs/results")
    """Where the page of this data set is written, with its picture."""
    heads: tuple[str, ...] = tuple(HEADS)
    """Which heads."""
    dim: int = 256
    """Dim of the joint space."""
    seeds: int = 5
    """Seeds of the comparison."""

    @property
    def on(self) -> DataSet:
        """The data set itself."""
        return DATA_SETS[self.data_set]


def main(experiment: Experiment) -> None:
    """Choose, compare, and write the page once all is there."""
    train_all([run for head in experiment.heads for run in tuning_runs(experiment, head).values()])
    chosen = {head: choose(experiment, head) for head in experiment.heads}
    arms = {head: comparison(experiment, head, setting) for head, setting in chosen.items()}
    runs = [run for pair in arms.values() for seed in zip(*pair.values(), strict=True) for run in seed]
    train_all(runs)
    write_page(experiment, chosen, arms)


def configure(
    experiment: Experiment, head: str, adversary: Mapping[str, Any] | None, *, name: str, epochs: int, seed: int
) -> TrainConfig:
    """One run: the recipe of this data set with another head, and a joint space and a number of epochs of its own."""
    text = {"name": "gru", "dim": experiment.dim, "word_dim": 300, "bidirectional": True}
    image: dict[str, Any] = {"name": "regions", "dim": experiment.dim}
    options, folder = dict(HEADS[head]), HEADS[head]["name"]
    if options["name"] == "vsrn":  # which normalizes what it has reasoned
        options, text, image = (
            options | {"dim": experiment.dim},
            text | {"normalize": False},
            image | {"normalize": False},
        )
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


def write_page(
    experiment: Experiment, chosen: Mapping[str, str], arms: Mapping[str, Mapping[str, Sequence[TrainConfig]]]
) -> None:
    """Tables and curves."""
    tests = {head: {arm: [test(run) for run in runs] for arm, runs in pair.items()} for head, pair in arms.items()}
    compared = [["test", *RECALLS]]
    for head, arm in tests.items():
        compared.append([f"{head}", *(spread(arm["baseline"], metric) for metric in METRICS)])
        compared.append([f"{head} + ADDR", *(spread(arm["ADDR"], metric) for metric in METRICS)])
        compared.append(["difference", *(gain(arm["baseline"], arm["ADDR"], metric) for metric in METRICS)])
    tried = [tuning_runs(experiment, head) for head in experiment.heads]
    tuned = [["dev rsum", *experiment.heads]]
    tuned += [
        [name, *(f"{validation(runs[name])['rsum']:.1f}" if name in runs else "" for runs in tried)]
        for name in (WITHOUT, *CANDIDATES)
        if any(name in runs for runs in tried)
    ]
    seconds = [["median seconds a step", *experiment.heads]]
    seconds += [
        [arm, *(f"{median(log(pair[arm][0], 'seconds')):.2f}" for pair in arms.values())]
        for arm in ("baseline", "ADDR")
    ]
    page = experiment.pages / f"addr_{experiment.data_set}.md"
    curves = page.with_suffix(".png")
    draw_curves({head: pair["ADDR"][0] for head, pair in arms.items()}, curves)
    text = PAGE.format(
        data_set=experiment.data_set,
        title=experiment.on.title,
        dim=experiment.dim,
        epochs=experiment.on.epochs,
        tuning_epochs=experiment.on.tuning_epochs,
        seeds=experiment.seeds,
        compared=markdown_table(compared),
        chosen="\n".join(f"- {head}: {setting}" for head, setting in chosen.items()),
        tuned=markdown_table(tuned),
        seconds=markdown_table(seconds),
        curves=curves.name,
    )
    page.write_text(text)
    print(f"wrote {page}")


def log(run: TrainConfig, name: str) -> list[float]:
    """The values of a name in a run's log, in the order of steps."""
    lines = map(json.loads, (run.output / LOG).read_text().splitlines())
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
            axes.plot(log(run, name), label=head, linewidth=1)
        axes.set(title=title, xlabel="step")
    plots[0].legend()
    save_figure(figure, path)


PAGE = """# ADDR on {data_set}

Written by `python -m scripts.experiments.addr --data-set {data_set}`; [addr.md](addr.md) says what to make of it.
{title}, joint space of {dim} dims, bi-GRU, InfoNCE, {epochs} epochs, {seeds} seeds; both arms have the same seeds,
data order and budget. The test split was read once, with the checkpoint that had the best rsum on the dev split. Mean ±
standard deviation over seeds; differences are paired by seed, with a bootstrap 95% interval, bold where zero lies
outside.

{compared}

Settings of ADDR, chosen on the dev split in runs of {tuning_epochs} epochs of another seed:

{chosen}

What the candidates did there (one run each, so differences of a few points are noise):

{tuned}

{seconds}

![curves]({curves})

Above: error of the discriminators on their own pairs, the distinctness term, and the norm of the adversarial gradient
at the embeddings over that of the ranking loss, of the first seed of each head.
"""


if __name__ == "__main__":
    main(tyro.cli(Experiment))
