"""The fused kernel beside the bare product, checked in float64 before it is timed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from tqdm import tqdm

from scripts.benchmark.sets import random_word_mask
from xmodal.heads import BFAN, SCAN, SCAN_PUBLISHED
from xmodal.scoring.triton import TileShape, triton_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from scripts.benchmark.gpu.machine import Machine
    from xmodal.heads import Head

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

Row = dict[str, "str | float"]


def scoring(machine: Machine, repetitions: int) -> Iterator[Row]:
    """SCAN and BFAN over all pairs in bfloat16, for every shape of a tile.

    Raises:
        SystemExit: the kernel's scores are wrong.
    """
    sides = random_sides(machine)
    regions, words, mask = sides
    product = machine.milliseconds(bare_product(*sides), repetitions)
    yield {"head": "bare product", "ms": product, "/ product": 1.0}
    for name, head in HEADS.items():
        own_error = largest_error(head, head, *sides)
        yield {"head": name, "tile": "the head itself", "error": own_error}
        for shape in tqdm(SHAPES, desc=name, leave=False):
            fused = partial(triton_scores, head, shape=shape)
            error = largest_error(fused, head, *sides)
            if not error < LARGEST_ERROR * own_error:
                raise SystemExit(f"{name}, {shape}: scores are wrong by {error:.1e}, so they are not timed")
            case = partial(fused, regions, words, None, mask)
            time, peak = machine.milliseconds_and_megabytes(case, repetitions)
            tile = f"{shape.rows} x {shape.columns} x {shape.depth}, {shape.warps} warps"
            yield {"head": name, "tile": tile, "ms": time, "/ product": time / product, "error": error, "MB": peak}


def gradients(machine: Machine, repetitions: int) -> Iterator[Row]:
    """The scores of a training step and their gradients, by the head itself and by the kernel."""
    regions, words, mask = (side[: machine.pairs] for side in random_sides(machine))
    for name, head in HEADS.items():
        for how, score in {"eager": head, "fused": partial(triton_scores, head)}.items():
            case = both_gradients(score, regions, words, mask)
            time, peak = machine.milliseconds_and_megabytes(case, repetitions)
            yield {"head": name, "how": how, "ms": time, "MB": peak}


def random_sides(machine: Machine) -> tuple[Tensor, Tensor, Tensor]:
    """Unit regions and words in bfloat16, and the word mask."""
    generator = torch.Generator(machine.device).manual_seed(0)
    draw = {"generator": generator, "device": machine.device}
    mask = random_word_mask(machine.captions, generator, shortest=2, longest=60)
    sizes = (machine.images, machine.regions, machine.dim), (*mask.shape, machine.dim)
    regions, words = (F.normalize(torch.randn(*size, **draw, dtype=torch.bfloat16), dim=-1) for size in sizes)
    return regions, words, mask


def largest_error(score: Callable[..., Tensor], head: Head, regions: Tensor, words: Tensor, mask: Tensor) -> float:
    """Of scores in bfloat16 on a sample, against the head in float64 on the same rounded features."""
    regions, words, mask = regions[:SAMPLE], words[:SAMPLE], mask[:SAMPLE]
    exact = head(regions.double(), words.double(), None, mask)
    return (score(regions, words, None, mask) - exact).abs().max().item()


def bare_product(regions: Tensor, words: Tensor, mask: Tensor) -> Callable[[], None]:
    """Every region times every real word, written block by block over the same memory."""
    columns, blocks = words[mask].T, regions.flatten(0, 1).split(2048)
    out = torch.empty(2048, columns.shape[1], dtype=regions.dtype, device=regions.device)

    def run() -> None:
        for block in blocks:
            torch.mm(block, columns, out=out[: len(block)])

    return run


def both_gradients(score: Callable[..., Tensor], regions: Tensor, words: Tensor, mask: Tensor) -> Callable[[], object]:
    """Scores and the gradients of their sum."""
    leaves = regions.detach().requires_grad_(), words.detach().requires_grad_()
    return lambda: torch.autograd.grad(score(*leaves, None, mask).sum(), leaves)
