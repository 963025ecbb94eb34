"""Reading in a process of its own what libraries in C die of when it is damaged."""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import Any


def command(module: str, *arguments: str) -> dict[str, Any]:
    """How `subprocess` runs a module of this package, wherever that is installed.

    >>> command("preprocess.mat_annotations", "cars.mat")["args"][1:]
    ['-m', 'preprocess.mat_annotations', 'cars.mat']
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return {"args": [sys.executable, "-m", module, *arguments], "env": environment}


def limit(memory: int | None = None) -> None:
    """In the process of its own: at most so many bytes, and nothing is left of it when it dies.

    >>> limit()
    """
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def how_it_died(returncode: int) -> str:
    """What a process ended with that did not end by itself.

    >>> how_it_died(-11)
    'SIGSEGV'
    """
    return signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"
