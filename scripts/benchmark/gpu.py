"""The fused kernel beside the bare product on one GPU: `python -m scripts.benchmark gpu`."""

from __future__ import annotations

from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from tqdm import tqdm

from scripts.benchmark.sets import DIM, REGIONS, random_word_mask
from xmodal.heads import BFAN, SCAN, SCAN_PUBLISHED
from xmodal.scoring.triton import TileShape, triton_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from xmodal.heads import Head

IMAGES, CAPTIONS = 5000, 25000
SAMPLE = 64
"""Images and captions whose scores are checked in float64 first."""
LARGEST_ERROR = 10.0
"""In errors of the head itself in bfloat16, above which the kernel is wrong and not just rounded."""
SHAPES = (
    TileShape(),
    TileShape(depth=128, stages=2),
    TileShape(columns=128),
    TileShape(rows=64, warps=4),
    TileShape(rows=64, columns=128),
)
HEADS: dict[str, Head] = {
    "SCAN t-i LSE": SCAN(**SCAN_PUBLISHED["t-i LSE"]),
    "SCAN i-t LSE": SCAN(**SCAN_PUBLISHED["i-t LSE COCO"]),
    "BFAN": BFAN(),
}


def random_sides(images: int, captions: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Unit regions and words in bfloat16, and the word mask."""
    generator = torch.Generator(device).manual_seed(0)
    draw = {"generator": generator, "device": device}
    mask = random_word_mask(captions, generator, shortest=2, longest=60)
    regions = F.normalize(torch.randn(images, REGIONS, DIM, **draw, dtype=torch.bfloat16), dim=-1)
    words = F.normalize(torch.randn(*mask.shape, DIM, **draw, dtype=torch.bfloat16), dim=-1)
    return regions, words, mask


def largest_error(score: Callable[..., Tensor], head: Head, regions: Tensor, words: Tensor, mask: Tensor) -> float:
    """Of scores in bfloat16 on a sample, against the head in float64 on the same rounded features."""
    regions, words, mask = regions[:SAMPLE], words[:SAMPLE], mask[:SAMPLE]
    exact = head(regions.double(), words.double(), None, mask)
    return (score(regions, words, None, mask) - exact).abs().max().item()


def milliseconds(case: Callable[[], object], repetitions: int) -> float:
    """Median time of a call; the first one, which compiles, is not counted."""
    times = []
    for _ in range(repetitions + 1):
        torch.cuda.synchronize()
        start = perf_counter()
        case()
        torch.cuda.synchronize()
        times.append(1000 * (perf_counter() - start))
    return median(times[1:])


def bare_product(regions: Tensor, words: Tensor, mask: Tensor) -> Callable[[], None]:
    """Every region times every real word, written block by block over the same memory."""
    columns, blocks = words[mask].T, regions.flatten(0, 1).split(2048)
    out = torch.empty(2048, columns.shape[1], dtype=regions.dtype, device=regions.device)

    def run() -> None:
        for block in blocks:
            torch.mm(block, columns, out=out[: len(block)])

    return run


def gradients(score: Callable[..., Tensor], regions: Tensor, words: Tensor, mask: Tensor) -> Callable[[], object]:
    """The scores of a training step with their gradients."""
    leaves = regions.detach().requires_grad_(), words.detach().requires_grad_()
    return lambda: torch.autograd.grad(score(*leaves, None, mask).sum(), leaves)


def run(repetitions: int) -> None:
    """SCAN and BFAN in one kernel, 5000 images x 25000 captions in bfloat16, checked in float64 before it is timed."""
    if not torch.cuda.is_available():
        raise SystemExit("this suite needs a CUDA device, and torch sees none; the kernel's tests run without one")
    sides = random_sides(IMAGES, CAPTIONS, "cuda")
    regions, words, mask = sides
    print(f"{torch.cuda.get_device_name()}: {IMAGES} images x {CAPTIONS} captions, dim {DIM}, bfloat16")
    print(f"{REGIONS} regions; words: mean {mask.sum(1).float().mean():.1f}, most {mask.shape[1]}\n")
    product = milliseconds(bare_product(regions, words, mask), repetitions)
    print(f"{'':18}{'rows x columns x depth, warps':>30}{'ms':>9}{'/ product':>11}{'error':>10}{'peak MB':>9}")
    print(f"{'bare product':18}{'':30}{product:9.1f}{1.0:10.2f}x")
    for name, head in HEADS.items():
        own_error = largest_error(head, head, *sides)
        print(f"{name:18}{'the head itself':>30}{'':20}{own_error:10.1e}")
        for shape in tqdm(SHAPES, desc=name, leave=False):
            fused = partial(triton_scores, head, shape=shape)
            error = largest_error(fused, head, *sides)
            if not error < LARGEST_ERROR * own_error:
                raise SystemExit(f"{name}, {shape}: scores are wrong by {error:.1e}, so they are not timed")
            time, peak = milliseconds_and_megabytes(partial(fused, regions, words, None, mask), repetitions)
            text = f"{shape.rows} x {shape.columns} x {shape.depth}, {shape.warps}"
            tqdm.write(f"{name:18}{text:>30}{time:9.1f}{time / product:10.2f}x{error:10.1e}{peak:9.0f}")
    print_gradients(regions[:128], words[:128], mask[:128], repetitions)


def milliseconds_and_megabytes(case: Callable[[], object], repetitions: int) -> tuple[float, float]:
    """Median time of a call, and the memory on the device that it takes beyond what is taken already."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    time = milliseconds(case, repetitions)
    return time, (torch.cuda.max_memory_allocated() - before) / 2**20


def print_gradients(regions: Tensor, words: Tensor, mask: Tensor, repetitions: int) -> None:
    """A training step's scores and gradients, by the head itself and by the kernel."""
    print(f"\n{'gradients, 128 x 128':28}{'ms':>9}")
    for name, head in HEADS.items():
        for how, score in {"eager": head, "fused": partial(triton_scores, head)}.items():
            print(f"{name + ', ' + how:28}{milliseconds(gradients(score, regions, words, mask), repetitions):9.1f}")
