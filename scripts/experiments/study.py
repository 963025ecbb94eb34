"""What experiments share: many runs that are trained once each, and tables of how arms differ over seeds."""

from __future__ import annotations

import contextlib
import fcntl
import json
from dataclasses import replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from xmodal.data.atomic import written_whole
from xmodal.evaluation.comparison import paired_difference
from xmodal.training import checkpoints
from xmodal.training.config import flatten
from xmodal.training.trainer import train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from xmodal.training.config import RunConfig

VALIDATION, TEST = "validation.json", "test.json"


def slug(*names: str) -> str:
    """A folder's name for what people call something."""
    return "-".join("".join(c if c.isalnum() or c == "." else "_" for c in name).strip("_") for name in names)


def check_names(option: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that do not exist, saying which do.

    Raises:
        ValueError: for the first of them.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: {name!r} does not exist; known: {', '.join(map(repr, known))}")


def train_all(runs: Sequence[RunConfig]) -> None:
    """Train every run that is not finished; a stopped one goes on where it was.

    Several processes may be given the same runs: each takes those that no other has taken, and waits for the rest.
    """
    for wait in (False, True):
        for run in tqdm(runs, "waiting for other processes" if wait else "runs", unit="run"):
            with claimed(run.output, wait) as mine:
                if mine:
                    validation(run)


@contextlib.contextmanager
def claimed(folder: Path, wait: bool) -> Iterator[bool]:
    """Hold a folder for this process, which it loses with its life; says whether it got it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".claim").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def validation(run: RunConfig) -> dict[str, Any]:
    """The validation results of a run's best checkpoint; trains it, or the rest of it, if need be."""

    def finish() -> dict[str, Any]:
        started = (run.output / checkpoints.CHECKPOINT).is_file()
        return train(replace(run, resume=started, progress=False))

    return remembered(run.output / VALIDATION, finish)


def remembered(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds; if it is not there, what is computed now and written to it."""
    if not path.is_file():
        result = compute()
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(result, indent=2))
    return json.loads(path.read_text())


def spread(results: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Mean and standard deviation of a metric over runs, as text."""
    values = [flatten(result)[metric] for result in results]
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def gain(baseline: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The paired difference of a metric and its 95% interval, as text; bold where zero is outside."""
    found = paired_difference(*([flatten(result)[metric] for result in side] for side in (baseline, other)))
    text = f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"
    return f"**{text}**" if found.significant else text
