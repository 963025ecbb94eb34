"""What ADDR adds to a training step of each head: `python -m scripts.benchmark addr`.

Freed memory is kept by the process, as `xmodal train` has it.
"""

from __future__ import annotations

from functools import partial
from statistics import median
from time import process_time
from typing import TYPE_CHECKING

import torch

from scripts.benchmark.measure import time_in_turns
from scripts.benchmark.sets import DIM, REGIONS, random_batch
from scripts.experiments.addr.settings import HEADS, TOWERS
from xmodal.data import PairBatch, RegionBatch
from xmodal.evaluation.alignment import Alignment, alignment
from xmodal.model import Matcher
from xmodal.objectives import HingeRanking
from xmodal.training.adversary import Adversary
from xmodal.training.kept_memory import freed_memory_is_kept
from xmodal.training.step import MatchingStep

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES, FEATURE_DIM, WORDS = 128, 2048, 8000

FORMS = ("fast_weights", "ridge", "amortized", "table")

DECAYED = "decayed"
"""Fast weights whose beta has decayed to zero."""


def pairs() -> PairBatch:
    """A batch of 128 pairs of 36 regions with captions of real lengths, before its encoders."""
    mask = random_batch(IMAGES, IMAGES).word_mask
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(IMAGES, REGIONS, FEATURE_DIM, generator=generator)
    tokens = torch.randint(4, WORDS, mask.shape, generator=generator) * mask
    index = torch.arange(IMAGES)
    images = RegionBatch(features, torch.ones(IMAGES, REGIONS, dtype=torch.bool))
    return PairBatch(images, tokens, mask, index, index)


def matching_step(name: str) -> MatchingStep:
    """The forward pass of a head with its towers."""
    torch.manual_seed(0)
    towers = {"dim": DIM, **TOWERS.get(name, {})}
    matcher = Matcher(
        image={"name": "regions", "input_dim": FEATURE_DIM, **towers},
        text={"name": "gru", **towers},
        head=HEADS[name],
        vocabulary=["<pad>", "<start>", "<end>", "<unk>", *map(str, range(4, WORDS))],
    )
    return MatchingStep(matcher, HingeRanking())


def training_step(name: str, form: str | None) -> Callable[[PairBatch], None]:
    """A whole step, encoders and optimizer included, against discriminators of a form, decayed ones, or none."""
    module = matching_step(name)
    optimizer = torch.optim.Adam(module.parameters(), 2e-4)
    options = {"beta_decay_steps": 1} if form == DECAYED else {"form": form}
    opponents = [Adversary.build({"name": "addr", **options}, dim=DIM, pairs=IMAGES)] if form else []

    def step(batch: PairBatch) -> None:
        module(batch, 1, *opponents)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        for opponent in opponents:
            opponent.gradient_norms()

    return step


def statistics_of(name: str, batch: PairBatch) -> Callable[[], Alignment]:
    """What every step measures of how words and regions lie."""
    matcher = matching_step(name).matcher
    with torch.no_grad():
        regions, region_mask = matcher.image_encoder(batch.images)
        domain = matcher.head.in_stages.image_stages(regions, region_mask).domain
        words = matcher.encode_captions(batch.tokens, batch.word_mask)
    return partial(alignment, words, domain, batch.word_mask, region_mask)


@freed_memory_is_kept()
def run(repetitions: int) -> None:
    """Processor time of a step with and without discriminators, taking turns."""
    torch.set_num_threads(1)  # two that wait for one another count as busy
    print(f"training step, batch {IMAGES}, dim {DIM}, {REGIONS} regions, float32; processor time of one thread")
    batch = pairs()
    print(f"\n{'seconds':16}{'without':>10}" + "".join(f"{form:>22}" for form in (*FORMS, DECAYED)))
    for name in HEADS:
        steps = {form: partial(training_step(name, form), batch) for form in (None, *FORMS, DECAYED)}
        seconds, _ = time_in_turns(steps, repetitions, clock=process_time, title=name)
        without, *others = (median(values) for values in seconds.values())
        print(f"{name:16}{without:10.2f}" + "".join(f"{t:12.2f} ({t / without - 1:+7.1%})" for t in others))
        measured, _ = time_in_turns({"": statistics_of(name, batch)}, 10 * repetitions, clock=process_time, title=name)
        print(f"  of which alignment statistics: {median(measured['']) / without:.2%}")
