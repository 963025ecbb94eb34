"""The device side of the fused scores: one program a tile, whose products never leave the chip.

A tile is a matrix product of `ROWS` packed rows of one side with `COLUMNS` packed rows of the other. Both hold several
whole items (images or captions) one behind the other, without padding between them, so every sum "over the regions of
an image" or "over the words of a caption" is a sum over a segment of the tile. A segmented sum is a product with the
0/1 matrix of membership, `members[set, item]`, which the tensor cores do; a spread back over a segment is a product
with its transpose. Rows that belong to no item have an all-zero column there and drop out: nothing else is masked.

No maximum is subtracted before an exponential: after an l1 or l2 normalization a logit lies in [-1, 1], and a cosine
does too, so exp(scale * x) stays inside float32 for every scale that the host lets through.

Names: `context` is attended over, `query` attends; a set is an image or a caption, an item a region or a word.
"""

from __future__ import annotations

import triton
import triton.language as tl

NEGATIVE_SLOPE = tl.constexpr(0.1)
EPSILON = tl.constexpr(1e-8)
TINY = tl.constexpr(1.1754943508222875e-38)
"""The smallest normal float32; with the two above, the constants of `xmodal.heads.attention`."""

SETS = tl.constexpr(16)
"""Sets in one side of a tile, at most: the smallest side that a matrix product on tensor cores takes."""


@triton.jit
def memberships(set_of_item, ITEMS: tl.constexpr):
    """`(set, item)` of one side of a tile: 1 where the item belongs to that set of the tile, 0 elsewhere."""
    ordinal = tl.load(set_of_item + tl.arange(0, ITEMS))
    return (tl.arange(0, SETS)[:, None] == ordinal[None, :]).to(tl.float32)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Matrix product in float32 with the tile's precision."""
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def normalize(products, query_members, NORMALIZATION: tl.constexpr, PRECISION: tl.constexpr):
    """Logits in [-1, 1]: every context item's products, normalized over the queries of each set."""
    logits = products
    if NORMALIZATION == "clipped_l2" or NORMALIZATION == "clipped_l1":
        logits = tl.where(products > 0, products, NEGATIVE_SLOPE * products)
    if NORMALIZATION == "clipped_l2" or NORMALIZATION == "l2":
        squares = dot(logits * logits, tl.trans(query_members), PRECISION)
        norms = tl.sqrt(tl.maximum(squares, TINY))
    else:
        norms = dot(tl.abs(logits), tl.trans(query_members), PRECISION)
    # Sets that the tile does not have get 1e8 here, and spreading them by all-zero members drops them again.
    return logits * dot(1.0 / (norms + EPSILON), query_members, PRECISION)


@triton.jit
def refocus(weights, context_members, FOCAL: tl.constexpr, PRECISION: tl.constexpr):
    """BFAN: keep a weight where it is above the mean of its context set, a mean in which `prob` counts with sqrt(w)."""
    if FOCAL == "equal":
        total = tl.sum(context_members, axis=1)[:, None]
        threshold = dot(context_members, weights, PRECISION) / tl.maximum(total, 1.0)
    else:
        confidence = tl.sqrt(weights)
        total = dot(context_members, confidence, PRECISION)
        threshold = dot(context_members, confidence * weights, PRECISION) / tl.maximum(total, TINY)
    kept = tl.where(weights > dot(tl.trans(context_members), threshold, PRECISION), weights, 0.0)
    # Where nothing is above the mean (uniform attention), all is kept: every weight is above zero.
    threshold = tl.where(dot(context_members, kept, PRECISION) > 0.0, threshold, 0.0)
    return tl.where(weights > dot(tl.trans(context_members), threshold, PRECISION), weights, 0.0)


@triton.jit
def attend(
    products,  # (context, query)
    context_members,  # (context_set, context)
    query_members,  # (query_set, query)
    context_gram,  # (context, context), zero between different sets
    query_norms,  # (query,)
    temperature,
    lse_scale,
    NORMALIZATION: tl.constexpr,
    FOCAL: tl.constexpr,
    AGGREGATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores `(context_set, query_set)` of one tile in one direction."""
    weights = tl.exp(temperature * normalize(products, query_members, NORMALIZATION, PRECISION))
    if FOCAL != "none":
        weights = refocus(weights, context_members, FOCAL, PRECISION)
    # The weights are not divided by their sum here but below, where there is one number a set instead of one an item.
    total = tl.maximum(dot(context_members, weights, PRECISION), TINY)
    along = dot(context_members, weights * products, PRECISION) / total
    square = dot(context_members, weights * dot(context_gram, weights, PRECISION), PRECISION)
    context_norms = tl.sqrt(tl.maximum(square / total / total, TINY))
    cosines = along / tl.maximum(query_norms[None, :] * context_norms, EPSILON)

    values = tl.exp(lse_scale * cosines) if AGGREGATION == "logsumexp" else cosines
    scores = tl.zeros((SETS, SETS), tl.float32)
    number = tl.arange(0, SETS)
    # One set after the other rather than a product: a product of a product makes the compiler lay out the first badly.
    for chosen in tl.static_range(SETS):
        member = tl.sum(tl.where(number[:, None] == chosen, query_members, 0.0), axis=0) > 0.0
        if AGGREGATION == "max":
            score = tl.max(tl.where(member[None, :], values, float("-inf")), axis=1)
        else:
            score = tl.sum(tl.where(member[None, :], values, 0.0), axis=1)
        scores = tl.where(number[None, :] == chosen, score[:, None], scores)
    if AGGREGATION == "logsumexp":
        scores = tl.log(tl.maximum(scores, TINY)) / lse_scale
    if AGGREGATION == "mean":
        scores /= tl.maximum(tl.sum(query_members, axis=1), 1.0)[None, :]
    return scores


@triton.jit
def score_tiles(
    row_items,  # (item, DIM) packed rows of the context side
    row_sets,  # (tile, ROWS) the set of every row, counted within its tile; -1 after a tile's last item
    row_start,  # (tile + 1,) the first item of every tile
    row_first_set,  # (tile + 1,) the first set of every tile
    row_norms,  # (item,)
    row_grams,  # (tile, ROWS, ROWS)
    column_items,  # the same for the query side
    column_sets,
    column_start,
    column_first_set,
    column_norms,
    column_grams,
    scores,
    score_row_stride,
    score_column_stride,
    row_tiles,
    column_tiles,
    temperature,
    lse_scale,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    NORMALIZATION: tl.constexpr,
    AGGREGATION: tl.constexpr,
    FOCAL: tl.constexpr,
    BOTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores of every row set against every column set; `BOTH` adds the other direction from the same products."""
    program = tl.program_id(0)
    # Programs that run at the same time share rows and columns, so that these are read from memory once.
    row_tile, column_tile = tl.swizzle2d(
        program // column_tiles, program % column_tiles, row_tiles, column_tiles, GROUP
    )
    first_row, end_row = tl.load(row_start + row_tile), tl.load(row_start + row_tile + 1)
    first_column, end_column = tl.load(column_start + column_tile), tl.load(column_start + column_tile + 1)
    rows, columns, depth = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)

    real_row, real_column = first_row + rows < end_row, first_column + columns < end_column
    left = row_items + (first_row + rows).to(tl.int64)[:, None] * DIM + depth[None, :]
    right = column_items + (first_column + columns).to(tl.int64)[None, :] * DIM + depth[:, None]
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, DIM, DEPTH):
        a = tl.load(left + start, mask=real_row[:, None], other=0.0)
        b = tl.load(right + start, mask=real_column[None, :], other=0.0)
        products = tl.dot(a, b, products, input_precision=PRECISION)

    row_members = memberships(row_sets + row_tile * ROWS, ROWS)
    column_members = memberships(column_sets + column_tile * COLUMNS, COLUMNS)
    gram = tl.load(row_grams + row_tile.to(tl.int64) * ROWS * ROWS + rows[:, None] * ROWS + rows[None, :])
    norms = tl.load(column_norms + first_column + columns, mask=real_column, other=0.0)
    result = attend(
        products, row_members, column_members, gram, norms,
        temperature, lse_scale, NORMALIZATION, FOCAL, AGGREGATION, PRECISION,
    )  # fmt: skip
    if BOTH:
        gram = tl.load(
            column_grams + column_tile.to(tl.int64) * COLUMNS * COLUMNS + columns[:, None] * COLUMNS + columns[None, :]
        )
        norms = tl.load(row_norms + first_row + rows, mask=real_row, other=0.0)
        other = attend(
            tl.trans(products), column_members, row_members, gram, norms,
            temperature, lse_scale, NORMALIZATION, FOCAL, AGGREGATION, PRECISION,
        )  # fmt: skip
        result += tl.trans(other)

    sets = tl.arange(0, SETS)
    row_set, column_set = tl.load(row_first_set + row_tile) + sets, tl.load(column_first_set + column_tile) + sets
    real = (row_set < tl.load(row_first_set + row_tile + 1))[:, None]
    real &= (column_set < tl.load(column_first_set + column_tile + 1))[None, :]
    place = row_set.to(tl.int64)[:, None] * score_row_stride + column_set.to(tl.int64)[None, :] * score_column_stride
    tl.store(scores + place, result, mask=real)
