"""Fused scores on a GPU: the (region x word) products of a tile never leave the chip.

The engine in `blocks` writes every product to memory and reads it back for each step of the head. Here one program
takes some images and some captions whole, multiplies all their regions and words, and finishes the head on the product
while it is in registers; only the scores are written. `triton_device` holds the programs and says how; this file packs
the two sides and starts them.

Sides are packed without padding: a tile of 128 by 64 holds as many whole images (or captions) as fit, one behind the
other. That is what a GPU pays for, so a region detector with a varying number of boxes costs what its boxes cost.

The kernels also run, slowly, in Triton's interpreter on a CPU: set TRITON_INTERPRET=1 before Python starts.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from xmodal.heads import BFAN, SCAN
from xmodal.heads.base import check_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.heads import Head

BOUNDED_NORMALIZATIONS = ("l2", "clipped_l2", "l1", "clipped_l1")
"""Those that leave logits in [-1, 1], which spares the kernel a maximum over every segment."""

LARGEST_SCALE = 32.0
"""Of temperature and lse_scale: squares of sums of exp(32) still fit float32, with room for unnormalized features."""

PRECISION = {torch.float32: "tf32x3", torch.float16: "tf32", torch.bfloat16: "tf32"}
"""How the tensor cores multiply float32 numbers: in three parts, as good as float32, or rounded to ten bits.

With half precision inputs the products are exact anyway; the ten bits then hold for the sums over a segment, whose
terms come from inputs of eight (bfloat16) or eleven bits.
"""

MAX_SETS = 16
"""Images or captions in one side of a tile, as in `triton_device`."""

BACKWARD_BYTES = 256 << 20
"""Bound on the products that the backward pass holds at a time."""


class Tile(NamedTuple):
    """Shape of a program: how many rows and columns of the product, in what steps of dim, on how many warps."""

    rows: int = 128
    columns: int = 64
    depth: int = 64
    warps: int = 8
    stages: int = 3


class Packed(NamedTuple):
    """One side of the comparison: the real items of all sets one behind the other, cut into tiles of whole sets."""

    items: Float[Tensor, "item dim"]
    norms: Float[Tensor, " item"]
    sets: Int[Tensor, "tile size"]
    """The set of every item counted within its tile, -1 after the last one."""
    start: Int[Tensor, " tile+1"]
    """The first item of every tile."""
    first_set: Int[Tensor, " tile+1"]
    """The first set of every tile."""

    @property
    def tiles(self) -> int:
        """How many tiles."""
        return len(self.sets)


def triton_scores(
    head: Head,
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    tile: Tile | None = None,
) -> Float[Tensor, "image caption"]:
    """Scores of `head(regions, words, region_mask, word_mask)` from one fused kernel, with gradients.

    The gradients come from the head itself, run again over a few images at a time: nothing but the inputs is kept
    between the passes, and the backward pass holds at most `BACKWARD_BYTES` of products.

    Args:
        head: a SCAN or BFAN head, see below for what the kernel does not take.
        regions: region embeddings in float32, bfloat16 or float16 on a CUDA device (on a CPU only in the interpreter).
        words: word embeddings, of the same dtype and on the same device.
        region_mask: True = real region; None means that all are real. Holes are allowed.
        word_mask: True = real word; None means that all are real.
        tile: the shape of a program, if not the default one.

    Returns:
        Scores in float32. With float32 inputs they equal the head's to about 1e-6.

    Raises:
        ValueError: for inputs that no head can score (see `xmodal.heads.base.check_inputs`), other dtypes and devices,
            a head other than SCAN and BFAN, a normalization that does not bound the logits (softmax, clipped, none), a
            temperature or lse_scale above 32, and an image or caption with more items than a tile has rows.
        ModuleNotFoundError: where triton is not installed.
    """
    check_inputs(regions, words, region_mask, word_mask)
    options = kernel_options(head)
    _check_device(regions, words)
    return _FusedScores.apply(regions, words, region_mask, word_mask, head, options, tile or Tile())  # type: ignore[no-any-return]


def kernel_options(head: Head) -> dict[str, Any]:
    """What the kernel must know of a head, and whether images are its rows (`direction`); refuses what it cannot do."""
    if isinstance(head, SCAN):
        options = {**head.attention_options, **head.aggregation_options, "focal": "none", "both": False}
    elif isinstance(head, BFAN):
        options = {**head.options, "direction": "t2i", "normalization": "clipped_l2", "aggregation": "mean"}
        options |= {"lse_scale": 1.0, "both": True}
    else:
        raise ValueError(f"the Triton kernel scores SCAN and BFAN, got {type(head).__name__}; use another backend")
    if options["normalization"] not in BOUNDED_NORMALIZATIONS:
        raise ValueError(
            f"the Triton kernel takes normalization {', '.join(BOUNDED_NORMALIZATIONS)}; "
            f"got {options['normalization']!r}; use another backend"
        )
    for name in ("temperature", "lse_scale"):
        if options[name] > LARGEST_SCALE:
            raise ValueError(
                f"the Triton kernel takes a {name} of at most {LARGEST_SCALE:g}, got {options[name]}; "
                "use another backend"
            )
    return options


def fused_scores(
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None,
    word_mask: Bool[Tensor, "caption word"] | None,
    options: dict[str, Any],
    tile: Tile,
) -> Float[Tensor, "image caption"]:
    """Pack both sides and run the kernel; in direction i2t the captions are its rows."""
    from triton import knobs

    from xmodal.scoring.triton_device import score_tiles

    scores = torch.empty(len(regions), len(words), dtype=torch.float32, device=regions.device)
    if not scores.numel():
        return scores
    precision = PRECISION[regions.dtype]
    if knobs.runtime.interpret and regions.dtype == torch.bfloat16:
        # Triton 3.9's interpreter multiplies the bits of bfloat16 as if they were integers. In float32 the products of
        # such numbers are exact, as they are on a GPU.
        regions, words = regions.float(), words.float()
    images_are_rows = options["direction"] == "t2i"
    row_side, column_side = ((regions, region_mask), (words, word_mask))[:: 1 if images_are_rows else -1]
    rows = pack(*row_side, tile.rows, tile.depth)
    columns = pack(*column_side, tile.columns, tile.depth)
    row_grams = tile_grams(rows)
    column_grams = tile_grams(columns) if options["both"] else row_grams  # not read
    strides = scores.stride() if images_are_rows else scores.stride()[::-1]
    score_tiles[(rows.tiles * columns.tiles,)](
        rows.items, rows.sets, rows.start, rows.first_set, rows.norms, row_grams,
        columns.items, columns.sets, columns.start, columns.first_set, columns.norms, column_grams,
        scores, *strides, rows.tiles, columns.tiles, options["temperature"], options["lse_scale"],
        DIM=rows.items.shape[1], ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, GROUP=8,
        NORMALIZATION=options["normalization"], AGGREGATION=options["aggregation"],
        FOCAL=options["focal"], BOTH=options["both"], PRECISION=precision,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return scores


def pack(items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"] | None, size: int, depth: int) -> Packed:
    """Drop the padding and cut the sets, in their order, into tiles of at most `size` items.

    The dim is filled up with zeros to a multiple of `depth`, which changes no product.
    """
    if mask is None:
        mask = torch.ones(items.shape[:2], dtype=torch.bool, device=items.device)
    mask = mask.to(items.device)
    lengths = mask.sum(dim=1).cpu()
    first_set = torch.tensor(tile_boundaries(lengths.tolist(), size))
    first_item = F.pad(lengths.cumsum(0), (1, 0))
    start = first_item[first_set]
    sets = torch.full((len(start) - 1, size), -1)
    tile_of_set = torch.repeat_interleave(torch.arange(len(sets)), first_set.diff())
    ordinal = torch.arange(len(lengths)) - first_set[tile_of_set]
    tile_of_item, ordinal = tile_of_set.repeat_interleave(lengths), ordinal.repeat_interleave(lengths)
    sets[tile_of_item, torch.arange(len(ordinal)) - start[tile_of_item]] = ordinal
    packed = F.pad(items[mask], (0, -items.shape[2] % depth)).contiguous()
    norms = packed.float().square().sum(dim=1).sqrt()
    return Packed(packed, norms, *(indices.to(items.device, torch.int32) for indices in (sets, start, first_set)))


def tile_boundaries(lengths: Sequence[int], size: int) -> list[int]:
    """The first set of every tile, and the number of sets at the end: each tile takes what still fits, in order.

    Raises:
        ValueError: where a set is longer than a tile.

    Example:
        >>> tile_boundaries([36, 36, 36, 36, 100], size=128)
        [0, 3, 4, 5]
    """
    if max(lengths) > size:
        raise ValueError(
            f"an image or caption has {max(lengths)} items, more than the {size} of a tile of the Triton kernel; "
            "use another backend"
        )
    boundaries, filled = [0], 0
    for number, length in enumerate(lengths):
        if filled + length > size or number - boundaries[-1] == MAX_SETS:
            boundaries.append(number)
            filled = 0
        filled += length
    return [*boundaries, len(lengths)]


def tile_grams(side: Packed) -> Float[Tensor, "tile size size"]:
    """Products of the items of a tile with one another in float32, zero between different sets."""
    size = side.sets.shape[1]
    grams = torch.empty(side.tiles, size, size, device=side.items.device)
    place = side.start[:-1, None] + torch.arange(size, device=side.items.device)
    place = place.clamp_max(len(side.items) - 1)  # read and then masked
    for chosen in torch.arange(side.tiles, device=side.items.device).split(64):
        items, sets = side.items[place[chosen]].float(), side.sets[chosen]
        together = (sets[:, :, None] == sets[:, None, :]) & (sets >= 0)[:, None, :]
        grams[chosen] = (items @ items.transpose(1, 2)).masked_fill_(~together, 0.0)
    return grams


class _FusedScores(torch.autograd.Function):
    """Forward in the kernel; backward through the head itself, over so many images that memory stays bounded."""

    @staticmethod
    def forward(ctx, regions, words, region_mask, word_mask, head, options, tile):
        ctx.save_for_backward(regions, words, region_mask, word_mask)
        ctx.head = head
        return fused_scores(regions.detach(), words.detach(), region_mask, word_mask, options, tile)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        regions, words, region_mask, word_mask = ctx.saved_tensors
        words = words.detach().requires_grad_()
        region_gradients, word_gradients = [], torch.zeros_like(words, dtype=torch.float32)
        pair_bytes = 4 * regions.shape[1] * words[..., 0].numel()
        step = max(1, BACKWARD_BYTES // max(pair_bytes, 1))
        for start in range(0, len(regions), step):
            part = slice(start, start + step)
            images = regions[part].detach().requires_grad_()
            with torch.enable_grad():
                scores = ctx.head.compare(images, words, None if region_mask is None else region_mask[part], word_mask)
            of_images, of_words = torch.autograd.grad(scores, (images, words), gradients[0][part])
            region_gradients.append(of_images)
            word_gradients += of_words
        return torch.cat(region_gradients), word_gradients.to(words.dtype), None, None, None, None, None


def _check_device(regions: Tensor, words: Tensor) -> None:
    if find_spec("triton") is None:
        raise ModuleNotFoundError("the Triton kernel needs triton, which torch brings along on Linux with CUDA")
    from triton import knobs

    if regions.dtype not in PRECISION or words.dtype != regions.dtype:
        raise ValueError(
            f"the Triton kernel takes {', '.join(map(str, PRECISION))}, the same for both sides; "
            f"got regions of {regions.dtype} and words of {words.dtype}"
        )
    if words.device != regions.device or not (regions.is_cuda or knobs.runtime.interpret):
        raise ValueError(
            f"the Triton kernel needs regions and words on one CUDA device, got {regions.device} and {words.device}; "
            "use another backend (on a CPU the kernel runs only in Triton's interpreter, with TRITON_INTERPRET=1)"
        )
