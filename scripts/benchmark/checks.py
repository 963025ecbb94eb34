"""What the checks cost: opening and reading a store and loading a model, against an older checkout, in turns.

git worktree add --detach /tmp/before bae560d
python -m scripts.benchmark.checks --before /tmp/before
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES, REGIONS, DIM, BATCH, WORDS = 768, 36, 2048, 128, 8000

WRITE = f"""
import sys
import numpy as np
from xmodal.data import RegionStoreWriter
numbers = np.random.default_rng(0)
with RegionStoreWriter(sys.argv[1], dim={DIM}, extractor="by hand", dtype="float16") as writer:
    for image in range({IMAGES}):
        writer.write(str(image), numbers.standard_normal(({REGIONS}, {DIM}), dtype=np.float32))
"""

SAVE = f"""
import sys
from xmodal.model import Matcher
image = {{"name": "regions", "input_dim": {DIM}, "dim": 1024}}
text = {{"name": "gru", "dim": 1024, "word_dim": 300}}
words = [str(number) for number in range({WORDS})]
Matcher(image, text, {{"name": "scan"}}, vocabulary=words).save_pretrained(sys.argv[1])
"""

MEASURE = f"""
import json, sys
from time import process_time  # other load on the machine does not count
import numpy as np
from xmodal.data import RegionStore
from xmodal.model import Matcher

def best(run, times):
    found = []
    for _ in range(times):
        start = process_time()
        run()
        found.append(process_time() - start)
    return min(found)

store = RegionStore(sys.argv[1])
batches = np.random.default_rng(0).permutation({IMAGES}).reshape(-1, {BATCH})
read = lambda: [store.batch(batch) for batch in batches]
read()
print(json.dumps({{
    "opening a store": best(lambda: len(RegionStore(sys.argv[1])), 20),
    "reading a store": best(read, 5),
    "loading a model": best(lambda: Matcher.from_pretrained(sys.argv[2]), 15),
}}))
"""


def run_in(checkout: Path, program: str, *arguments: str) -> str:
    """What a program prints that imports xmodal from a checkout.

    >>> run_in(Path.cwd(), "print(7)").strip()
    '7'
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=checkout).stdout


def main() -> None:
    """Measure both checkouts in turns and print the best of each, and how they compare."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.checks", description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="an older checkout")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    checkouts = {"before": options.before.resolve(), "now": Path(__file__).parents[2]}
    times: dict[str, dict[str, list[float]]] = {name: {} for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/train.h5"
        run_in(checkouts["now"], WRITE, store)
        for name, checkout in checkouts.items():
            run_in(checkout, SAVE, f"{folder}/{name}")
        for _ in range(options.repetitions):
            for name, checkout in checkouts.items():
                for what, seconds in json.loads(run_in(checkout, MEASURE, store, f"{folder}/{name}")).items():
                    times[name].setdefault(what, []).append(seconds)
    print(f"{'best of ' + str(options.repetitions) + ', ms':20}{'before':>10}{'now':>10}{'now / before':>14}")
    for what in times["now"]:
        before, now = (min(times[name][what]) for name in ("before", "now"))
        print(f"{what:20}{1e3 * before:10.2f}{1e3 * now:10.2f}{now / before:13.2f}x")


if __name__ == "__main__":
    main()
