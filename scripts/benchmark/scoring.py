"""Time and memory of scoring all pairs, beside the bare matrix product: `python -m scripts.benchmark scoring`.

Everything is measured in one run, and in turns, so that other load on the machine falls on all alike; the fastest turn
counts, because other load only adds. The data are random, but retrieval among them is about as hard as on Flickr30k:
how many pairs `evaluate_exact` has to compute again depends on that.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from scripts.benchmark.baselines import BareProduct, loop_over_captions
from scripts.benchmark.measure import in_fresh_process, peak_memory, time_in_turns
from scripts.benchmark.scoring_report import Measured, write_report
from scripts.benchmark.sets import Sets, random_sets
from xmodal.evaluation import evaluate_exact, evaluate_retrieval
from xmodal.heads import BFAN, SCAN
from xmodal.scoring import score_all

if TYPE_CHECKING:
    from collections.abc import Callable


T2I = SCAN()

HEADS = {"t2i": T2I, "i2t": SCAN("i2t", temperature=4.0, lse_scale=5.0), "BFAN": BFAN()}
SMALL, MEDIUM, LARGE = (128, 128), (250, 1250), (1000, 5000)
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


def exact_figures(sets: Sets, seconds: dict[str, float], results: dict[str, Any]) -> dict[str, Any]:
    """Whether the exact metrics are those of float32, how much faster they come, and what was computed again."""
    expected = evaluate_retrieval(results["t2i"], sets.caption_image)
    report = results["t2i exact"]["exact"]
    identical = expected == {name: results["t2i exact"][name] for name in expected}
    recalls = {side: round(expected[side]["R@1"], 1) for side in ("i2t", "t2i")}
    return {"identical": identical, "float32 / exact": seconds["t2i"] / seconds["t2i exact"], "R@1": recalls, **report}


def fastest_in_turns(
    cases: dict[str, Callable[[], Any]], turns: int, *, warm_up: bool = True
) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of the fastest turn of every case, and what it returned."""
    seconds, results = time_in_turns(cases, turns, warm_up=warm_up)
    return {name: min(values) for name, values in seconds.items()}, results


def peak_of(images: int, captions: int) -> float:
    """MB that scoring adds at its peak to the embeddings and the result; call in a fresh process."""
    sets = random_sets(images, captions)
    score_all(T2I, sets.regions[:50], sets.words[:50], None, sets.word_mask[:50])  # loads libraries
    peak, scores = peak_memory(partial(score_all, T2I, *sets.inputs))
    return peak - scores.nbytes / 2**20


def scaling(turns: int) -> dict[str, dict[int, float]]:
    """Seconds of t2i as one size grows and the others stay."""
    cases: dict[str, Callable[[], Any]] = {}
    for name, values in SCALING.items():
        for value in values:
            size = {"images": 64, "captions": 64, "regions": 36, "dim": 1024, name: value}
            cases[f"{name} {value}"] = partial(score_all, T2I, *random_sets(**size).inputs)
    seconds, _ = fastest_in_turns(cases, turns)
    return {name: {value: seconds[f"{name} {value}"] for value in values} for name, values in SCALING.items()}


def measure(size: tuple[int, int], turns: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of every case at a size, and the figures of the exact mode."""
    sets = random_sets(*size)
    seconds, results = fastest_in_turns(cases_of(sets, size=size), turns, warm_up=size != LARGE)
    return seconds, exact_figures(sets, seconds, results)


def run(repetitions: int) -> None:
    """Ratios, exact metrics, memory and scaling; well under ten minutes on two cores that do nothing else."""
    seconds, exact = {}, {}
    with torch.no_grad():
        for size, turns in {SMALL: repetitions, MEDIUM: max(1, repetitions // 3), LARGE: 1}.items():
            label = f"{size[0]} x {size[1]}"
            print(f"{label} images x captions ...", flush=True)
            seconds[label], exact[label] = measure(size, turns)
        by_size = scaling(max(1, repetitions // 2))
    peak = in_fresh_process(peak_of, *LARGE)
    write_report(Measured(dict(zip(seconds, (SMALL, MEDIUM, LARGE), strict=True)), seconds, exact, by_size, peak))
