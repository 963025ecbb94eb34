"""Two processes write one output at the same time: one makes it, the other makes it, too, or is told who does."""

from __future__ import annotations

import multiprocessing
import shutil
from typing import TYPE_CHECKING, Any

from scripts.attack.programs import contents, prepared
from scripts.attack.trials import HANG, RAW, REFUSED, RIGHT, SECONDS, WRONG

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scripts.attack.programs import Program


def attack(program: Program, folder: Path, times: int) -> Iterator[tuple[str, str, str]]:
    """Run a program twice at once, so many times.

    Yields:
        Which time, what it came to, and what was wrong.
    """
    inputs, before, whole = prepared(program, folder)
    program.run(inputs, whole)
    wanted = contents(whole)
    context = multiprocessing.get_context("fork")
    for number in range(times):
        output = folder / "both"
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(before, output)
        barrier, told = context.Barrier(2), context.SimpleQueue()
        both = [context.Process(target=_run, args=(program, inputs, output, barrier, told)) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(SECONDS)
        yield (
            f"time {number + 1}",
            *_judge(both, [told.get() for _ in both if not told.empty()], contents(output), wanted),
        )


def _run(program: Program, inputs: Path, output: Path, barrier: Any, told: Any) -> None:
    barrier.wait()
    try:
        program.run(inputs, output)
    except (BlockingIOError, FileExistsError) as error:
        told.put((REFUSED, str(error)))
    except SystemExit as error:
        told.put((REFUSED if error.code == 2 else RAW, f"exit status {error.code}"))
    except BaseException as error:  # whatever it is, it is one of the outcomes
        told.put((RAW, f"{type(error).__name__}: {error}"))
    else:
        told.put((RIGHT, ""))


def _judge(
    both: list[Any], outcomes: list[tuple[str, str]], found: dict[str, Any], wanted: dict[str, Any]
) -> tuple[str, str]:
    for process in both:
        if process.is_alive():
            process.kill()
            process.join()
            return HANG, "no end"
    if len(outcomes) < len(both):
        return RAW, f"exit codes {[process.exitcode for process in both]}"
    for outcome, said in outcomes:
        if outcome == RAW:
            return RAW, said
    if all(outcome == REFUSED for outcome, _ in outcomes):
        return WRONG, f"nobody made it: {outcomes[0][1]}"
    if found != wanted:
        wrong = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        return WRONG, f"{wrong} differ"
    return (REFUSED if any(outcome == REFUSED for outcome, _ in outcomes) else RIGHT), ""
