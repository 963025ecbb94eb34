"""What the scoring benchmark writes: a table, `scoring.json`, its history and pictures beside the page of results."""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scripts.benchmark.history import remember
from xmodal.data.atomic import written_whole
from xmodal.figures import new_figure, save_figure
from xmodal.products import chosen_products, processor

OUTPUT = Path("docs/results")

GOALS = {"t2i": 1.25, "t2i compiled": 1.15, "i2t": 1.35, "BFAN": 1.7}
COCO_5K = (5000, 25000)


class Measured(NamedTuple):
    """What was measured; sizes go by the name that they are shown with, the smallest first."""

    sizes: dict[str, tuple[int, int]]
    seconds: dict[str, dict[str, float]]
    """Of every case at a size."""
    exact: dict[str, dict[str, Any]]
    """Figures of the exact mode at a size."""
    by_size: dict[str, dict[int, float]]
    """Seconds as one size grows."""
    peak_megabytes: float
    """At the largest size, beyond embeddings and result."""

    @property
    def ratios(self) -> dict[str, dict[str, float]]:
        """Times over that of the bare product."""
        return {
            size: {name: s / some["bare product"] for name, s in some.items()} for size, some in self.seconds.items()
        }


def write_report(measured: Measured) -> None:
    """Write and print everything."""
    small, medium, large = measured.sizes
    loop = measured.seconds[small]["loop over captions"]
    minutes = {name: _for_coco(measured.sizes[large]) * s / 60 for name, s in measured.seconds[large].items()}
    report = {
        "environment": _environment(),
        f"loop over captions at {small} / t2i, a pair": {
            label: loop / prod(measured.sizes[small]) / (measured.seconds[label]["t2i"] / prod(size))
            for label, size in measured.sizes.items()
        },
        f"minutes for 5000 x 25000, extrapolated from {large}": minutes,
        f"minutes for 5000 x 25000, extrapolated from {small}": {
            "loop over captions": _for_coco(measured.sizes[small]) * loop / 60
        },
        "exact metrics, t2i": measured.exact,
        "peak MB beyond embeddings and result": {large: measured.peak_megabytes},
        "t2i seconds by size": measured.by_size,
        "seconds": measured.seconds,
        "time / bare float32 product": measured.ratios,
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with written_whole(OUTPUT / "scoring.json") as whole:
        whole.write_text(json.dumps(report, indent=2) + "\n")
    about = report["environment"]
    machine = f"{about['processor']}, {about['threads']} threads"
    seconds = {f"t2i {large}": round(measured.seconds[large]["t2i"], 2)}
    libraries = {name: about[name] for name in ("torch", "products")}
    remember(OUTPUT, measured.ratios, machine=machine, **libraries, seconds=seconds)
    draw(measured.ratios[medium], measured.by_size, medium, OUTPUT / "scoring.png")
    print(json.dumps(report, indent=2))
    print_table(measured.ratios)


def _environment() -> dict[str, Any]:
    return {
        "processor": processor(),
        "products": chosen_products(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


def _for_coco(size: tuple[int, int]) -> float:
    """How many times as many pairs COCO 5K has."""
    return prod(COCO_5K) / prod(size)


def draw(ratios: dict[str, float], by_size: dict[str, dict[int, float]], size: str, path: Path) -> None:
    """Ratios to the bare product with their goals, and the scaling."""
    figure = new_figure(11, 4.5)
    bars, lines = figure.subplots(1, 2)
    shown = {name: ratio for name, ratio in ratios.items() if name in GOALS or "bfloat16" in name}
    bars.barh(list(shown), list(shown.values()))
    for position, name in enumerate(shown):
        if name in GOALS:
            bars.plot([GOALS[name]] * 2, [position - 0.4, position + 0.4], color="black")
    bars.invert_yaxis()
    bars.set(xlabel="time / bare float32 product (line: goal)", title=f"{size} images x captions")
    for name, seconds in by_size.items():
        smallest = min(seconds)
        lines.plot([n / smallest for n in seconds], [t / seconds[smallest] for t in seconds.values()], "o-", label=name)
    lines.set(xlabel="size, relative", ylabel="seconds, relative", title="SCAN t2i float32")
    lines.legend()
    save_figure(figure, path)


def print_table(ratios: dict[str, dict[str, float]]) -> None:
    """Ratios to the bare product by case and size, with the goals."""
    print(f"\n{'time / bare float32 product':28}" + "".join(f"{size:>12}" for size in ratios) + f"{'goal':>12}")
    for name in next(iter(ratios.values())):
        row = [*(some.get(name) for some in ratios.values()), GOALS.get(name)]
        print(f"{name:28}" + "".join(f"{'' if value is None else f'{value:.2f}':>12}" for value in row))
