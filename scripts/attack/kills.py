"""Programs are killed at their file events, one after another, and started again."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Any

from scripts.attack.programs import contents, prepared
from scripts.attack.trials import DEATH, HANG, RAW, RIGHT, SECONDS, WRONG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scripts.attack.programs import Program

FILE_EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
"""Python's audit events of what is done to files; libraries written in C add more between them."""


def run_until_event(
    work: Callable[[], None], folder: Path, number: int = -1, seconds: float = SECONDS
) -> tuple[int, int]:
    """Do something in a process of its own, which is killed before its n-th file event in a folder.

    Returns:
        The exit code, or -1000 if it did not end; and how many file events there were.

    >>> from pathlib import Path
    >>> run_until_event(Path("note").touch, Path("."))[0], Path("note").exists()
    (0, True)
    """
    context = multiprocessing.get_context("fork")
    count = context.Value("i", 0)
    process = context.Process(target=_until_event, args=(work, str(folder), number, count))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return -1000, count.value
    return process.exitcode or 0, count.value


def _until_event(work: Callable[[], None], folder: str, number: int, count: Any) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and folder in str(arguments[:2]):
            count.value += 1
            if count.value == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    if number > 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    work()


def attack(program: Program, folder: Path, kills: int | None) -> Iterator[tuple[str, str, str]]:
    """Kill a program at so many of its file events, evenly spread, or at all; each time, let it go on.

    Yields:
        At which event, what it came to, and what was wrong.
    """
    inputs, before, whole = prepared(program, folder)
    code, events = run_until_event(lambda: program.run(inputs, whole), whole)
    if code or not events:
        yield "the undisturbed run", DEATH, f"exit code {code} after {events} file events"
        return
    wanted = contents(whole)
    chosen = range(1, events + 1) if kills is None else sorted({1 + n * events // kills for n in range(kills)})
    for number in chosen:
        name = f"event {number} of {events}"
        output = folder / "killed"  # paths are as long as those of the undisturbed run, and so are the counts of events
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(before, output)
        code, _ = run_until_event(lambda: program.run(inputs, output), output, number)  # noqa: B023 (run at once)
        if code == -1000:
            yield name, HANG, "no end"
        elif code not in (0, -signal.SIGKILL):
            yield name, RAW, f"exit code {code}"
        else:
            yield name, *_judge(program, inputs, output, contents(before), wanted)


def _judge(
    program: Program, inputs: Path, output: Path, before: dict[str, Any], wanted: dict[str, Any]
) -> tuple[str, str]:
    """What is there after a kill, and after the second run."""
    visible = {name: content for name, content in contents(output).items() if not _is_hidden(name)}
    for name, content in visible.items():
        if program.replaces and name in wanted and content not in (wanted[name], before.get(name)):
            return WRONG, f"{name} is neither the old nor the new one"
    if program.replaces:
        lost = [name for name in before if name not in visible]
        if lost:
            return WRONG, f"{lost[0]} is gone"
    if all(visible.get(name) == content for name, content in wanted.items()):
        return RIGHT, ""  # killed after all was done
    code, _ = run_until_event(lambda: program.run(inputs, output), output)
    found = contents(output)
    if code:
        return RAW, f"the second run ended with exit code {code}"
    if found != wanted:
        wrong = {name for name in {*found, *wanted} if found.get(name) != wanted.get(name)}
        return WRONG, f"after the second run {sorted(wrong)} differ"
    return RIGHT, ""


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part.endswith(".parts") for part in name.split("/"))
