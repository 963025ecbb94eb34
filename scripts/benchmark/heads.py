"""Time and memory of the heads beside the published loop and the bare product: `python -m scripts.benchmark heads`."""

from __future__ import annotations

import os
import shutil
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch

from scripts.benchmark.baselines import bare_product, loop_over_captions
from scripts.benchmark.measure import in_fresh_process, peak_memory, time_in_turns
from scripts.benchmark.sets import DIM, REGIONS, Batch, random_batch
from xmodal.heads import bfan_scores, scan_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

IMAGES, CAPTIONS = 128, 128


def eager_scan(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """SCAN t-i LSE of the package."""
    return scan_scores(regions, words, None, word_mask)


def eager_bfan(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """BFAN of the package, both directions."""
    return bfan_scores(regions, words, None, word_mask)


def head_cases() -> dict[str, Callable[..., Tensor]]:
    """What is measured, the baseline first; compiled forms only where there is a compiler."""
    cases = {"loop over captions": loop_over_captions, "bare product": bare_product}
    cases |= {"SCAN": eager_scan, "BFAN (both directions)": eager_bfan}
    if shutil.which("c++"):
        cases["SCAN, compiled"] = torch.compile(eager_scan, dynamic=False)
        cases["BFAN, compiled"] = torch.compile(eager_bfan, dynamic=False)
    return cases


def forward(case: Callable[..., Tensor], batch: Batch) -> None:
    """Scores only."""
    with torch.no_grad():
        case(*batch)


def forward_backward(case: Callable[..., Tensor], batch: Batch) -> None:
    """Scores, and gradients to both sides."""
    leaves = (batch.regions.detach().requires_grad_(), batch.words.detach().requires_grad_())
    torch.autograd.grad(case(*leaves, batch.word_mask).sum(), leaves)


MODES = {"forward": forward, "forward + backward": forward_backward}


def peak_of(name: str, mode: str) -> float:
    """Peak memory of one run above that before it, in MB; call in a fresh process."""
    run = partial(MODES[mode], head_cases()[name], random_batch(IMAGES, CAPTIONS))
    run()  # compiles, loads libraries
    return peak_memory(run)[0]


def run(repetitions: int) -> None:
    """All-pairs scores of 128 images and 128 captions, forward and with gradients, in float32."""
    batch, cases = random_batch(IMAGES, CAPTIONS), head_cases()
    lengths = batch.word_mask.sum(1)
    print(f"{IMAGES} images x {CAPTIONS} captions, {REGIONS} regions, dim {DIM}, float32")
    print(f"caption length: mean {lengths.float().mean():.1f}, longest {lengths.max()}")
    if "SCAN, compiled" not in cases:
        print("no C++ compiler: compiled forms are left out")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # children return freed tensors to the system at once
    for mode, how in MODES.items():
        turns, _ = time_in_turns({name: partial(how, case, batch) for name, case in cases.items()}, repetitions)
        seconds = {name: median(values) for name, values in turns.items()}
        print(f"\n{mode:24}{'ms':>9}{'loop / it':>12}{'it / product':>14}{'peak MB':>10}")
        for name in cases:
            peak = in_fresh_process(peak_of, name, mode)
            faster = seconds["loop over captions"] / seconds[name]
            slower = seconds[name] / seconds["bare product"]
            print(f"{name:24}{1000 * seconds[name]:9.0f}{faster:11.1f}x{slower:13.2f}x{peak:10.0f}")
