"""Every image against every caption, in blocks under a byte budget."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tqdm import tqdm

from xmodal.heads.attention import tile_bytes
from xmodal.inference import comparing
from xmodal.products import chosen_product
from xmodal.scoring.compared import compared_tiles
from xmodal.scoring.embedding import embedded_parts, in_dtype
from xmodal.scoring.forecast import tell
from xmodal.scoring.memory import fill_matrix
from xmodal.scoring.packing import Collection
from xmodal.scoring.plan import Plan, Tile, make_plan, result_dtype
from xmodal.scoring.sides import Side, Sides
from xmodal.scoring.tiles import Scratch, compile_path, fast_path, multiply
from xmodal.scoring.triton import triton_compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.heads import Head
    from xmodal.scoring.backends import Backend
    from xmodal.scoring.packing import Block
    from xmodal.scoring.tiles import FastPath

Result = TypeVar("Result")

AHEAD = 32
"""Tiles that are begun before the first is waited for: enough that every thread has work."""


def score_all(
    head: Head,
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    budget_bytes: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    backend: Backend | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Float[Tensor, "image caption"]:
    """Scores of all pairs, equal to `head(regions, words, ...)` but in bounded memory and without needless padding.

    The head is in evaluation mode meanwhile, and afterwards as it was. Per-item work runs once an item. Images and
    captions are scored in groups of like length, so that next to no product with padding is computed. Heads that
    declare cross attention (SCAN, BFAN) take a fast path of one matrix product and a few passes over each tile of it
    while it is in the cache (`xmodal.scoring.tiles`).

    Args:
        head: any head.
        regions: encoded images, on any device.
        words: encoded captions.
        region_mask: True = real region.
        word_mask: True = real word.
        budget_bytes: bound on the temporary memory; by default a quarter of what is free, at most 160 MiB on a CPU. The
            result does not depend on it beyond rounding. What a head makes of a pair counts too (`Head.pair_bytes`),
            but one pair, image or caption at a time is the least. Where embedded images take more than a quarter of
            it, captions are embedded once for every part of them.
        dtype: of the products, or of what a head without a fast path compares, instead of that of the inputs. Such a
            head compares with a copy of its parameters in that dtype. Work once an item, and what follows the
            products, is in at least float32.
        device: compute there instead of on the device of `regions`; the head must be there.
        progress: show a bar, and how long it will take as soon as the first pairs are scored (which the log says too).
        backend: what computes a tile of SCAN or BFAN. `eager` calls torch; `compile` lets torch.compile fuse the passes
            over a tile, which takes a minute at first and gains nothing on the CPUs that it was measured on; `triton`
            is one fused kernel on a CUDA device (see `triton_scores` for what it takes). By default `triton` on CUDA
            for what it takes, and `eager` otherwise. The choice is logged by the logger `xmodal`, at level info.
        out: write the scores into this `.npy` file and return it mapped into memory, for a matrix that does not fit.
            The file appears when it is whole.
        overwrite: replace `out` if it exists.

    Returns:
        Scores on the CPU, at least float32.

    Raises:
        ValueError: for inputs that cannot be scored (see `check_inputs`), a dtype that products cannot have, a budget
            that is not positive, an `out` that is not named `*.npy`, or a backend that does not exist or cannot score
            this head on this device.
        FileExistsError: `out` exists and `overwrite` is False.
        RuntimeError: `compile` on a CPU without a C++ compiler.
        ModuleNotFoundError: `triton`, or `compile` on a GPU, without triton.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring import score_all
        >>> score_all(SCAN(), torch.randn(4, 36, 64), torch.randn(6, 12, 64)).shape
        torch.Size([4, 6])
    """
    sides = Sides.checked(regions, words, region_mask, word_mask)
    plan = make_plan(head, sides, budget_bytes=budget_bytes, dtype=dtype, device=device, backend=backend)

    def fill(scores: Tensor) -> None:
        started, is_first = perf_counter(), True
        with _pair_bar(scores.numel(), progress) as bar:
            for tile in _tiles(head, sides, plan):
                if is_first:
                    tell(head, sides, tile, perf_counter() - started, progress=progress)
                    is_first = False
                scores[tile.images[:, None], tile.captions] = tile.scores.to(scores)
                bar.update(tile.scores.numel())

    with comparing(head, plan.device):
        return fill_matrix(sides.shape, plan.exact_dtype, out, overwrite, fill)


def score_tiles(
    head: Head, sides: Sides, plan: Plan, wanted: Callable[[Tensor, Tensor], bool] = lambda images, captions: True
) -> Iterator[Tile]:
    """The tiles of `score_all`, one after the other; every pair is in one of them.

    A pair comes in the same tile, and so with the same bits, whenever arguments other than `wanted` are the same. The
    head is in evaluation mode, and autocast off, while a tile is computed, and not while the caller has it.

    Args:
        head: any head.
        sides: encoded images and captions.
        plan: how to score.
        wanted: tiles for whose (images, captions) it is False are left out.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring.blocks import score_tiles
        >>> from xmodal.scoring.plan import make_plan
        >>> from xmodal.scoring.sides import Sides
        >>> sides = Sides.checked(torch.randn(4, 36, 64), torch.randn(6, 12, 64))
        >>> sum(tile.scores.numel() for tile in score_tiles(SCAN(), sides, make_plan(SCAN(), sides)))
        24
    """
    tiles = _tiles(head, sides, plan, wanted)
    while True:
        with comparing(head, plan.device):
            tile = next(tiles, None)
        if tile is None:
            return
        yield tile


def _tiles(
    head: Head, sides: Sides, plan: Plan, wanted: Callable[[Tensor, Tensor], bool] = lambda images, captions: True
) -> Iterator[Tile]:
    """The same, in the modes that the caller has set."""
    path = fast_path(head.comparison)
    if path is None:
        yield from compared_tiles(head, sides, plan, wanted)
        return
    tiles = partial(_fused_tiles, head) if plan.backend == "triton" else partial(_fast_tiles, path)
    exact, held = in_dtype(head, plan.exact_dtype), plan.budget_bytes // 4
    for rows, images in embedded_parts(exact.embed_images, sides.images, plan, held_bytes=held):
        for columns, captions in embedded_parts(exact.embed_captions, sides.captions, plan, held_bytes=held):

            def chosen(images: Tensor, captions: Tensor, rows: Tensor = rows, columns: Tensor = columns) -> bool:
                return wanted(rows[images], columns[captions])

            held_none = images is sides.images and captions is sides.captions
            part = plan if held_none else plan._replace(budget_bytes=max(1, plan.budget_bytes // 2))
            for tile in tiles(Sides(images, captions), part, chosen):
                yield Tile(rows[tile.images], columns[tile.captions], tile.scores)


def _fast_tiles(path: FastPath, sides: Sides, plan: Plan, wanted: Callable[[Tensor, Tensor], bool]) -> Iterator[Tile]:
    """Tiles of one matrix product and a few passes over it each."""
    workers = 1
    if plan.backend == "compile":
        path = compile_path(path)
    elif plan.device.type == "cpu":  # each has its own buffers, about four of the size of a tile
        workers = min(torch.get_num_threads(), max(1, plan.budget_bytes // (8 * tile_bytes(plan.device))))
        chosen_product(plan.dtype, threads=1 if workers > 1 else None)  # measured before threads disturb one another
    images, captions = (Collection(side.items, side.mask, plan.dtype, plan.device) for side in sides)
    tasks = _fast_tasks(path, images, captions, plan.budget_bytes, wanted)
    yield from side_by_side(tasks, workers) if workers > 1 else (task() for task in tasks)


def _fast_tasks(
    path: FastPath,
    images: Collection,
    captions: Collection,
    budget_bytes: int,
    wanted: Callable[[Tensor, Tensor], bool],
) -> Iterator[Callable[[], Tile]]:
    """What computes each tile; any of it may run in any thread."""
    scratch, inference = threading.local(), torch.is_inference_mode_enabled()

    def score(image_block: Block, caption_block: Block) -> Tile:
        scratch.buffers = getattr(scratch, "buffers", None) or Scratch()
        with torch.inference_mode(inference), torch.no_grad():  # neither is inherited by a thread
            products = multiply(image_block, caption_block, path, scratch.buffers)
            scores = path.score(products, image_block, caption_block, scratch.buffers)
        return Tile(image_block.sets, caption_block.sets, scores)

    item_bytes = result_dtype(images.dtype).itemsize
    tile_elements = max(1, min(tile_bytes(images.device), budget_bytes // 16) // item_bytes)
    caption_parts = captions.divide(torch.arange(len(captions), device="cpu"), int(tile_elements**0.5))
    image_rows = max(1, tile_elements // max(map(captions.rows_of, caption_parts)))
    for chunk in torch.arange(len(images), device="cpu").split(max(1, budget_bytes // 2 // images.pack_bytes)):
        image_parts = [[chunk[sets] for sets in parts] for parts in images.divide(chunk, image_rows)]
        image_blocks = [images.block(parts, path.images) for parts in image_parts]
        for parts in caption_parts:
            chosen = [block for block in image_blocks if wanted(block.sets, torch.cat(parts))]
            if not chosen:
                continue
            caption_block = captions.block(parts, path.captions)
            yield from (partial(score, image_block, caption_block) for image_block in chosen)


def side_by_side(tiles: Iterator[Callable[[], Result]], workers: int) -> Iterator[Result]:
    """Tiles in their order, each computed by one thread alone: the passes over a tile are too short to be shared.

    >>> list(side_by_side(iter([lambda: 1, lambda: 2]), workers=2))
    [1, 2]
    """
    threads, running = torch.get_num_threads(), deque[Future[Result]]()
    # Given within a thread, the number holds for that thread, for later ones, and for products everywhere.
    alone = partial(torch.set_num_threads, 1)
    try:
        with ThreadPoolExecutor(workers, "xmodal-scoring", initializer=alone) as pool:
            for tile in tiles:
                running.append(pool.submit(tile))
                if len(running) > AHEAD:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        torch.set_num_threads(threads)


def _fused_tiles(head: Head, sides: Sides, plan: Plan, wanted: Callable[[Tensor, Tensor], bool]) -> Iterator[Tile]:
    """Tiles of one kernel call each, as large as the budget allows: the kernel finds its own."""

    def parts(side: Side) -> tuple[Tensor, ...]:
        item_bytes = 3 * side.items[0].numel() * max(4, plan.dtype.itemsize)  # as given, packed, and in between
        return torch.arange(len(side), device="cpu").split(max(1, plan.budget_bytes // 2 // item_bytes))

    for rows in parts(sides.images):
        images = sides.images.take(rows, plan.device, plan.dtype)
        for columns in parts(sides.captions):
            if wanted(rows, columns):
                captions = sides.captions.take(columns, plan.device, plan.dtype)
                scores = triton_compare(head, images.items, captions.items, images.mask, captions.mask)
                yield Tile(rows, columns, scores)


def _pair_bar(pairs: int, progress: bool) -> tqdm:
    """A bar that counts pairs."""
    return tqdm(total=pairs, unit="pair", unit_scale=True, desc="scoring", **bar_options(progress))


def bar_options(progress: bool) -> dict[str, Any]:
    """How progress bars of scoring behave: they appear after two seconds and leave nothing behind.

    Example:
        >>> from xmodal.scoring.blocks import bar_options
        >>> bar_options(progress=True)
        {'disable': False, 'delay': 2, 'leave': False}
    """
    return {"disable": not progress, "delay": 2, "leave": False}
