"""Every image against every caption, in blocks under a byte budget."""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from xmodal.heads.attention import tile_bytes
from xmodal.heads.base import check_inputs
from xmodal.scoring.backends import choose_backend
from xmodal.scoring.memory import check_budget, fill_matrix
from xmodal.scoring.packing import Collection
from xmodal.scoring.tiles import Scratch, compile_path, fast_path, multiply
from xmodal.scoring.triton import triton_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.heads import Head
    from xmodal.scoring.backends import Backend
    from xmodal.scoring.packing import Block
    from xmodal.scoring.tiles import FastPath

logger = logging.getLogger("xmodal")

AHEAD = 32
"""Tiles that are begun before the first is waited for: enough that every thread has work."""


class Plan(NamedTuple):
    """How to score; see `score_all`."""

    budget_bytes: int
    dtype: torch.dtype
    device: torch.device
    backend: Backend


class Tile(NamedTuple):
    """Scores of some images against some captions."""

    images: Int[Tensor, " image"]
    captions: Int[Tensor, " caption"]
    scores: Float[Tensor, "image caption"]


@torch.no_grad()
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

    Per-item work of the head runs once an item. Images and captions are scored in groups of like length, so that next
    to no product with padding is computed. SCAN and BFAN take a fast path of one matrix product and a few passes over
    each tile of it while it is in the cache (`xmodal.scoring.tiles`).

    Args:
        head: any head.
        regions: encoded images, on any device.
        words: encoded captions.
        region_mask: True = real region.
        word_mask: True = real word.
        budget_bytes: bound on the temporary memory; by default a quarter of what is free, at most 160 MiB on a CPU. The
            result does not depend on it beyond rounding.
        dtype: of the products (of the embedded items for a head without a fast path) instead of that of the inputs.
            What follows the products is at least float32.
        device: compute there instead of on the device of `regions`; the head must be there.
        progress: show a bar.
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
        ValueError: for inputs that cannot be scored (see `check_inputs`), a budget that is not positive, an `out` that
            is not named `*.npy`, or a backend that does not exist or cannot score this head on this device.
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
    check_inputs(regions, words, region_mask, word_mask)
    plan = make_plan(head, regions, words, budget_bytes=budget_bytes, dtype=dtype, device=device, backend=backend)

    def fill(scores: Tensor) -> None:
        with _pair_bar(scores.numel(), progress) as bar:
            for tile in score_tiles(head, regions, words, region_mask, word_mask, plan):
                scores[tile.images[:, None], tile.captions] = tile.scores.to(scores)
                bar.update(tile.scores.numel())

    return fill_matrix((len(regions), len(words)), result_dtype(plan.dtype), out, overwrite, fill)


def make_plan(
    head: Head,
    regions: Tensor,
    words: Tensor,
    *,
    budget_bytes: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: Backend | None = None,
) -> Plan:
    """How to score, with all that was left to `score_all` to choose, whose arguments these are.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring.blocks import make_plan
        >>> plan = make_plan(SCAN(), torch.randn(4, 36, 64), torch.randn(6, 12, 64), dtype=torch.bfloat16, device="cpu")
        >>> plan.dtype, plan.backend
        (torch.bfloat16, 'eager')
    """
    device, dtype = torch.device(device or regions.device), dtype or regions.dtype
    backend = choose_backend(backend, head, dtype, device, (regions.shape[1], words.shape[1]))
    logger.info("scoring %s in %s on %s, backend %s", type(head).__name__, dtype, device, backend)
    return Plan(check_budget(budget_bytes, device), dtype, device, backend)


def score_tiles(
    head: Head,
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None,
    word_mask: Bool[Tensor, "caption word"] | None,
    plan: Plan,
    wanted: Callable[[Tensor, Tensor], bool] = lambda images, captions: True,
) -> Iterator[Tile]:
    """The tiles of `score_all`, one after the other; every pair is in one of them.

    A pair comes in the same tile, and so with the same bits, whenever arguments other than `wanted` are the same.

    Args:
        wanted: tiles for whose (images, captions) it is False are left out.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring.blocks import make_plan, score_tiles
        >>> regions, words = torch.randn(4, 36, 64), torch.randn(6, 12, 64)
        >>> plan = make_plan(SCAN(), regions, words)
        >>> sum(tile.scores.numel() for tile in score_tiles(SCAN(), regions, words, None, None, plan))
        24
    """
    path = fast_path(head.comparison)
    if plan.backend == "triton" or path is None:
        tiles = _fused_tiles if plan.backend == "triton" else _compared_tiles
        yield from tiles(head, regions, words, region_mask, word_mask, plan, wanted)
        return
    workers = 1
    if plan.backend == "compile":
        path = compile_path(path)
    elif plan.device.type == "cpu":  # each has its own buffers, about four of the size of a tile
        workers = min(torch.get_num_threads(), max(1, plan.budget_bytes // (8 * tile_bytes(plan.device))))
    images = Collection(regions, region_mask, plan.dtype, plan.device)
    captions = Collection(words, word_mask, plan.dtype, plan.device)
    tiles = _fast_tiles(path, images, captions, plan.budget_bytes, wanted)
    yield from _side_by_side(tiles, workers) if workers > 1 else (tile() for tile in tiles)


def _fast_tiles(
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
    caption_parts = captions.divide(torch.arange(len(captions)), int(tile_elements**0.5))
    image_rows = max(1, tile_elements // max(map(captions.rows_of, caption_parts)))
    for chunk in torch.arange(len(images)).split(max(1, budget_bytes // 2 // images.pack_bytes)):
        image_parts = [[chunk[sets] for sets in parts] for parts in images.divide(chunk, image_rows)]
        image_blocks = [images.block(parts, path.images) for parts in image_parts]
        for parts in caption_parts:
            chosen = [block for block in image_blocks if wanted(block.sets, torch.cat(parts))]
            if not chosen:
                continue
            caption_block = captions.block(parts, path.captions)
            yield from (partial(score, image_block, caption_block) for image_block in chosen)


def _side_by_side(tiles: Iterator[Callable[[], Tile]], workers: int) -> Iterator[Tile]:
    """Tiles in their order, each computed by one thread alone: the passes over a tile are too short to be shared."""
    threads, running = torch.get_num_threads(), deque[Future[Tile]]()
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


def _compared_tiles(
    head: Head,
    regions: Tensor,
    words: Tensor,
    region_mask: Tensor | None,
    word_mask: Tensor | None,
    plan: Plan,
    wanted: Callable[[Tensor, Tensor], bool],
) -> Iterator[Tile]:
    """Tiles of a head without a fast path, through `Head.compare`; captions in order of length, cropped."""
    budget_bytes, dtype, device, _ = plan
    region_mask = torch.ones(regions.shape[:2], dtype=torch.bool) if region_mask is None else region_mask
    word_mask = torch.ones(words.shape[:2], dtype=torch.bool) if word_mask is None else word_mask
    block = _block_size(regions.shape[1] * words.shape[1], dtype, budget_bytes)
    images = []
    for rows in torch.arange(len(regions)).split(block):
        part, mask = regions[rows.to(regions.device)].to(device), region_mask[rows.to(region_mask.device)].to(device)
        images.append((rows, head.embed_images(part, mask).to(dtype), mask))
    ends = (word_mask.cpu() * torch.arange(1, words.shape[1] + 1)).amax(dim=1)  # after the last real word
    for chosen in ends.argsort(stable=True).split(block):
        longest = int(ends[chosen[-1]])
        part = words[chosen.to(words.device), :longest].to(device)
        mask = word_mask[chosen.to(word_mask.device), :longest].to(device)
        captions = head.embed_captions(part, mask).to(dtype)
        for rows, embedded, embedded_mask in images:
            if wanted(rows, chosen):
                yield Tile(rows, chosen, head.compare(embedded, captions, embedded_mask, mask))


def _fused_tiles(
    head: Head,
    regions: Tensor,
    words: Tensor,
    region_mask: Tensor | None,
    word_mask: Tensor | None,
    plan: Plan,
    wanted: Callable[[Tensor, Tensor], bool],
) -> Iterator[Tile]:
    """Tiles of one kernel call each, as large as the budget allows: the kernel finds its own."""

    def taken(items: Tensor, mask: Tensor | None, sets: Tensor) -> tuple[Tensor, Tensor | None]:
        chosen = None if mask is None else mask[sets.to(mask.device)].to(plan.device)
        return items[sets.to(items.device)].to(plan.device, plan.dtype), chosen

    def parts(items: Tensor) -> tuple[Tensor, ...]:
        item_bytes = 3 * items[0].numel() * max(4, plan.dtype.itemsize)  # as given, packed, and in between
        return torch.arange(len(items)).split(max(1, plan.budget_bytes // 2 // item_bytes))

    for rows in parts(regions):
        image, image_mask = taken(regions, region_mask, rows)
        for columns in parts(words):
            if wanted(rows, columns):
                caption, caption_mask = taken(words, word_mask, columns)
                yield Tile(rows, columns, triton_scores(head, image, caption, image_mask, caption_mask))


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores are at least float32.

    Example:
        >>> import torch
        >>> from xmodal.scoring.blocks import result_dtype
        >>> result_dtype(torch.bfloat16), result_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


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


def _block_size(products: int, dtype: torch.dtype, budget_bytes: int) -> int:
    """Images and captions a block, such that a block's products and their few temporaries stay under the budget.

    Args:
        products: products of a region and a word in one pair.
        dtype: of the products; their temporaries take at least float32.
        budget_bytes: the budget.
    """
    temporaries = 6
    pair_bytes = products * max(4, dtype.itemsize) * temporaries
    return max(1, int((budget_bytes / pair_bytes) ** 0.5))
