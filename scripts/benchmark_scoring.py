"""Time and memory of scoring all pairs, beside the bare matrix product: `python -m scripts.benchmark scoring`.

Everything is measured in one run, and in turns, so that other load on the machine falls on all alike; ratios are
medians over the turns. The data are random, but retrieval among them is about as hard as on Flickr30k: how many pairs
`evaluate_exact` has to compute again depends on that.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F
from tqdm import tqdm

from scripts.benchmark import loop_over_captions, resident
from xmodal.evaluation import evaluate_retrieval
from xmodal.heads import BFAN, SCAN
from xmodal.scoring import evaluate_exact, score_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

OUTPUT = Path("docs/results")
T2I = SCAN()
I2T = SCAN("i2t", temperature=4.0, lse_scale=5.0)
GOALS = {"t2i": 1.25, "t2i compiled": 1.15, "i2t": 1.35, "BFAN": 1.7}
MEDIUM = (250, 1250)
LARGE = (1000, 5000)
COCO_5K = (5000, 25000)


DISTINCTNESS = 0.3
"""How much an image has of its own beside what it shares with others: makes retrieval about as hard as Flickr30k."""


class Sets(NamedTuple):
    """Encoded images and captions: the arguments of `score_all`, and which image a caption describes."""

    regions: Tensor
    words: Tensor
    region_mask: None
    word_mask: Tensor
    caption_image: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, None, Tensor]:
        """What is scored."""
        return self.regions, self.words, self.region_mask, self.word_mask


def random_sets(images: int, captions: int, *, regions: int = 36, dim: int = 1024) -> Sets:
    """Unit features; caption lengths are log-normal around 12 tokens with a long tail, about as in COCO."""
    generator = torch.Generator().manual_seed(0)
    lengths = (2.45 + 0.3 * torch.randn(captions, generator=generator)).exp().round().long().clamp(3, 50)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    caption_image = torch.arange(captions) * images // captions
    # Images come in tens that look alike; a word resembles one region of its image, some words hardly at all.
    scenes = torch.randn(-(-images // 10), regions, dim, generator=generator).repeat_interleave(10, dim=0)[:images]
    features = F.normalize(scenes + DISTINCTNESS * torch.randn(images, regions, dim, generator=generator), dim=-1)
    words = torch.zeros(*mask.shape, dim)
    words[mask] = F.normalize(torch.randn(int(mask.sum()), dim, generator=generator), dim=-1)
    picked = torch.randint(regions, mask.shape, generator=generator)[mask]
    likeness = torch.rand(len(picked), 1, generator=generator)
    resembled = features[caption_image[:, None].expand(mask.shape)[mask], picked]
    words[mask] = F.normalize(words[mask].add_(resembled.mul_(likeness)), dim=-1)
    return Sets(features, words, None, mask, caption_image)


class BareProduct:
    """Every region times every real word, packed beforehand, a cache-sized block at a time into one buffer.

    What no head that attends can go below; nothing but the products is timed.
    """

    def __init__(self, sets: Sets, dtype: torch.dtype = torch.float32) -> None:
        self.rows, self.columns = sets.regions.flatten(0, 1).to(dtype), sets.words[sets.word_mask].to(dtype)
        self.columns = F.pad(self.columns, (0, 0, 0, -len(self.columns) % 16))  # unaligned rows take much longer
        self.buffer = torch.empty(1 << 20, dtype=dtype)

    def __call__(self) -> None:
        """The products, and nothing kept of them."""
        for columns in self.columns.split(800):
            for rows in self.rows.split(1024):
                out = self.buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
                torch.mm(rows, columns.T, out=out)


def cases_of(sets: Sets, *, loop: bool, compiled: bool) -> dict[str, Callable[[], object]]:
    """What is timed, the baseline first."""
    low = torch.bfloat16
    cases: dict[str, Callable[[], object]] = {"bare product": BareProduct(sets)}
    cases["bare product bfloat16"] = BareProduct(sets, low)
    if loop:
        cases["loop over captions"] = partial(loop_over_captions, sets.regions, sets.words, sets.word_mask)
    for name, head in (("t2i", T2I), ("i2t", I2T), ("BFAN", BFAN())):
        cases[name] = partial(score_all, head, *sets.inputs)
        cases[f"{name} bfloat16"] = partial(score_all, head, *sets.inputs, dtype=low)
        if compiled and name == "t2i":
            cases[f"{name} compiled"] = partial(score_all, head, *sets.inputs, backend="compile")
    return cases


def time_in_turns(cases: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds a case, after one warm-up turn; every second turn goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in tqdm(range(repetitions + 1), desc="turns", leave=False):
        for name in list(cases)[:: -1 if turn % 2 else 1]:
            start = perf_counter()
            cases[name]()
            if turn:
                seconds[name].append(perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of every case over those of the bare float32 product."""
    return {name: value / seconds["bare product"] for name, value in seconds.items()}


def peak_memory(images: int, captions: int) -> float:
    """MB that scoring adds at its peak to the embeddings and the result; call in a fresh process (Linux)."""
    sets = random_sets(images, captions)
    score_all(T2I, sets.regions[:50], sets.words[:50], None, sets.word_mask[:50])  # loads libraries
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    scores = score_all(T2I, *sets.inputs)
    return (resident("VmHWM") - before) / 1024 - scores.nbytes / 2**20


def exact_figures(head: SCAN, sets: Sets) -> dict[str, Any]:
    """Float32 and exact metrics: seconds of both, whether they are the same, and what was computed again."""
    start = perf_counter()
    expected = evaluate_retrieval(score_all(head, *sets.inputs), sets.caption_image)
    float32 = perf_counter() - start
    start = perf_counter()
    metrics = evaluate_exact(head, *sets.inputs, caption_image=sets.caption_image)
    exact = perf_counter() - start
    report = metrics.pop("exact")
    recalls = {side: round(expected[side]["R@1"], 1) for side in ("i2t", "t2i")}
    return {
        "float32_seconds": float32,
        "exact_seconds": exact,
        "identical": metrics == expected,
        "R@1": recalls,
        **report,
    }


def scaling(repetitions: int) -> dict[str, dict[int, float]]:
    """Seconds of t2i as one size grows and the others stay."""
    start = {"images": 64, "captions": 64, "regions": 36, "dim": 1024}
    steps = {"images": (64, 128, 256), "captions": (64, 128, 256), "regions": (18, 36, 72), "dim": (512, 1024, 2048)}
    cases: dict[str, Callable[[], object]] = {}
    for name, values in steps.items():
        for value in values:
            sizes = {**start, name: value}
            sets = random_sets(sizes["images"], sizes["captions"], regions=sizes["regions"], dim=sizes["dim"])
            cases[f"{name} {value}"] = partial(score_all, T2I, *sets.inputs)
    seconds = time_in_turns(cases, repetitions)
    return {name: {value: seconds[f"{name} {value}"] for value in values} for name, values in steps.items()}


def environment() -> dict[str, Any]:
    """The machine and what it had to do besides."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": cpu[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


def draw(times: dict[str, float], by_size: dict[str, dict[int, float]], path: Path) -> None:
    """Ratios to the bare product with their goals, and the scaling."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    shown = {name: ratio for name, ratio in times.items() if name != "loop over captions"}  # it dwarfs the others
    bars.barh(list(shown), list(shown.values()))
    for position, name in enumerate(shown):
        if name in GOALS:
            bars.plot([GOALS[name]] * 2, [position - 0.4, position + 0.4], color="black")
    bars.invert_yaxis()
    bars.set(xlabel="time / bare float32 product (line: goal)", title="128 images x 128 captions")
    for name, seconds in by_size.items():
        smallest = min(seconds)
        lines.plot([n / smallest for n in seconds], [t / seconds[smallest] for t in seconds.values()], "o-", label=name)
    lines.set(xlabel="size, relative", ylabel="seconds, relative", title="SCAN t2i float32")
    lines.legend()
    figure.savefig(path, dpi=120)


def scoring(repetitions: int) -> None:
    """Ratios, exact metrics, memory and scaling; about four minutes on two cores that do nothing else."""
    results: dict[str, Any] = {"environment": environment()}
    compiled = shutil.which("c++") is not None
    with torch.no_grad():
        small = time_in_turns(cases_of(random_sets(128, 128), loop=True, compiled=compiled), repetitions)
        medium = time_in_turns(cases_of(random_sets(*MEDIUM), loop=False, compiled=False), max(2, repetitions // 3))
        times = prod(COCO_5K) / prod(MEDIUM)
        results["time / bare float32 product, 128 x 128"] = ratios(small)
        results["time / bare float32 product, 250 x 1250"] = ratios(medium)
        results["loop over captions / t2i, 128 x 128"] = small["loop over captions"] / small["t2i"]
        results["minutes for 5000 x 25000, extrapolated"] = {name: times * medium[name] / 60 for name in medium}
        results["t2i seconds by size"] = scaling(max(2, repetitions // 2))
        results["exact metrics, t2i, 1000 x 5000"] = exact_figures(T2I, random_sets(*LARGE))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        results["peak MB beyond embeddings and result, 1000 x 5000"] = fresh.submit(peak_memory, *LARGE).result()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "scoring.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(ratios(small), results["t2i seconds by size"], OUTPUT / "scoring.png")
    print(f"{'time / bare float32 product':28}{'128x128':>10}{'250x1250':>10}{'goal':>8}")
    for name, ratio in ratios(small).items():
        columns = (ratio, ratios(medium).get(name), GOALS.get(name))
        print(f"{name:28}" + "".join(f"{'' if value is None else f'{value:.2f}':>10}" for value in columns))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    scoring(7)
