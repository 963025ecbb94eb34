"""The leaderboard as a page."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from scripts.experiments.heads.entries import ENTRIES
from xmodal.data.atomic import written_whole
from xmodal.evaluation.report import markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLUMNS = (
    "",
    "dim",
    "batch",
    "seeds",
    *(f"{way} R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)),
    "rsum",
    "million parameters",
    "training, min",
    "scoring, s a million pairs",
)

REMARKS = Path(__file__).with_name("remarks.md")
"""What whoever looked at the runs has to say of them."""

ABOUT = """# Leaderboard

Written by `python -m scripts.experiments.heads`, which goes on where it stopped; its runs are in
[leaderboard_runs.jsonl](leaderboard_runs.jsonl). Every head is trained by its own published recipe for Flickr30k,
scaled to minutes on one core: a smaller joint space, few epochs, a learning rate of 0.001 that falls with the cosine,
and losses of the hardest negatives begin with all of them. So the order here is not that of the published figures,
which take hours on a GPU: it says what a head gives for little. Heads that compute something anew for every pair take
smaller batches; those that take longest have one seed, a part of the dev split and some a quarter of the dim. The best
checkpoint by rsum on the dev split reads the test split once. Mean and standard deviation over seeds; times are of one
thread beside whatever else the machine did.
"""


def write_page(path: Path, results: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> None:
    """A table a data set, best rsum first, of all runs that are recorded.

    >>> from pathlib import Path
    >>> write_page(Path("leaderboard.md"), {})
    >>> Path("leaderboard.md").read_text().splitlines()[0]
    '# Leaderboard'
    """
    groups: dict[tuple[str, int], dict[tuple[str, int], list[Mapping[str, Any]]]]
    groups = defaultdict(lambda: defaultdict(list))
    for result in results.values():
        run = result["run"]
        groups[run["data_set"], run["epochs"]][run["head"], run["dim"]].append(result)
    parts = [ABOUT]
    for (data_set, epochs), heads in sorted(groups.items()):
        ordered = sorted(heads.items(), key=lambda head: -mean(rsums(head[1])))
        table = markdown_table([COLUMNS, *(_row(name, dim, found) for (name, dim), found in ordered)])
        parts.append(f"## {data_set}: {epochs} epochs\n\n{table}\n")
    notes = [f"- {name}: {entry.note}." for name, entry in ENTRIES.items() if entry.note]
    parts.append("Otherwise than in the recipes:\n\n" + "\n".join(notes) + "\n")
    parts.append(REMARKS.read_text())
    with written_whole(path) as temporary:
        temporary.write_text("\n".join(parts))


def rsums(results: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of the test split, run by run.

    >>> rsums([{"test": {"rsum": 250.0}}])
    [250.0]
    """
    return [result["test"]["rsum"] for result in results]


def _row(name: str, dim: int, results: Sequence[Mapping[str, Any]]) -> list[str]:
    recalls = [
        f"{mean(result['test'][way][f'R@{k}'] for result in results):.1f}" for way in ("i2t", "t2i") for k in (1, 5, 10)
    ]
    found = rsums(results)
    rsum = f"{mean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")
    minutes = mean(result["training_seconds"] for result in results) / 60
    scoring = mean(result["scoring_seconds_a_million"] for result in results)
    parameters, batch = results[0]["parameters"] / 1e6, results[0]["config"]["batch_size"]
    about = (name, str(dim), str(batch), str(len(results)))
    return [*about, *recalls, rsum, f"{parameters:.1f}", f"{minutes:.1f}", f"{scoring:.1f}"]
