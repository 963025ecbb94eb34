"""Everything that a GPU computes, within ten minutes of one: `python -m scripts.benchmark gpu`.

The fused kernel beside the bare product, training steps of the published heads, and the way of the data to the device.
What each section gave is written as it ends into `docs/results/gpu.json` and a page beside it. `--dry-run` runs every
line on a CPU, Triton in its interpreter, and writes nothing into the repository: do that first.
"""

from __future__ import annotations

import json
import os
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from scripts.benchmark.gpu.machine import Machine
from scripts.benchmark.history import commit
from xmodal.data.atomic import written_whole
from xmodal.evaluation.report import markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

OUTPUT = Path("docs/results")


def run(repetitions: int, *, dry_run: bool = False) -> None:
    """All sections, one after another; each is on disk when it ends."""
    if dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, which the sections do
    machine = Machine.rehearsed() if dry_run else Machine.at_hand()
    output = Path(tempfile.mkdtemp()) if dry_run else OUTPUT
    started = datetime.now(timezone.utc).isoformat(timespec="minutes")
    about = {"device": machine.name, "torch": torch.__version__, "date": started, "commit": commit()}
    found: dict[str, Any] = {"about": about, "sections": {}}
    print(f"{machine.name}: about ten minutes" if machine.is_gpu else machine.name)
    start = perf_counter()
    for title, section in sections().items():
        rows = []
        for row in section(machine, 1 if dry_run else repetitions):
            tqdm.write(f"{title}: " + ", ".join(f"{name} {shown(value)}" for name, value in row.items()))
            rows.append(row)
        found["sections"][title] = {"rows": rows, "minutes": (perf_counter() - start) / 60}
        write(output, found)
    print(f"wrote {output / 'gpu.json'} and {output / 'gpu.md'}, {(perf_counter() - start) / 60:.1f} minutes")


def sections() -> Mapping[str, Callable[[Machine, int], Iterable[Mapping[str, str | float]]]]:
    """What is measured, the most wanted first."""
    from scripts.benchmark.gpu import kernel, training

    return {
        "training steps": training.steps,
        "scoring all pairs in bfloat16": kernel.scoring,
        "scores and gradients of a batch in bfloat16": kernel.gradients,
        "loading float16 features": training.loading,
    }


def write(output: Path, found: Mapping[str, Any]) -> None:
    """The numbers and the page, whole."""
    with written_whole(output / "gpu.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    parts = [f"## {title}\n\n{table(section['rows'])}\n" for title, section in found["sections"].items()]
    about = ", ".join(f"{name} {value}" for name, value in found["about"].items())
    with written_whole(output / "gpu.md") as temporary:
        temporary.write_text(
            f"# On a GPU\n\nWritten by `python -m scripts.benchmark gpu`: {about}.\n\n" + "\n".join(parts)
        )


def table(rows: Sequence[Mapping[str, str | float]]) -> str:
    """Rows that need not have the same columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table([names, *([shown(row.get(name, "")) for name in names] for row in rows)])


def shown(value: str | float) -> str:
    """A number in four digits, or a text."""
    return value if isinstance(value, str) else f"{value:.4g}"
