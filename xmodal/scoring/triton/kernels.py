"""Fused scores on a GPU: the (region x word) products of a tile never leave the chip.

The engine in `blocks` writes every product to memory and reads it back for each step of the head. Here one program
takes some images and some captions whole, multiplies all their regions and words, and finishes the head on the product
while it is in registers; only the scores are written. `device` holds the programs and says how, `packing` makes what
they read; this file decides what the kernels take, and starts them.

Sides are packed without padding: a tile of 128 by 64 holds as many whole images (or captions) as fit, one behind the
other. That is what a GPU pays for, so a region detector with a varying number of boxes costs what its boxes cost.

The kernels also run, slowly, in Triton's interpreter on a CPU: set TRITON_INTERPRET=1 before Python starts.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from xmodal.heads.base import check_inputs
from xmodal.heads.comparison import CrossAttention
from xmodal.scoring.triton.packing import longest, pack, tile_items, unpack

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.heads import Head
    from xmodal.scoring.triton.packing import Packed

BOUNDED_NORMALIZATIONS = ("l2", "clipped_l2", "l1", "clipped_l1")
"""Those that leave logits in [-1, 1], which spares the kernel a maximum over every segment."""

LARGEST_SCALE = 32.0
"""Of temperature and lse_scale: squares of sums of exp(32) still fit float32, with room for unnormalized features."""

PRECISION = {torch.float32: "tf32x3", torch.float16: "tf32", torch.bfloat16: "tf32"}
"""How the tensor cores multiply float32 numbers: in three parts, as good as float32, or rounded to ten bits.

With half precision inputs the products are exact anyway; the ten bits then hold for the sums over a segment, whose
terms come from inputs of eight (bfloat16) or eleven bits.
"""

LONGEST_SETS = (64, 128)
"""Items of the longest image and caption, in either order. Two sides of 128 would not fit the shared memory of an H100
in every dtype."""

BACKWARD_BYTES = 256 << 20
"""Bound on the gradients of products that the backward pass holds at a time."""


class TileShape(NamedTuple):
    """Shape of a program: how many rows and columns of the product, in what steps of dim, on how many warps."""

    rows: int = 128
    columns: int = 64
    depth: int = 64
    warps: int = 8
    stages: int = 3


def triton_scores(
    head: Head,
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    shape: TileShape | None = None,
) -> Float[Tensor, "image caption"]:
    """Scores of `head(regions, words, region_mask, word_mask)` from one fused kernel, with gradients.

    Nothing but the inputs is kept between the passes. The backward pass computes the tiles again, writes the gradients
    of at most `BACKWARD_BYTES` of products at a time (of one row of tiles at least) and turns these into the gradients
    of both sides with two matrix products. Gradients of norms and Gram matrices are added up in no fixed order, so
    that two runs may differ in the last bits.

    A tile sums over its images and captions with products by 0 and 1, so NaN or infinity in one of them makes the
    scores of its neighbors NaN as well, where the head would keep it to itself.

    Args:
        head: one that declares cross attention, as SCAN and BFAN do; see below for what the kernel does not take.
        regions: region embeddings in float32, bfloat16 or float16 on a CUDA device (on a CPU only in the interpreter).
        words: word embeddings, of the same dtype and on the same device.
        region_mask: True = real region; None means that all are real. Holes are allowed.
        word_mask: True = real word; None means that all are real.
        shape: of a program; chosen by the longest image and caption if not given.

    Returns:
        Scores in float32. With float32 inputs they equal the head's to about 1e-6.

    Raises:
        ValueError: for inputs that no head can score (see `xmodal.heads.base.check_inputs`), other dtypes and devices,
            a head that does not declare cross attention, a normalization that does not bound the logits (softmax,
            clipped, none), a temperature or lse_scale above 32, and images and captions too long for a tile (see
            `choose_shape`).
        ModuleNotFoundError: where triton is not installed.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring.triton import triton_scores
        >>> regions, words = torch.randn(4, 36, 64), torch.randn(6, 12, 64)
        >>> triton_scores(SCAN(), regions.cuda(), words.cuda()).shape  # doctest: +SKIP
        torch.Size([4, 6])
    """
    kernel_options(head)  # what the kernel cannot compare need not be embedded
    sides = head.embed_images(regions, region_mask), head.embed_captions(words, word_mask)
    return triton_compare(head, *sides, region_mask, word_mask, shape=shape)


def triton_compare(
    head: Head,
    images: Float[Tensor, "image region dim"],
    captions: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    shape: TileShape | None = None,
) -> Float[Tensor, "image caption"]:
    """`head.compare` from the fused kernel: as `triton_scores`, for what `embed_images` and `embed_captions` gave.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring.triton import triton_compare
        >>> images, captions = torch.randn(4, 36, 64), torch.randn(6, 12, 64)
        >>> triton_compare(SCAN(), images.cuda(), captions.cuda()).shape  # doctest: +SKIP
        torch.Size([4, 6])
    """
    check_inputs(images, captions, region_mask, word_mask)
    options = kernel_options(head)
    if images.dtype in PRECISION and captions.dtype in PRECISION:  # autocast may leave one side in float32
        wider = torch.promote_types(images.dtype, captions.dtype)
        images, captions = images.to(wider), captions.to(wider)
    if (captions.dtype, captions.device) != (images.dtype, images.device):
        raise ValueError(
            f"regions and words must have one dtype and device, got {images.dtype} on {images.device} "
            f"and {captions.dtype} on {captions.device}"
        )
    check_triton(images.dtype, images.device)
    if shape is None:
        lengths = longest(images, region_mask), longest(captions, word_mask)
        shape = choose_shape(*(lengths if options["direction"] == "t2i" else reversed(lengths)))
    return _FusedScores.apply(images, captions, region_mask, word_mask, options, shape)  # type: ignore[no-any-return]


def kernel_options(head: Head) -> dict[str, Any]:
    """What the kernel must know of a head, and whether images are its rows (`direction`); refuses what it cannot do.

    Example:
        >>> from xmodal.heads import BFAN, SCAN
        >>> from xmodal.scoring.triton import kernel_options
        >>> options = kernel_options(SCAN(temperature=9.0))
        >>> options["direction"], options["normalization"], options["both"], kernel_options(BFAN())["both"]
        ('t2i', 'clipped_l2', False, True)
    """
    if not isinstance(head.comparison, CrossAttention):
        raise ValueError(
            f"the Triton kernel scores SCAN and BFAN, got {type(head).__name__}, which does not declare that "
            "it compares as they do; use another backend"
        )
    options = asdict(head.comparison)
    options["focal"] = options["focal"] or "none"
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


def choose_shape(rows: int, columns: int) -> TileShape:
    """The shape for images and captions of at most so many items, see `LONGEST_SETS`.

    Example:
        >>> from xmodal.scoring.triton.kernels import choose_shape
        >>> choose_shape(rows=36, columns=100)
        TileShape(rows=64, columns=128, depth=64, warps=8, stages=3)
    """
    short, long = LONGEST_SETS
    return TileShape(rows=short, columns=long) if columns > short >= rows else TileShape()


class _FusedScores(torch.autograd.Function):
    """The kernels as one differentiable operation. In direction i2t the captions are the rows of the product."""

    @staticmethod
    def forward(ctx: Any, regions, words, region_mask, word_mask, options, shape) -> Tensor:
        from xmodal.scoring.triton.device import fused_scores

        ctx.save_for_backward(regions, words, region_mask, word_mask)
        ctx.options, ctx.shape = options, shape
        scores = torch.empty(len(regions), len(words), dtype=torch.float32, device=regions.device)
        if scores.numel():
            rows, columns = _pack_sides(regions, words, region_mask, word_mask, options, shape)
            row_scores = scores if options["direction"] == "t2i" else scores.T
            _launch(
                fused_scores,
                len(rows.sets) * len(columns.sets),
                (*rows, *columns, row_scores, *row_scores.stride(), len(rows.sets), len(columns.sets)),
                options,
                shape,
                regions.dtype,
                GROUP=8,
            )
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        from xmodal.scoring.triton.device import product_gradients

        regions, words, region_mask, word_mask = ctx.saved_tensors
        gradients = grad_outputs[0].float()
        if not gradients.numel():
            return torch.zeros_like(regions), torch.zeros_like(words), None, None, None, None
        rows, columns = _pack_sides(regions, words, region_mask, word_mask, ctx.options, ctx.shape)
        images_are_rows = ctx.options["direction"] == "t2i"
        if not images_are_rows:
            gradients = gradients.T
        by_rows, by_columns = (torch.zeros_like(side.items, dtype=torch.float32) for side in (rows, columns))
        by_norms_and_grams = [torch.zeros_like(t) for side in (rows, columns) for t in (side.norms, side.grams)]

        start, count = rows.start.tolist(), len(columns.items)
        step = max(1, BACKWARD_BYTES // (ctx.shape.rows * count * rows.items.element_size()))
        for first in range(0, len(rows.sets), step):
            last = min(first + step, len(rows.sets))
            part = slice(start[first], start[last])
            by_product = rows.items.new_empty(start[last] - start[first], count)
            _launch(
                product_gradients,
                (last - first) * len(columns.sets),
                (*rows, *columns, gradients, *gradients.stride(), by_product, *by_norms_and_grams,
                 first, count, len(columns.sets)),
                ctx.options,
                ctx.shape,
                regions.dtype,
            )  # fmt: skip
            by_rows[part] = (by_product @ columns.items).float()
            by_columns += (by_product.T @ rows.items[part]).float()

        by_row_norms, by_row_grams, by_column_norms, by_column_grams = by_norms_and_grams
        _add_norm_and_gram_gradients(rows, by_rows, by_row_norms, by_row_grams)
        _add_norm_and_gram_gradients(columns, by_columns, by_column_norms, by_column_grams)
        by_regions, by_words = (by_rows, by_columns) if images_are_rows else (by_columns, by_rows)
        return unpack(by_regions, regions, region_mask), unpack(by_words, words, word_mask), None, None, None, None


def _pack_sides(
    regions: Tensor,
    words: Tensor,
    region_mask: Tensor | None,
    word_mask: Tensor | None,
    options: dict[str, Any],
    shape: TileShape,
) -> tuple[Packed, Packed]:
    """Rows and columns of the product: the side that is attended over, and the one that attends."""
    if _interpreting() and regions.dtype == torch.bfloat16:
        # Triton 3.9's interpreter multiplies the bits of bfloat16 as if they were integers. In float32 the products of
        # such numbers are exact, as they are on a GPU.
        regions, words = regions.float(), words.float()
    images, captions = (regions, region_mask), (words, word_mask)
    rows, columns = (images, captions) if options["direction"] == "t2i" else (captions, images)
    return (
        pack(*rows, shape.rows, shape.depth),
        pack(*columns, shape.columns, shape.depth, with_grams=options["both"]),
    )


def _launch(
    kernel: Any,
    programs: int,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    shape: TileShape,
    dtype: torch.dtype,
    **constants: int,
) -> None:
    """Run so many programs of a kernel with what all of them take."""
    kernel[(programs,)](
        *arguments, float(options["temperature"]), float(options["lse_scale"]),
        DIM=arguments[0].shape[1], ROWS=shape.rows, COLUMNS=shape.columns, DEPTH=shape.depth, **constants,
        NORMALIZATION=options["normalization"], AGGREGATION=options["aggregation"],
        FOCAL=options["focal"], BOTH=options["both"], PRECISION=PRECISION[dtype],
        num_warps=shape.warps, num_stages=shape.stages, enable_fp_fusion=True,
    )  # fmt: skip


def _add_norm_and_gram_gradients(side: Packed, by_items: Tensor, by_norms: Tensor, by_grams: Tensor) -> None:
    """Carry the gradients of a side's norms and Gram matrices on to its items, in place."""
    by_items += side.items.float() * (by_norms / side.norms.clamp_min(torch.finfo(torch.float32).tiny))[:, None]
    if not len(by_grams):
        return
    for tiles, places, items, together in tile_items(side):
        by_members = 2.0 * by_grams[tiles].masked_fill(~together, 0.0) @ items
        by_items.index_add_(0, places.flatten(), by_members.flatten(0, 1))  # zero where a place repeats


def _interpreting() -> bool:
    """Whether kernels run in Triton's interpreter on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def check_triton(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse what the kernel cannot compute, or cannot compute here; says what to use instead.

    Example:
        >>> import torch
        >>> from xmodal.scoring.triton import check_triton
        >>> check_triton(torch.float64, torch.device("cuda"))
        Traceback (most recent call last):
        ...
        ValueError: the Triton kernel takes torch.float32, torch.float16, torch.bfloat16; got torch.float64; ...
    """
    if find_spec("triton") is None:
        raise ModuleNotFoundError(
            "the Triton kernel needs triton, which torch brings along on Linux with CUDA; use another backend"
        )
    if dtype not in PRECISION:
        raise ValueError(f"the Triton kernel takes {', '.join(map(str, PRECISION))}; got {dtype}; use another backend")
    if device.type != "cuda" and not _interpreting():
        raise ValueError(
            f"the Triton kernel needs a CUDA device, got {device}; use device='cuda' or another backend "
            "(on a CPU the kernel runs only in Triton's interpreter, with TRITON_INTERPRET=1)"
        )
