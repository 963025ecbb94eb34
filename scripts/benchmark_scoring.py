"""Time and memory of scoring all pairs, beside the bare matrix product: `python -m scripts.benchmark scoring`.

Everything is measured in one run, and in turns, so that other load on the machine falls on all alike; the fastest turn
counts, because other load only adds. The data are random, but retrieval among them is about as hard as on Flickr30k:
how many pairs `evaluate_exact` has to compute again depends on that.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from scripts.benchmark_heads import loop_over_captions, resident
from scripts.benchmark_sets import BareProduct, Sets, random_sets
from xmodal.evaluation import evaluate_retrieval
from xmodal.heads import BFAN, SCAN
from xmodal.scoring import evaluate_exact, score_all

if TYPE_CHECKING:
    from collections.abc import Callable

OUTPUT = Path("docs/results")
T2I = SCAN()
HEADS = {"t2i": T2I, "i2t": SCAN("i2t", temperature=4.0, lse_scale=5.0), "BFAN": BFAN()}
GOALS = {"t2i": 1.25, "t2i compiled": 1.15, "i2t": 1.35, "BFAN": 1.7}
SMALL, MEDIUM, LARGE, COCO_5K = (128, 128), (250, 1250), (1000, 5000), (5000, 25000)
SCALING = {"images": (64, 128, 256), "captions": (64, 128, 256), "regions": (18, 36, 72), "dim": (512, 1024, 2048)}


def cases_of(sets: Sets, *, size: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """What is timed at a size, the baseline first; not everything at the large one."""
    cases: dict[str, Callable[[], Any]] = {"bare product": BareProduct(sets)}
    cases["bare product bfloat16"] = BareProduct(sets, torch.bfloat16)
    for name, head in HEADS.items():
        cases[name] = partial(score_all, head, *sets.inputs)
        if name == "t2i" or size != LARGE:
            cases[f"{name} bfloat16"] = partial(score_all, head, *sets.inputs, dtype=torch.bfloat16)
    cases["t2i exact"] = partial(evaluate_exact, T2I, *sets.inputs, caption_image=sets.caption_image)
    if size != LARGE and shutil.which(os.environ.get("CXX", "g++")):
        cases["t2i compiled"] = partial(score_all, T2I, *sets.inputs, backend="compile")
    if size == SMALL:
        cases["loop over captions"] = partial(loop_over_captions, sets.regions, sets.words, sets.word_mask)
    return cases


def time_in_turns(
    cases: dict[str, Callable[[], Any]], turns: int, *, warm_up: bool = True
) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of the fastest turn of every case, and what it returned; every second turn goes backwards."""
    seconds, results = dict.fromkeys(cases, float("inf")), {}
    bar = tqdm(total=(turns + warm_up) * len(cases), leave=False)
    for turn in range(-warm_up, turns):
        for name in list(cases)[:: -1 if turn % 2 else 1]:
            bar.set_description(name)
            start = perf_counter()
            results[name] = cases[name]()
            if turn >= 0:
                seconds[name] = min(seconds[name], perf_counter() - start)
            bar.update()
    bar.close()
    return seconds, results


def exact_figures(sets: Sets, seconds: dict[str, float], results: dict[str, Any]) -> dict[str, Any]:
    """Whether the exact metrics are those of float32, how much faster they come, and what was computed again."""
    expected = evaluate_retrieval(results["t2i"], sets.caption_image)
    report = results["t2i exact"]["exact"]
    identical = expected == {name: results["t2i exact"][name] for name in expected}
    recalls = {side: round(expected[side]["R@1"], 1) for side in ("i2t", "t2i")}
    return {"identical": identical, "float32 / exact": seconds["t2i"] / seconds["t2i exact"], "R@1": recalls, **report}


def peak_memory(images: int, captions: int) -> float:
    """MB that scoring adds at its peak to the embeddings and the result; call in a fresh process (Linux)."""
    sets = random_sets(images, captions)
    score_all(T2I, sets.regions[:50], sets.words[:50], None, sets.word_mask[:50])  # loads libraries
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    scores = score_all(T2I, *sets.inputs)
    return (resident("VmHWM") - before) / 1024 - scores.nbytes / 2**20


def scaling(turns: int) -> dict[str, dict[int, float]]:
    """Seconds of t2i as one size grows and the others stay."""
    cases: dict[str, Callable[[], Any]] = {}
    for name, values in SCALING.items():
        for value in values:
            size = {"images": 64, "captions": 64, "regions": 36, "dim": 1024, name: value}
            cases[f"{name} {value}"] = partial(score_all, T2I, *random_sets(**size).inputs)
    seconds, _ = time_in_turns(cases, turns)
    return {name: {value: seconds[f"{name} {value}"] for value in values} for name, values in SCALING.items()}


def draw(ratios: dict[str, float], by_size: dict[str, dict[int, float]], path: Path) -> None:
    """Ratios to the bare product with their goals, and the scaling."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    shown = {name: ratio for name, ratio in ratios.items() if name in GOALS or "bfloat16" in name}
    bars.barh(list(shown), list(shown.values()))
    for position, name in enumerate(shown):
        if name in GOALS:
            bars.plot([GOALS[name]] * 2, [position - 0.4, position + 0.4], color="black")
    bars.invert_yaxis()
    bars.set(xlabel="time / bare float32 product (line: goal)", title=f"{MEDIUM[0]} images x {MEDIUM[1]} captions")
    for name, seconds in by_size.items():
        smallest = min(seconds)
        lines.plot([n / smallest for n in seconds], [t / seconds[smallest] for t in seconds.values()], "o-", label=name)
    lines.set(xlabel="size, relative", ylabel="seconds, relative", title="SCAN t2i float32")
    lines.legend()
    figure.savefig(path, dpi=120)


def by_pair_count(size: tuple[int, int]) -> float:
    """How many times as many pairs COCO 5K has."""
    return prod(COCO_5K) / prod(size)


def measure(size: tuple[int, int], turns: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of every case at a size, and the figures of the exact mode."""
    sets = random_sets(*size)
    seconds, results = time_in_turns(cases_of(sets, size=size), turns, warm_up=size != LARGE)
    return seconds, exact_figures(sets, seconds, results)


def print_table(ratios: dict[str, dict[str, float]]) -> None:
    """Ratios to the bare product by case and size, with the goals."""
    print(f"\n{'time / bare float32 product':28}" + "".join(f"{size:>12}" for size in ratios) + f"{'goal':>12}")
    for name in next(iter(ratios.values())):
        row = [*(some.get(name) for some in ratios.values()), GOALS.get(name)]
        print(f"{name:28}" + "".join(f"{'' if value is None else f'{value:.2f}':>12}" for value in row))


def scoring(repetitions: int) -> None:
    """Ratios, exact metrics, memory and scaling; well under ten minutes on two cores that do nothing else."""
    seconds, exact = {}, {}
    with torch.no_grad():
        for size, turns in {SMALL: repetitions, MEDIUM: max(1, repetitions // 3), LARGE: 1}.items():
            label = f"{size[0]} x {size[1]}"
            print(f"{label} images x captions ...", flush=True)
            seconds[label], exact[label] = measure(size, turns)
        by_size = scaling(max(1, repetitions // 2))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        memory = fresh.submit(peak_memory, *LARGE).result()
    ratios = {label: {name: s / some["bare product"] for name, s in some.items()} for label, some in seconds.items()}
    small, medium, large = seconds
    loop = seconds[small]["loop over captions"]
    minutes = {name: by_pair_count(LARGE) * s / 60 for name, s in seconds[large].items()}
    report = {
        "environment": {
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "load_average": [round(load, 1) for load in os.getloadavg()],
        },
        f"loop over captions at {small} / t2i, a pair": {
            label: loop / prod(SMALL) / (some["t2i"] / prod(size))
            for (label, some), size in zip(seconds.items(), (SMALL, MEDIUM, LARGE), strict=True)
        },
        f"minutes for 5000 x 25000, extrapolated from {large}": minutes,
        f"minutes for 5000 x 25000, extrapolated from {small}": {
            "loop over captions": by_pair_count(SMALL) * loop / 60
        },
        "exact metrics, t2i": exact,
        "peak MB beyond embeddings and result": {large: memory},
        "t2i seconds by size": by_size,
        "seconds": seconds,
        "time / bare float32 product": ratios,
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "scoring.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(ratios[medium], by_size, OUTPUT / "scoring.png")
    print(json.dumps(report, indent=2))
    print_table(ratios)
