"""The device side of the fused scores: one program a tile, whose products stay on the chip.

A tile is a matrix product of `ROWS` packed rows of one side with `COLUMNS` packed rows of the other. Both hold several
whole items (images or captions) one behind the other, without padding between them, so every sum "over the regions of
an image" or "over the words of a caption" is a sum over a segment of the tile. A segmented sum is a product with the
0/1 matrix of membership, `members[set, item]`, which the tensor cores do; a spread back over a segment is a product
with its transpose. Rows that belong to no item have an all-zero column there and drop out: nothing else is masked.

No maximum is subtracted before an exponential: after an l1 or l2 normalization a logit lies in [-1, 1], and a cosine
does too, so exp(scale * x) stays inside float32 for every scale that the host lets through.

Names: `context` is attended over, `query` attends; a set is an image or a caption, an item a region or a word; `by_x`
is the gradient with respect to x. The formulas are those of `xmodal.heads.attention` and `xmodal.heads.bfan`.
"""

# Type checkers read the body of a kernel as Python, which it is not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

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
def clip(products, NORMALIZATION: tl.constexpr):
    """The leaky ReLU of the clipped normalizations."""
    if NORMALIZATION == "clipped_l2" or NORMALIZATION == "clipped_l1":
        return tl.where(products > 0, products, NEGATIVE_SLOPE * products)
    return products


@triton.jit
def norms_over_queries(clipped, query_members, NORMALIZATION: tl.constexpr, PRECISION: tl.constexpr):
    """`(context, query_set)`: the norm of every context item's products with the queries of a set."""
    if NORMALIZATION == "clipped_l2" or NORMALIZATION == "l2":
        return tl.sqrt(tl.maximum(dot(clipped * clipped, tl.trans(query_members), PRECISION), TINY))
    return dot(tl.abs(clipped), tl.trans(query_members), PRECISION)


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
def attention(
    products,
    context_members,
    query_members,
    temperature,
    NORMALIZATION: tl.constexpr,
    FOCAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Weights `(context, query)`, not yet divided by their sum over a context set."""
    clipped = clip(products, NORMALIZATION)
    norms = norms_over_queries(clipped, query_members, NORMALIZATION, PRECISION)
    # A set that the tile does not have gets 1e8 here, and spreading it by all-zero members drops it again.
    weights = tl.exp(temperature * clipped * dot(1.0 / (norms + EPSILON), query_members, PRECISION))
    if FOCAL != "none":
        weights = refocus(weights, context_members, FOCAL, PRECISION)
    return weights


@triton.jit
def aggregate(cosines, query_members, lse_scale, AGGREGATION: tl.constexpr):
    """`(context_set, query)` to `(context_set, query_set)`."""
    values = tl.exp(lse_scale * cosines) if AGGREGATION == "logsumexp" else cosines
    scores = tl.zeros((SETS, SETS), tl.float32)
    number = tl.arange(0, SETS)
    # One set after the other rather than a product: a product of a product makes the compiler lay out the first badly.
    for chosen in tl.static_range(SETS):
        member = (tl.sum(tl.where(number[:, None] == chosen, query_members, 0.0), axis=0) > 0.0)[None, :]
        if AGGREGATION == "max":
            score = tl.max(tl.where(member, values, float("-inf")), axis=1)
            score += tl.sum(tl.where(member, 0.0 * values, 0.0), axis=1)  # a maximum passes over what is not a number
        else:
            score = tl.sum(tl.where(member, values, 0.0), axis=1)
        scores = tl.where(number[None, :] == chosen, score[:, None], scores)
    if AGGREGATION == "logsumexp":
        scores = tl.log(tl.where(scores < TINY, TINY, scores)) / lse_scale  # NaN stays
    if AGGREGATION == "mean":
        scores /= tl.maximum(tl.sum(query_members, axis=1), 1.0)[None, :]
    return scores


@triton.jit
def aggregate_backward(gradients, cosines, query_members, lse_scale, AGGREGATION: tl.constexpr):
    """Gradients `(context_set, query_set)` of the scores to `(context_set, query)` ones of the cosines."""
    result = tl.zeros_like(cosines)
    number = tl.arange(0, SETS)
    for chosen in tl.static_range(SETS):
        member = (tl.sum(tl.where(number[:, None] == chosen, query_members, 0.0), axis=0) > 0.0)[None, :]
        if AGGREGATION == "max":
            highest = tl.max(tl.where(member, cosines, float("-inf")), axis=1)[:, None]
            share = tl.where(member & (cosines == highest), 1.0, 0.0)
        elif AGGREGATION == "logsumexp":
            share = tl.where(member, tl.exp(lse_scale * cosines), 0.0)
        else:
            share = tl.where(member, 1.0, 0.0) + tl.zeros_like(cosines)
        if AGGREGATION != "sum":
            share /= tl.maximum(tl.sum(share, axis=1), TINY)[:, None]
        gradient = tl.sum(tl.where(number[None, :] == chosen, gradients, 0.0), axis=1)
        result += gradient[:, None] * share
    return result


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
    weights = attention(products, context_members, query_members, temperature, NORMALIZATION, FOCAL, PRECISION)
    # The sums are divided by that of the weights, not the weights: one number a set instead of one an item.
    total = tl.maximum(dot(context_members, weights, PRECISION), TINY)
    along = dot(context_members, weights * products, PRECISION) / total
    square = dot(context_members, weights * dot(context_gram, weights, PRECISION), PRECISION) / total / total
    cosines = along / tl.maximum(query_norms[None, :] * tl.sqrt(tl.maximum(square, TINY)), EPSILON)
    return aggregate(cosines, query_members, lse_scale, AGGREGATION)


@triton.jit
def attend_backward(
    score_gradients,  # (context_set, query_set)
    products,
    context_members,
    query_members,
    context_gram,
    query_norms,
    temperature,
    lse_scale,
    NORMALIZATION: tl.constexpr,
    FOCAL: tl.constexpr,
    AGGREGATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the products, of the query norms and of the Gram matrix (that one also between different sets)."""
    weights = attention(products, context_members, query_members, temperature, NORMALIZATION, FOCAL, PRECISION)
    total = tl.maximum(dot(context_members, weights, PRECISION), TINY)
    weights *= dot(tl.trans(context_members), 1.0 / total, PRECISION)
    along = dot(context_members, weights * products, PRECISION)
    attended = dot(context_gram, weights, PRECISION)  # products of the context items with the attended context
    square = dot(context_members, weights * attended, PRECISION)
    length = query_norms[None, :] * tl.sqrt(tl.maximum(square, TINY))
    cosines = along / tl.maximum(length, EPSILON)

    by_cosine = aggregate_backward(score_gradients, cosines, query_members, lse_scale, AGGREGATION)
    by_length = tl.where(length > EPSILON, -by_cosine * cosines, 0.0)  # times the length
    by_norm = tl.sum(by_length / tl.maximum(query_norms[None, :], EPSILON), axis=0)
    by_along = dot(tl.trans(context_members), by_cosine / tl.maximum(length, EPSILON), PRECISION)
    by_square = dot(tl.trans(context_members), 0.5 * by_length / tl.maximum(square, TINY), PRECISION)
    by_gram = dot(by_square * weights, tl.trans(weights), PRECISION)
    # A cosine does not change with the length of the weights, so their gradient is orthogonal to them, and the term
    # that the softmax would subtract is zero. Refocused weights are a softmax over what was kept.
    by_logit = temperature * weights * (by_along * products + 2.0 * by_square * attended)

    clipped = clip(products, NORMALIZATION)
    norms = norms_over_queries(clipped, query_members, NORMALIZATION, PRECISION)
    inverse = 1.0 / (norms + EPSILON)
    slope = dot(by_logit * clipped, tl.trans(query_members), PRECISION) * inverse * inverse
    if NORMALIZATION == "clipped_l2" or NORMALIZATION == "l2":
        by_norms = clipped * dot(slope / tl.maximum(norms, EPSILON), query_members, PRECISION)
    else:
        sign = tl.where(clipped > 0, 1.0, tl.where(clipped < 0, -1.0, 0.0))
        by_norms = sign * dot(slope, query_members, PRECISION)
    by_clipped = by_logit * dot(inverse, query_members, PRECISION) - by_norms
    if NORMALIZATION == "clipped_l2" or NORMALIZATION == "clipped_l1":
        by_clipped = tl.where(products > 0, by_clipped, NEGATIVE_SLOPE * by_clipped)
    return by_along * weights + by_clipped, by_norm, by_gram


@triton.jit
def tile_products(
    row_items, column_items, first_row, end_row, first_column, end_column,
    DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The products of a tile, zero beyond its last row and column."""
    rows, columns, depth = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    left = row_items + rows.to(tl.int64)[:, None] * DIM + depth[None, :]
    right = column_items + columns.to(tl.int64)[None, :] * DIM + depth[:, None]
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, DIM, DEPTH):
        a = tl.load(left + start, mask=(rows < end_row)[:, None], other=0.0)
        b = tl.load(right + start, mask=(columns < end_column)[None, :], other=0.0)
        products = tl.dot(a, b, products, input_precision=PRECISION)
    return products


@triton.jit
def square_at(matrices, number, SIZE: tl.constexpr):
    """Addresses of one of the `(SIZE, SIZE)` matrices that lie one behind the other."""
    items = tl.arange(0, SIZE)
    return matrices + number.to(tl.int64) * SIZE * SIZE + items[:, None] * SIZE + items[None, :]


@triton.jit
def scores_at(scores, row_stride, column_stride, row_first_set, column_first_set, row_tile, column_tile):
    """Addresses of a tile's scores, and which of them it has."""
    row_set = tl.load(row_first_set + row_tile) + tl.arange(0, SETS)
    column_set = tl.load(column_first_set + column_tile) + tl.arange(0, SETS)
    real_row = row_set < tl.load(row_first_set + row_tile + 1)
    real_column = column_set < tl.load(column_first_set + column_tile + 1)
    place = row_set.to(tl.int64)[:, None] * row_stride + column_set.to(tl.int64)[None, :] * column_stride
    return scores + place, real_row[:, None] & real_column[None, :]


@triton.jit
def fused_scores(
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
    row_tile, column_tile = program // column_tiles, program % column_tiles
    row_tile, column_tile = tl.swizzle2d(row_tile, column_tile, row_tiles, column_tiles, GROUP)
    first_row, end_row = tl.load(row_start + row_tile), tl.load(row_start + row_tile + 1)
    first_column, end_column = tl.load(column_start + column_tile), tl.load(column_start + column_tile + 1)
    rows, columns = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
    products = tile_products(
        row_items, column_items, first_row, end_row, first_column, end_column, DIM, ROWS, COLUMNS, DEPTH, PRECISION
    )
    row_members = memberships(row_sets + row_tile * ROWS, ROWS)
    column_members = memberships(column_sets + column_tile * COLUMNS, COLUMNS)
    gram = tl.load(square_at(row_grams, row_tile, ROWS))
    norms = tl.load(column_norms + columns, mask=columns < end_column, other=0.0)
    result = attend(
        products, row_members, column_members, gram, norms,
        temperature, lse_scale, NORMALIZATION, FOCAL, AGGREGATION, PRECISION,
    )  # fmt: skip
    if BOTH:
        gram = tl.load(square_at(column_grams, column_tile, COLUMNS))
        norms = tl.load(row_norms + rows, mask=rows < end_row, other=0.0)
        other = attend(
            tl.trans(products), column_members, row_members, gram, norms,
            temperature, lse_scale, NORMALIZATION, FOCAL, AGGREGATION, PRECISION,
        )  # fmt: skip
        result += tl.trans(other)
    place, real = scores_at(
        scores, score_row_stride, score_column_stride, row_first_set, column_first_set, row_tile, column_tile
    )
    tl.store(place, result, mask=real)


@triton.jit
def attend_back_to_inputs(
    score_gradients, products, context_members, query_members,
    context_grams, context_tile, query_norms, queries, end_query,
    by_context_gram, by_query_norm,
    temperature, lse_scale, CONTEXTS: tl.constexpr, NORMALIZATION: tl.constexpr, FOCAL: tl.constexpr,
    AGGREGATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile's products in one direction; those of norms and Gram matrices are added where they belong."""
    gram = tl.load(square_at(context_grams, context_tile, CONTEXTS))
    norms = tl.load(query_norms + queries, mask=queries < end_query, other=0.0)
    result, by_norm, by_gram = attend_backward(
        score_gradients, products, context_members, query_members, gram, norms,
        temperature, lse_scale, NORMALIZATION, FOCAL, AGGREGATION, PRECISION,
    )  # fmt: skip
    tl.atomic_add(by_query_norm + queries, by_norm, mask=queries < end_query)
    tl.atomic_add(square_at(by_context_gram, context_tile, CONTEXTS), by_gram)
    return result


@triton.jit
def product_gradients(
    row_items,
    row_sets,
    row_start,
    row_first_set,
    row_norms,
    row_grams,
    column_items,
    column_sets,
    column_start,
    column_first_set,
    column_norms,
    column_grams,
    score_gradients,
    score_row_stride,
    score_column_stride,
    by_product,  # (row item from the first tile on, column item), written; what follows is added to
    by_row_norm,
    by_row_gram,
    by_column_norm,
    by_column_gram,
    first_tile,  # of the rows: the backward pass does some of them at a time
    column_count,
    column_tiles,
    temperature,
    lse_scale,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    NORMALIZATION: tl.constexpr,
    AGGREGATION: tl.constexpr,
    FOCAL: tl.constexpr,
    BOTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the products, norms and Gram matrices from those of the scores; arguments as for `fused_scores`."""
    row_tile, column_tile = first_tile + tl.program_id(0) // column_tiles, tl.program_id(0) % column_tiles
    first_row, end_row = tl.load(row_start + row_tile), tl.load(row_start + row_tile + 1)
    first_column, end_column = tl.load(column_start + column_tile), tl.load(column_start + column_tile + 1)
    rows, columns = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
    products = tile_products(
        row_items, column_items, first_row, end_row, first_column, end_column, DIM, ROWS, COLUMNS, DEPTH, PRECISION
    )
    row_members = memberships(row_sets + row_tile * ROWS, ROWS)
    column_members = memberships(column_sets + column_tile * COLUMNS, COLUMNS)
    place, real = scores_at(
        score_gradients, score_row_stride, score_column_stride, row_first_set, column_first_set, row_tile, column_tile
    )
    gradients = tl.load(place, mask=real, other=0.0)
    result = attend_back_to_inputs(
        gradients, products, row_members, column_members, row_grams, row_tile, column_norms, columns, end_column,
        by_row_gram, by_column_norm,
        temperature, lse_scale, ROWS, NORMALIZATION, FOCAL, AGGREGATION, PRECISION,
    )  # fmt: skip
    if BOTH:
        other = attend_back_to_inputs(
            tl.trans(gradients), tl.trans(products), column_members, row_members,
            column_grams, column_tile, row_norms, rows, end_row,
            by_column_gram, by_row_norm,
            temperature, lse_scale, COLUMNS, NORMALIZATION, FOCAL, AGGREGATION, PRECISION,
        )  # fmt: skip
        result += tl.trans(other)
    place = (rows - tl.load(row_start + first_tile)).to(tl.int64)[:, None] * column_count + columns[None, :]
    real = (rows < end_row)[:, None] & (columns < end_column)[None, :]
    tl.store(by_product + place, result.to(by_product.dtype.element_ty), mask=real)
