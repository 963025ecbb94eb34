"""Memory that training frees stays with the process, which needs as much again in the next step.

glibc gives the memory of large tensors back to the system as soon as they are freed, and the system hands out zeroed
pages for the next ones: up to an eighth of a training step at 1024 dims on a CPU (`python -m scripts.benchmark addr`,
and the same with `MALLOC_ARENA_MAX=16` before it, as settings of somebody's own are left alone).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Numbers of mallopt's parameters (malloc.h)."""

USUAL = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}
"""What glibc comes to by itself where large blocks come and go; it adapts no more once it was told anything."""

KEPT = 2**31 - 1
"""Bytes of freed memory at the end of the heap from which on some is given back: as many as mallopt takes."""


@contextlib.contextmanager
def freed_memory_is_kept() -> Iterator[bool]:
    """Large blocks come from the heap of the process, and go back there when they are freed; says whether they do.

    Other C libraries than glibc, and settings of the allocator that somebody made by the environment, are left alone.
    At the end the usual settings hold, and what is free goes back to the system.

    >>> with freed_memory_is_kept() as are_kept:
    ...     print(are_kept in (True, False))
    True
    """
    is_tuned = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or is_tuned:
        yield False
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, KEPT)
    try:
        yield True
    finally:
        for parameter, value in USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
