"""A leaderboard of all heads on the same features: `python -m scripts.experiments.heads`.

    python -m preprocess.coco_annotations compact --input coco_objects --output data/coco_objects --whole-image \
        --max-regions 12
    python -m scripts.experiments.heads --list
    OMP_NUM_THREADS=1 python -m scripts.experiments.heads --data-sets coco_objects

`flickr8k_full` is made as Flickr8k in docs/results/matching.md, with `--max-regions 12`. Every head is trained by its
own published recipe, scaled to minutes on one core (`entries.py` says how), with as many seeds as are asked for. The
result of every run is appended to one file as it ends, and the page is written anew; runs that are in the file are not
done again, the same command started twice shares them between two processes, and a run that was stopped goes on.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scripts.experiments.heads.entries import ENTRIES, configure
from scripts.experiments.heads.page import write_page
from scripts.experiments.record import Record
from scripts.experiments.study import check_names, claimed, slug, validation
from xmodal.data.split import open_split, split_captions
from xmodal.entry import run_program
from xmodal.evaluation import evaluate_protocol
from xmodal.model import Matcher
from xmodal.training.checkpoints import BEST, LOG, environment
from xmodal.training.config import TrainConfig, to_dict
from xmodal.training.sampler import ShuffledBatches

if TYPE_CHECKING:
    from collections.abc import Mapping

EPOCHS = {"coco_objects": 3, "flickr8k_full": 2}
"""Data sets, and passes over them in a run."""

DIMS = {"coco_objects": 256, "flickr8k_full": 128}
"""Of the joint space of a run."""


@dataclass(frozen=True)
class Leaderboard:
    """Which runs are wanted, and where they go."""

    data_sets: tuple[str, ...] = tuple(EPOCHS)
    """Which data sets: coco_objects, flickr8k_full."""
    heads: tuple[str, ...] = tuple(ENTRIES)
    """Which heads."""
    seeds: int = 3
    """Runs of each."""
    dim: int | None = None
    """Dim of the joint space; None takes what is planned for the data set."""
    epochs: int | None = None
    """Epochs of a run; None takes what is planned for the data set."""
    data: Path = Path("data")
    """Where the folder of each data set is, with region stores, captions and vocabulary."""
    output: Path = Path("runs/leaderboard")
    """Where runs are while they go on; what is recorded is removed."""
    record: Path = Path("docs/results/leaderboard_runs.jsonl")
    """The results of all runs, one a line."""
    page: Path = Path("docs/results/leaderboard.md")
    """The page."""
    only_list: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Only say what is left to do."""

    def __post_init__(self) -> None:
        check_names("data_sets", self.data_sets, EPOCHS)
        check_names("heads", self.heads, ENTRIES)
        if self.seeds < 1 or (self.dim or 8) < 8 or (self.epochs is not None and self.epochs < 1):
            raise ValueError("seeds and epochs must be at least 1, dim at least 8")


@dataclass(frozen=True)
class Run:
    """What identifies a run."""

    data_set: str
    head: str
    seed: int
    dim: int
    epochs: int

    @property
    def key(self) -> tuple[Any, ...]:
        """As a record knows it."""
        return tuple(asdict(self).values())


def main(board: Leaderboard) -> None:
    """Do what is left to do, seed by seed, and write the page after every run."""
    record = Record(board.record)
    left = [run for run in runs_of(board) if run.key not in record.results()]
    if board.only_list:
        print("\n".join(f"{run.data_set}, {run.head}, seed {run.seed}" for run in left))
        print(f"{len(left)} runs are left")
        return
    for wait in (False, True):
        for run in left:
            do_once(board, record, run, wait)
    write_page(board.page, record.results())
    print(f"wrote {board.page}")


def runs_of(board: Leaderboard) -> list[Run]:
    """All that are wanted, so that the first seed of every head comes first; some heads have no other."""
    return [
        Run(data_set, head, seed, (board.dim or DIMS[data_set]) // entry.narrow, board.epochs or EPOCHS[data_set])
        for data_set in board.data_sets
        for seed in range(board.seeds)
        for head, entry in ((head, ENTRIES[head]) for head in board.heads)
        if seed == 0 or not entry.once
    ]


def do_once(board: Leaderboard, record: Record, run: Run, wait: bool) -> None:
    """Do a run, or the rest of it, unless it is recorded or another process is at it."""
    if run.key in record.results():
        return
    config = configured(board, run)
    with claimed(config.output, wait) as mine:
        if not mine or run.key in record.results():
            return
        print(f"{run.data_set}, {run.head}, seed {run.seed}", flush=True)
        record.add(asdict(run), results_of(config))
        shutil.rmtree(config.output)
    write_page(board.page, record.results())


def configured(board: Leaderboard, run: Run) -> TrainConfig:
    """How a run is trained."""
    folder = board.data / run.data_set
    pairs = len(split_captions(folder, "train"))
    entry = ENTRIES[run.head]
    steps = len(ShuffledBatches(pairs, min(entry.batch_size, pairs), run.seed))
    sizes = {"dim": run.dim, "epochs": run.epochs, "steps": steps, "seed": run.seed}
    return configure(entry, data=folder, output=board.output / slug(*map(str, run.key)), **sizes)


def results_of(config: TrainConfig) -> Mapping[str, Any]:
    """Train, test once, and time the scoring of the test split."""
    dev = validation(config)
    split, matcher = open_split(config.data.folder, "test"), Matcher.from_pretrained(config.output / BEST)
    started = perf_counter()
    scores = matcher.score_all(split.source, split.sentences)
    seconds = perf_counter() - started
    return {
        "dev": dev,
        "test": evaluate_protocol(scores, split.relevance),
        "parameters": sum(parameter.numel() for parameter in matcher.parameters()),
        "training_seconds": _training_seconds(config),
        "scoring_seconds_a_million": 1e6 * seconds / scores.numel(),
        "config": to_dict(config),
        "environment": environment(),
    }


def _training_seconds(config: TrainConfig) -> float:
    """Of all steps, from the log: the median step times their number, as a run may be stopped for a while."""
    lines = [json.loads(line) for line in (config.output / LOG).read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    return median(seconds) * len(seconds)


if __name__ == "__main__":
    run_program(main, prog="python -m scripts.experiments.heads")
