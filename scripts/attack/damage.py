"""Damaged and hostile files are read, each in a child process."""

from __future__ import annotations

import shutil
from random import Random
from typing import TYPE_CHECKING, Any

from scripts.attack.mutants import mutant
from scripts.attack.programs import quiet
from scripts.attack.trials import RAW, in_children, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scripts.attack.files import Format
    from scripts.attack.hostile import Hostile

Trial = tuple[str, "Callable[[], tuple[str, str]]"]


def attack(format: Format, folder: Path, mutants: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """Read so many mutants of a file.

    Yields:
        Which mutant, what it came to, and what was wrong.
    """
    good = folder / "good"
    good.mkdir(parents=True)
    format.make(good / format.file)
    with quiet():
        wanted = format.read(good / format.file)
    whole = (good / format.file).read_bytes()
    random = Random(f"{format.name} {seed}")
    trials = [(f"mutant {number}", _trial(format, good, wanted, mutant(whole, random))) for number in range(mutants)]
    yield from in_children(trials)


def _trial(format: Format, good: Path, wanted: Any, data: bytes) -> Callable[[], tuple[str, str]]:
    def read() -> tuple[str, str]:
        copy = _copy(good)
        path = copy / format.file
        path.unlink()  # it may have two names
        path.write_bytes(data)
        return outcome_of(
            lambda: format.read(path),
            lambda found: repr(found) == repr(wanted),  # NaN is not equal to itself
            format.named or format.file,
            checked=format.checked,
        )

    return read


def _copy(good: Path) -> Path:
    copy = good.with_name("mutant")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(good, copy)
    return copy


def attack_hostile(files: list[Hostile], folder: Path) -> Iterator[tuple[str, str, str]]:
    """Read files that were made to harm.

    Yields:
        Which, what it came to, and what was wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, tuple[Path, Any]] = {}
    secret = folder / "secret"
    secret.write_bytes(b"what is in other files is none of its business " * 1000)
    for hostile in files:
        format = hostile.format
        if format.name not in made:
            good = folder / f"reader {len(made)}" / "good"
            good.mkdir(parents=True)
            format.make(good / format.file)
            with quiet():
                made[format.name] = good, format.read(good / format.file)
    trials = [
        (f"{each.format.name}: {each.name}", _hostile_trial(each, *made[each.format.name], folder)) for each in files
    ]
    yield from in_children(trials)


def _hostile_trial(hostile: Hostile, good: Path, wanted: Any, folder: Path) -> Callable[[], tuple[str, str]]:
    def read() -> tuple[str, str]:
        path = _copy(good) / hostile.format.file
        hostile.make(path, folder / "secret")
        outcome = outcome_of(
            lambda: hostile.format.read(path),
            lambda found: repr(found) == repr(wanted),
            hostile.format.named or hostile.format.file,
            checked=hostile.checked,
        )
        if (folder / "trace").exists():
            (folder / "trace").unlink()
            return RAW, "it ran code"
        return outcome

    return read
