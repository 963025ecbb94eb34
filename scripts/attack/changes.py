"""An index is changed thousands of times while whoever changes it is killed again and again, at any moment.

python -m scripts.attack.changes
python -m scripts.attack.changes --changes 10000 --kills 50

After every kill the index is opened: it must hold what it held before or after the change that was under way, and its
answers must be those of scoring all that it holds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from xmodal.data import RegionBatch
from xmodal.model import Matcher
from xmodal.search.index import Index

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

DIM, FEATURES, REGIONS = 16, 8, 5
SENTENCE = "a dog and a cat"


class Made:
    """Images that are made of their numbers."""

    extractor = None
    sizes = {"input_dim": FEATURES}  # noqa: RUF012

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers, self.image_id = list(numbers), [str(number) for number in numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, indices: Sequence[int] | Tensor) -> RegionBatch:
        """Some of them."""
        chosen = [self.numbers[int(place)] for place in indices]
        regions = [torch.randn(REGIONS, FEATURES, generator=torch.Generator().manual_seed(n)) for n in chosen]
        return RegionBatch(torch.stack(regions), torch.ones(len(chosen), REGIONS, dtype=torch.bool))


def make_matcher() -> Matcher:
    """The same one every time.

    >>> make_matcher().fingerprint() == make_matcher().fingerprint()
    True
    """
    torch.manual_seed(0)
    image, text = {"name": "regions", "input_dim": FEATURES, "dim": DIM}, {"name": "gru", "dim": DIM, "word_dim": 8}
    return Matcher(image, text, {"name": "scan"}, vocabulary=["a", "and", "dog", "cat"]).eval()


def changes(seed: int) -> Iterator[tuple[bool, list[int]]]:
    """What is done, one change after the other: whether it adds, and which images it adds or removes.

    >>> steps = changes(0)
    >>> next(steps)
    (False, [5, 33])
    """
    generator, holds, following = random.Random(seed), list(range(100)), 100
    while True:
        if len(holds) < 50 or (generator.random() < 0.5 and len(holds) < 150):
            added = list(range(following, following + generator.randint(1, 3)))
            following += len(added)
            holds += added
            yield True, added
        else:
            removed = generator.sample(holds, generator.randint(1, 3))
            holds = [number for number in holds if number not in removed]
            yield False, removed


def _change(folder: Path, seed: int, first: int, last: int, done: Any, is_killed: bool) -> None:
    """Make the changes from one number to another, and count those that are made; who is to be killed waits for it."""
    torch.set_num_threads(1)
    matcher, index = make_matcher(), Index.open(folder)
    for number, (adds, numbers) in enumerate(changes(seed)):
        if number >= last:
            while is_killed:
                sleep(1)
            return
        if number < first:
            continue
        if adds:
            index.add(matcher, Made(numbers))  # type: ignore[arg-type]
        else:
            index.remove([str(number) for number in numbers])
        done.value = number + 1


def attack(folder: Path, count: int, kills: int, seed: int = 0) -> Iterator[str]:
    """Make so many changes with so many kills between them.

    Args:
        folder: where the index is made.
        count: how many changes.
        kills: how many kills.
        seed: of the changes and of the moments.

    Yields:
        What was wrong.
    """
    generator, matcher = random.Random(seed + 1), make_matcher()
    Index.build(matcher, Made(range(100)), folder / "index")  # type: ignore[arg-type]
    steps, holds, made, killed = changes(seed), set(range(100)), 0, 0
    context = multiprocessing.get_context("fork")
    with tqdm(total=count, desc="changes", leave=False) as bar:
        while made < count:
            last = count if killed >= kills else min(count, made + max(1, 2 * (count - made) // (kills - killed + 1)))
            done, aim = context.Value("i", made), generator.randint(made, last - 1)
            is_killed = killed < kills
            end = aim + 1 if is_killed else count
            process = context.Process(target=_change, args=(folder / "index", seed, made, end, done, is_killed))
            process.start()
            if is_killed:
                while process.is_alive() and done.value < aim:
                    sleep(0.002)
                sleep(generator.random() * 0.03)  # somewhere in the change after that
                if process.is_alive():
                    os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            if process.exitcode not in (0, -signal.SIGKILL):
                yield f"after {done.value} changes: the process ended with {process.exitcode}"
                return
            for _ in range(done.value - made):
                holds = _after(holds, *next(steps))
            made = done.value
            found = {int(name) for name in Index.open(folder / "index").ids}
            if found != holds:  # the change under way may be there
                holds, made = _after(holds, *next(steps)), made + 1
                if found != holds:
                    yield f"after {made} changes: {len(found ^ holds)} images are neither before nor after a change"
                    return
            yield from _wrong_answers(folder / "index", matcher, sorted(holds), made)
            bar.update(made - bar.n)
    if killed < kills:
        yield f"there was room for only {killed} of {kills} kills; make more changes"


def _after(holds: set[int], adds: bool, numbers: Sequence[int]) -> set[int]:
    return holds | set(numbers) if adds else holds - set(numbers)


def _wrong_answers(folder: Path, matcher: Matcher, holds: list[int], made: int) -> Iterator[str]:
    """Whether the index answers as scoring everything does."""
    hits = Index.open(folder).search(matcher, SENTENCE, words=False)
    scores = matcher.score_all(Made(holds), [SENTENCE])[:, 0].topk(10).values  # type: ignore[arg-type]
    if not torch.allclose(torch.tensor([hit.score for hit in hits]), scores, atol=1e-5):
        yield f"after {made} changes: the answer is not that of scoring everything"


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, and fail if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m scripts.attack.changes", description=__doc__)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="changes") as folder:
        wrong = list(attack(Path(folder), options.changes, options.kills, options.seed))
    print(f"{options.changes} changes, {options.kills} kills: {'; '.join(wrong) or 'nothing was wrong'}")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
