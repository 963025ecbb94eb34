"""Attack the promises of docs/reliability.md, print what came of it, and fail if anything is not as promised.

python -m scripts.attack
python -m scripts.attack --dose small --seed 7
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from scripts.attack import damage, disks, kills, pairs
from scripts.attack.files import FORMATS
from scripts.attack.hostile import everything
from scripts.attack.programs import PROGRAMS, warm_up
from scripts.attack.trials import BAD, DEATH, HANG, RAW, REFUSED, RIGHT, UNNOTICED, WRONG, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Dose(NamedTuple):
    """How much of everything."""

    kills: int | None
    """A program; None is at every file event."""
    levels: int
    """Of a full disk, a program."""
    mutants: int
    """A format."""
    hostile: int
    """Every so many hostile files, one is tried."""
    pairs: int
    """Times that two processes write one output, a program."""
    programs: tuple[str, ...] = tuple(PROGRAMS)


DOSES = {
    "small": Dose(2, 2, 2, 11, 1, ("save_pretrained", "score_all(out=)", "prepare npz-folder", "prepare scan-npy")),
    "usual": Dose(12, 4, 30, 1, 2),
    "whole": Dose(None, 20, 400, 1, 20),
}
COLUMNS = (RIGHT, REFUSED, UNNOTICED, WRONG, RAW, HANG, DEATH)


def attack(dose: Dose, seed: int, folder: Path) -> Iterator[Tally]:
    """Everything, kind by kind."""
    for program in map(PROGRAMS.__getitem__, dose.programs):
        times = [None if each is None else -(-each // program.cost) for each in (dose.kills, dose.levels, dose.pairs)]
        yield _tally(f"kills: {program.name}", kills.attack(program, folder / "kills" / program.name, times[0]))
        yield _tally(
            f"full disk: {program.name}", disks.attack(program, folder / "disks" / program.name, times[1] or 1)
        )
        yield _tally(
            f"two at once: {program.name}", pairs.attack(program, folder / "pairs" / program.name, times[2] or 1)
        )
    for number, format in enumerate(FORMATS):
        yield _tally(
            f"mutants: {format.name}",
            damage.attack(format, folder / f"mutants {number}", -(-dose.mutants // format.cost), seed),
        )
    kinds = defaultdict(list)
    for hostile in list(everything(folder / "hostile"))[seed % dose.hostile :: dose.hostile]:
        kinds[hostile.kind].append(hostile)
    for kind, files in kinds.items():
        yield _tally(kind, damage.attack_hostile(files, folder / "hostile"))
        for made in (folder / "hostile").glob("reader *"):
            made.rename(folder / f"{kind}, {made.name}")


def _tally(kind: str, trials: Iterator[tuple[str, str, str]]) -> Tally:
    tally = Tally(kind)
    for name, outcome, said in trials:
        tally.count(outcome, f"{name}: {said}")
    return tally


def line(cells: Sequence[object]) -> str:
    """A row of the table.

    >>> line(["kind", "tries", "right"])
    'kind                                tries   right'
    """
    kind, *numbers = cells
    return f"{kind!s:33}" + "".join(
        f"{number!s:>{max(8, len(str(name)) + 2)}}" for number, name in zip(numbers, ["", *COLUMNS], strict=False)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, print the table, and fail if anything went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dose", choices=DOSES, default="usual", help="usual takes some five minutes on two cores")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants")
    options = parser.parse_args(arguments)
    warm_up()
    began = monotonic()
    tallies = []
    print(line(["kind", "tries", *COLUMNS]))
    with tempfile.TemporaryDirectory(prefix="attack") as folder:
        for tally in attack(DOSES[options.dose], options.seed, Path(folder)):
            tallies.append(tally)
            print(line([tally.kind, tally.tries, *(tally.outcomes[column] for column in COLUMNS)]), flush=True)
    total = [sum(tally.outcomes[column] for tally in tallies) for column in COLUMNS]
    print(line(["all", sum(total), *total]), f"\n{monotonic() - began:.0f} seconds")
    bad = list(chain.from_iterable(((tally.kind, each) for each in tally.bad) for tally in tallies))
    for kind, each in bad:
        print(f"{kind}: {each}")
    if bad:
        sys.exit(f"{len(bad)} of {sum(total)} were {', '.join(BAD[:-1])} or {BAD[-1]}")


if __name__ == "__main__":
    main()
