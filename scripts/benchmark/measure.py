"""Time in turns, and memory in fresh processes."""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Name = TypeVar("Name")


def time_in_turns(
    cases: Mapping[Name, Callable[[], Any]],
    turns: int,
    *,
    clock: Callable[[], float] = perf_counter,
    warm_up: bool = True,
    title: str = "",
) -> tuple[dict[Name, list[float]], dict[Name, Any]]:
    """Seconds of every turn of every case, and what each returned last.

    Cases take turns, so that other load on the machine falls on all alike; every second turn goes backwards.

    Args:
        cases: what is timed, by name.
        turns: how often.
        clock: seconds; the processor's time instead of the wall's where other load is heavy.
        warm_up: take a turn before, which is not counted: it compiles and loads libraries.
        title: shown before the case in the progress bar.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in cases}
    results: dict[Name, Any] = {}
    with tqdm(total=(turns + warm_up) * len(cases), leave=False) as bar:
        for turn in range(-warm_up, turns):
            for name in list(cases)[:: -1 if turn % 2 else 1]:
                bar.set_description(f"{title} {name}".strip())
                start = clock()
                results[name] = cases[name]()
                if turn >= 0:
                    seconds[name].append(clock() - start)
                bar.update()
    return seconds, results


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a new interpreter, which holds the memory of nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()


def peak_memory(work: Callable[[], Any]) -> tuple[float, Any]:
    """MB of resident memory that work takes at its peak beyond what is taken before it, and its result (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = memory("VmRSS")
    result = work()
    return (memory("VmHWM") - before) / 1024, result


def memory(field: str) -> int:
    """A memory field of this process, in KB; `RssAnon` is what is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
