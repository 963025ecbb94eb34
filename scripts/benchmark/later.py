"""Time of scoring all pairs with the later heads, beside the bare product: `python -m scripts.benchmark later`.

Heads with parameters have those they start with, but ADAPT: its batch norm has seen the features, and its queries have
gains as different as training may make them, from one half to three halves and, in the last case, of either sign.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from scripts.benchmark.baselines import BareProduct
from scripts.benchmark.scoring import LARGE, MEDIUM, fastest_in_turns
from scripts.benchmark.sets import DIM, Sets, random_sets
from xmodal.heads import ADAPT, CHAN, MTFN, Head
from xmodal.scoring import score_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from xmodal.heads.attention import Direction

GOALS = {"CHAN": 2.0, "MTFN": 2.0, "ADAPT t2i": 3.0, "ADAPT i2t": 3.0, "ADAPT t2i, gains of either sign": 3.0}


def trained_adapt(sets: Sets, direction: Direction, spread: float) -> ADAPT:
    """ADAPT with statistics of the features, and gains that lie within `spread` of 0."""
    head = ADAPT(DIM, direction).train()
    with torch.no_grad():
        for _ in range(40):  # running statistics come near those of the features
            head.embed_images(sets.regions[:50])
            head.embed_captions(sets.words[:50], sets.word_mask[:50])
        head.eval()
        queries = head.embed_captions if direction == "t2i" else head.embed_images
        items, mask = (sets.words, sets.word_mask) if direction == "t2i" else (sets.regions, None)
        gains = queries(items[:200], None if mask is None else mask[:200])[:, 1]
        head.gain.bias.sub_(gains.mean(dim=0))
        scale = spread / (gains - gains.mean(dim=0)).abs().amax()
        head.gain.weight.mul_(scale)
        head.gain.bias.mul_(scale)
    return head


def heads_of(sets: Sets) -> dict[str, Head]:
    """What is timed."""
    return {
        "CHAN": CHAN(),
        "MTFN": MTFN(DIM).eval(),
        "ADAPT t2i": trained_adapt(sets, "t2i", 0.5),
        "ADAPT t2i, gains of either sign": trained_adapt(sets, "t2i", 2.0),
        "ADAPT i2t": trained_adapt(sets, "i2t", 0.5),
    }


def measure(size: tuple[int, int], turns: int) -> dict[str, float]:
    """Seconds of the fastest turn of every head, and of the bare product."""
    sets = random_sets(*size)
    cases: dict[str, Callable[[], Any]] = {"bare product": BareProduct(sets)}
    cases |= {name: partial(score_all, head, *sets.inputs) for name, head in heads_of(sets).items()}
    return fastest_in_turns(cases, turns, warm_up=size != LARGE)[0]


def run(repetitions: int) -> None:
    """Ratios to the bare product at two sizes; the larger one takes minutes."""
    for size, turns in {MEDIUM: max(1, repetitions // 3), LARGE: 1}.items():
        with torch.no_grad():
            seconds = measure(size, turns)
        print(f"\n{f'{size[0]} x {size[1]}':34}{'seconds':>10}{'/ bare product':>16}{'goal':>8}", flush=True)
        for name, some in seconds.items():
            goal = f"{GOALS[name]:8.1f}" if name in GOALS else ""
            print(f"{name:34}{some:10.2f}{some / seconds['bare product']:15.2f}x{goal}", flush=True)
