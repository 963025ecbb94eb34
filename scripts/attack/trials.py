"""Trials in child processes: what a call came to, even if it hangs, dies, or eats all memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

RIGHT, REFUSED, UNNOTICED, WRONG, RAW, HANG, DEATH = ("right", "refused", "unnoticed", "wrong", "raw", "hang", "death")
"""What a trial can come to: the right result; an error of the documented kinds that names the file; another result
where no checksum could tell; another result where one should have; any other error; no end; a dead process."""

BAD = (WRONG, RAW, HANG, DEATH)

DOCUMENTED = (ValueError, FileNotFoundError, FileExistsError, KeyError, OSError)
"""Errors that readers may raise."""

MEMORY = 3 << 30
"""Bytes that a trial may take beyond what the process has."""

SECONDS = 60
"""Time after which a trial hangs."""


@dataclass
class Tally:
    """Outcomes of the trials of one kind, and the first few that went wrong.

    >>> tally = Tally("captions")
    >>> tally.count(RIGHT, "as it was")
    >>> tally.count(HANG, "a pipe")
    >>> tally.tries, tally.bad
    (2, ['hang: a pipe'])
    """

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    @property
    def tries(self) -> int:
        """How many there were."""
        return sum(self.outcomes.values())

    def count(self, outcome: str, what: str) -> None:
        """Add one trial."""
        self.outcomes[outcome] += 1
        if outcome in BAD:
            self.bad.append(f"{outcome}: {what}")


def outcome_of(call: Callable[[], Any], accepts: Callable[[Any], bool], name: str, *, checked: bool) -> tuple[str, str]:
    """What a call came to in this process, and what it raised.

    Args:
        call: reads a file, say.
        accepts: whether a result is the right one.
        name: what the message of an error must contain.
        checked: whether a checksum covers the file, so that another result is wrong.

    >>> outcome_of(lambda: int("7"), lambda seven: seven == 7, "number", checked=True)
    ('right', '')
    >>> outcome_of(lambda: int("x"), lambda seven: seven == 7, "literal", checked=True)
    ('refused', "ValueError: invalid literal for int() with base 10: 'x'")
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call()
    except MemoryError as error:
        return RAW, f"MemoryError: {error}"
    except DOCUMENTED as error:
        said = f"{type(error).__name__}: {error}"
        return (REFUSED if name in str(error) else RAW), said
    except SystemExit as ended:  # of a program that tells what it left out
        return (REFUSED if name in str(ended) else RAW), str(ended)
    except BaseException as error:  # whatever it is, it is one of the outcomes
        return RAW, f"{type(error).__name__}: {error}"
    if accepts(result):
        return RIGHT, ""
    return (WRONG if checked else UNNOTICED), ""


def in_children(
    trials: Sequence[tuple[str, Callable[[], tuple[str, str]]]], *, seconds: float = SECONDS
) -> Iterator[tuple[str, str, str]]:
    """Run trials, each a name and a function that gives its outcome, in a child process; another takes over if it dies.

    >>> trials = [("a", lambda: (RIGHT, "")), ("b", lambda: os.abort()), ("c", lambda: (RIGHT, ""))]
    >>> list(in_children(trials))
    [('a', 'right', ''), ('b', 'death', 'killed by signal 6'), ('c', 'right', '')]
    """
    context = multiprocessing.get_context("fork")
    done = 0
    while done < len(trials):
        mine, theirs = context.Pipe()
        child = context.Process(target=_run, args=([call for _, call in trials[done:]], theirs))
        child.start()
        theirs.close()
        while done < len(trials):
            name = trials[done][0]
            if not mine.poll(seconds):
                os.kill(child.pid or 0, signal.SIGKILL)
                yield name, HANG, f"no end after {seconds} s"
            else:
                try:
                    yield name, *mine.recv()
                    done += 1
                    continue
                except EOFError:
                    child.join()
                    yield name, DEATH, f"killed by signal {-(child.exitcode or 0)}"
            done += 1
            break
        child.join()
        mine.close()


def _run(calls: Sequence[Callable[[], tuple[str, str]]], results: Connection) -> None:
    """Run calls one after another and send what each gives, until the end of this process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for call in calls:
        results.send(call())
    results.close()
    os._exit(0)
