"""What the process does with memory that was freed, told by how often the system has to hand out pages."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import subprocess
import sys

import pytest

from xmodal.training.trainer import train

SCRIPT = """
import json, resource
import torch
from xmodal.training.kept_memory import freed_memory_is_kept

def pages():
    '''That the system hands out for three tensors of 64 MB after others as large were freed.'''
    for _ in range(10):  # the first ones find their places
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        first = torch.ones(2**24)
        second = 2 * first
        third = first + second
        del first, second, third
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

before = pages()
small = resident()
with freed_memory_is_kept() as is_kept:
    inside, large = pages(), resident()
left = resident() - small
for _ in range(4):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**20)  # smaller than what glibc gives back by itself
again = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
print(json.dumps([is_kept, before, inside, large - small, left, again]))
"""


def run(**environment):
    """Whether freed memory was kept; pages handed out before and then, and resident while and after it was kept."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=clean | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_freed_memory_serves_again_and_is_given_back_in_the_end():
    is_kept, before, inside, held, left, again = run()
    assert is_kept
    assert inside < before / 2
    assert held > 0
    assert left < held / 4
    assert again < 2**20 / resource.getpagesize(), "a fresh page for a quarter of a tensor that was there before"


def test_settings_of_the_environment_are_left_alone():
    is_kept, before, inside, *_ = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert not is_kept
    assert inside > before / 2


def test_training_keeps_it(config, change, monkeypatch):
    entered = []

    @contextlib.contextmanager
    def spy():
        entered.append("in")
        yield
        entered.append("out")

    monkeypatch.setattr("xmodal.training.trainer.freed_memory_is_kept", spy)
    train(change(config, epochs=1))
    assert entered == ["in", "out"]
