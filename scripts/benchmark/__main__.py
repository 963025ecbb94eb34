"""Time and memory of the package beside honest baselines: `python -m scripts.benchmark heads`, `scoring`, ..."""

from __future__ import annotations

import argparse
import platform
from importlib import import_module
from pathlib import Path

import torch

SUITES = ("heads", "addr", "scoring", "step", "later", "data", "gpu", "index")
"""Each has a file of its own."""


def main() -> None:
    """Run one suite and print the machine with it."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--repetitions", type=int, default=7, help="timed runs a case; the median is printed")
    parser.add_argument("--images", type=int, default=1_000_000, help="index: how many images")
    parser.add_argument("--demo", type=Path, default=Path("demo_output"), help="index: what `make demo` wrote")
    arguments = parser.parse_args()
    cpu = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{cpu[0].strip()}, {torch.get_num_threads()} threads, {versions}")
    options = {"images": arguments.images, "demo": arguments.demo} if arguments.suite == "index" else {}
    import_module(f"scripts.benchmark.{arguments.suite}").run(arguments.repetitions, **options)


if __name__ == "__main__":
    main()
