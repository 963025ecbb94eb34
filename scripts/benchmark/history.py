"""How the ratios of the scoring benchmark went from run to run: one line a run, and a plot over time."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal.figures import new_figure, save_figure

if TYPE_CHECKING:
    from collections.abc import Mapping

HISTORY, PLOT = "scoring_history.jsonl", "scoring_history.png"

SHOWN = ("t2i", "i2t", "BFAN")
"""Cases that the plot follows."""

MARKERS = "os^Dv"
"""Of machines, in the order of their names."""


def remember(folder: Path, ratios: Mapping[str, Mapping[str, float]], **about: Any) -> None:
    """Add a run to the history in a folder and draw all of it anew.

    Args:
        folder: where the history is; a line that is there stays as it is.
        ratios: times over that of the bare product, by size and case.
        about: machine, libraries and whatever else says what was measured.

    >>> remember(Path("."), {"250 x 1250": {"t2i": 1.25}}, machine="AMD EPYC, 2 threads")
    >>> [(run["machine"], run["ratios"]) for run in read_history(Path("."))]
    [('AMD EPYC, 2 threads', {'250 x 1250': {'t2i': 1.25}})]
    """
    now = datetime.now(timezone.utc).isoformat(timespec="minutes")
    rounded = {size: {name: round(ratio, 3) for name, ratio in some.items()} for size, some in ratios.items()}
    with (folder / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"date": now, "commit": commit(), **about, "ratios": rounded}) + "\n")
    draw(read_history(folder), folder / PLOT)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """All runs, oldest first.

    Raises:
        ValueError: for a line that is damaged.

    >>> read_history(Path("."))
    []
    """
    path = folder / HISTORY
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    runs = [_run_of(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    return sorted(runs, key=lambda run: run["date"])


def _run_of(line: str, where: str) -> dict[str, Any]:
    """One run."""
    try:
        run = json.loads(line)
        return {**run, "date": str(run["date"]), "ratios": dict(run["ratios"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is damaged: {line[:80]!r}; remove or mend it") from error


def commit() -> str:
    """The commit that is measured, marked if there are changes on top of it.

    >>> isinstance(commit(), str)
    True
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Ratios to the bare product, run by run: a panel a case, a line a size, a marker a machine.

    >>> draw([{"date": "2026-11-29", "machine": "AMD", "ratios": {"250 x 1250": {"t2i": 1.3}}}], Path("history.png"))
    >>> Path("history.png").stat().st_size > 1000
    True
    """
    figure = new_figure(11, 4)
    machines = sorted({str(run.get("machine")) for run in runs})
    for panel, name in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
        for size in sorted({size for run in runs for size in run["ratios"]}, key=len):
            points = [(place, run["ratios"].get(size, {}).get(name)) for place, run in enumerate(runs)]
            points = [(place, ratio) for place, ratio in points if ratio is not None]
            line = panel.plot([place for place, _ in points], [ratio for _, ratio in points], "-", label=size)[0]
            for place, ratio in points:
                marker = MARKERS[machines.index(str(runs[place].get("machine"))) % len(MARKERS)]
                panel.plot(place, ratio, marker, color=line.get_color())
        panel.set(title=name, xticks=range(len(runs)))
        panel.set_xticklabels([run["date"][:10] for run in runs], rotation=45, ha="right")
        panel.axhline(1.0, color="black", linewidth=0.8)
    figure.axes[0].set(ylabel="time / bare product")
    figure.axes[0].legend()
    save_figure(figure, path, dpi=110)
