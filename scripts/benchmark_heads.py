"""Time and memory of the heads beside the published loop and the bare product: `python -m scripts.benchmark heads`."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F
from tqdm import tqdm

from xmodal.heads import bfan_scores, scan_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

IMAGES, CAPTIONS, REGIONS, DIM = 128, 128, 36, 1024


class Batch(NamedTuple):
    """Unit features; words are padded with zeros to the longest caption."""

    regions: Tensor
    words: Tensor
    word_mask: Tensor


def random_batch() -> Batch:
    """Caption lengths are log-normal around 12 words with a long tail, as in COCO with start and end words."""
    generator = torch.Generator().manual_seed(0)
    lengths = (2.45 + 0.3 * torch.randn(CAPTIONS, generator=generator)).exp().round().long()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    regions = torch.randn(IMAGES, REGIONS, DIM, generator=generator)
    words = torch.randn(*mask.shape, DIM, generator=generator) * mask[..., None]
    return Batch(F.normalize(regions, dim=-1), F.normalize(words, dim=-1), mask)


def loop_over_captions(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """SCAN t-i LSE as published: caption by caption, cropped, repeated for every image, in the same layouts."""
    columns = []
    for caption, length in zip(words, word_mask.sum(1).tolist(), strict=True):
        queries = caption[:length].repeat(len(regions), 1, 1)
        attention = F.leaky_relu(torch.bmm(regions, queries.transpose(1, 2)), 0.1)
        attention = attention / (attention.square().sum(dim=2, keepdim=True).sqrt() + 1e-8)
        attention = (9.0 * attention.transpose(1, 2).contiguous()).softmax(dim=-1)
        attended = torch.bmm(regions.transpose(1, 2), attention.transpose(1, 2).contiguous()).transpose(1, 2)
        dot = (queries * attended).sum(dim=-1)
        similarities = dot / (queries.norm(dim=-1) * attended.norm(dim=-1)).clamp_min(1e-8)
        columns.append((6.0 * similarities).exp().sum(dim=1).log() / 6.0)
    return torch.stack(columns, dim=1)


def bare_product(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """Every region times every real word: what no head that attends can go below."""
    return regions.flatten(0, 1) @ words[word_mask].T


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


def peak_memory(name: str, mode: str) -> float:
    """Peak resident memory of one run above that before it, in MB; call in a fresh process (Linux)."""
    case, batch = head_cases()[name], random_batch()
    MODES[mode](case, batch)  # compiles, loads libraries
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    MODES[mode](case, batch)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """A memory field of this process, in KB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def time_interleaved(cases: dict[str, Callable[..., Tensor]], mode: str, repetitions: int) -> dict[str, float]:
    """Median seconds a case; cases take turns, so that other load on the machine falls on all alike."""
    batch, seconds = random_batch(), {name: [] for name in cases}
    for repetition in tqdm(range(repetitions + 1), desc=f"{mode}, time", leave=False):
        for name, case in cases.items():
            start = perf_counter()
            MODES[mode](case, batch)
            if repetition:  # the first one compiles and warms up
                seconds[name].append(perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def heads(repetitions: int) -> None:
    """All-pairs scores of 128 images and 128 captions, forward and with gradients, in float32."""
    lengths = random_batch().word_mask.sum(1)
    print(f"{IMAGES} images x {CAPTIONS} captions, {REGIONS} regions, dim {DIM}, float32")
    print(f"caption length: mean {lengths.float().mean():.1f}, longest {lengths.max()}")
    cases = head_cases()
    if "SCAN, compiled" not in cases:
        print("no C++ compiler: compiled forms are left out")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # children return freed tensors to the system at once
    for mode in MODES:
        seconds = time_interleaved(cases, mode, repetitions)
        print(f"\n{mode:24}{'ms':>9}{'loop / it':>12}{'it / product':>14}{'peak MB':>10}")
        for name in cases:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                memory = fresh.submit(peak_memory, name, mode).result()
            faster = seconds["loop over captions"] / seconds[name]
            slower = seconds[name] / seconds["bare product"]
            print(f"{name:24}{1000 * seconds[name]:9.0f}{faster:11.1f}x{slower:13.2f}x{memory:10.0f}")
