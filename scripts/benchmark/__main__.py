"""Time and memory of the package beside honest baselines: `python -m scripts.benchmark heads`, `scoring`, ..."""

from __future__ import annotations

import argparse
import inspect
import platform
from importlib import import_module
from pathlib import Path

import torch

SUITES = ("heads", "addr", "scoring", "step", "later", "data", "full-size", "gpu", "index", "certified", "serve")
"""Each has a file of its own, whose `run` takes the repetitions and those of the other options that it knows."""


def main() -> None:
    """Run one suite and print the machine with it."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--repetitions", type=int, default=7, help="timed runs a case; the median is printed")
    parser.add_argument("--images", type=int, help="index, serve: how many images; by default 1,000,000 and 10,000")
    parser.add_argument("--demo", type=Path, help="index, serve: what `make demo` wrote; by default demo_output")
    parser.add_argument("--model", type=Path, help="certified: a trained run; by default the demo's")
    parser.add_argument("--data", type=Path, help="certified: its data folder")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=None,
        help="full-size, gpu: run every line on next to nothing, on any machine: their time is too dear for a slip",
    )
    arguments = parser.parse_args()
    suite = import_module(f"scripts.benchmark.{arguments.suite.replace('-', '_')}")
    named = ("images", "demo", "model", "data", "dry_run")
    options = {name: value for name in named if (value := getattr(arguments, name)) is not None}
    for name in options.keys() - inspect.signature(suite.run).parameters.keys():
        parser.error(f"{arguments.suite} takes no --{name.replace('_', '-')}")
    cpu = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{cpu[0].strip()}, {torch.get_num_threads()} threads, {versions}")
    suite.run(arguments.repetitions, **options)


if __name__ == "__main__":
    main()
