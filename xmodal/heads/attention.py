"""Stacked cross attention in Gram form: the kernel that SCAN and BFAN share.

Every query item q (a word, say) attends over the context items x_s of the other side (regions) and is compared with its
attended context c = sum_s a_s x_s by cosine. Only that cosine is needed, never c itself:

    cos(q, c) = (sum_s a_s <q, x_s>) / (|q| sqrt(a^T G a)),    G = X X^T.

The products <q, x_s> are already there from computing the attention and G is one small matrix a context, so the whole
head costs one matrix product plus elementwise work, and no `(image, caption, word, dim)` tensor is ever built.

Inside, tensors are laid out `(context_item, context, query, query_item)`: every reduction then runs over an outer axis
while the innermost one stays contiguous, and the Gram product is a plain batched matrix product. `context_item` and
`query_item` count whole images or captions; `context` and `query` count their regions or words.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch.nn import functional as F

from xmodal.heads.attended import STEEPEST, How, attended_cosines
from xmodal.heads.attended_program import LANES, is_compiled
from xmodal.heads.ragged import Ragged, columns_of, counts_of
from xmodal.masks import lengths, split, taken
from xmodal.numerics import at_least_float32, full_mask, no_autocast, of_one_dtype
from xmodal.products import inner_products

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Direction = Literal["t2i", "i2t"]
Normalization = Literal["softmax", "l2", "clipped_l2", "l1", "clipped_l1", "clipped", "none"]
Aggregation = Literal["logsumexp", "mean", "max", "sum"]
Focal = Literal["prob", "equal"]

CONTEXTS: dict[Direction, Literal["images", "captions"]] = {"t2i": "images", "i2t": "captions"}
"""What is attended over."""

NEGATIVE_SLOPE = 0.1
"""The papers write [s]_+; the released code clips with a leaky ReLU of this slope."""

EPSILON = 1e-8
"""Added to a norm by the released l2norm, and the floor of a cosine's denominator."""

TILE_BYTES = {"cpu": 3 << 20, "cuda": 256 << 20}
"""Size of what is computed at a time: on a CPU it should stay in the cache, on a GPU it should fill the chip."""

PRODUCTS_BYTES = {"cpu": 12 << 20, "cuda": 256 << 20}
"""Size of one tile of products: small products are slow."""


RAGGED_BYTES, RAGGED_COLUMNS = 16 << 20, 2048
"""Size of the products without padding that are computed at once, and with how many real items of queries."""

FEWER_QUERIES = 2
"""How many times as long as it is wide a tile is: few queries are of nearly one length, so that padding is little."""


class Side(NamedTuple):
    """One side of the comparison, with what the kernel needs to know of it. Padding is zero."""

    items: Float[Tensor, "set item dim"]
    mask: Bool[Tensor, "set item"]
    norms: Float[Tensor, "set item"]
    gram: Float[Tensor, "set item item"]


def prepare_side(
    items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"] | None, *, gram: bool = True
) -> Side:
    """Zero the padding, so that it drops out of every product and sum, and compute norms and Gram matrices.

    Norms and Gram matrices are kept in at least float32, also under autocast: they are cheap, and the square root of a
    quadratic form would lose what half precision leaves of it. Only contexts need Gram matrices: without `gram` they
    are empty.

    >>> words = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    >>> side = prepare_side(words, torch.tensor([[True, False]]))
    >>> side.norms[:, :1], side.gram
    (tensor([[5.]]), tensor([[[25.,  0.],
             [ 0.,  0.]]]))
    """
    if mask is None:
        mask = full_mask(items, mask)
    else:
        items = items.masked_fill(~mask[:, :, None], 0.0)
    with no_autocast(items.device):
        exact = at_least_float32(items)
        grams = exact @ exact.transpose(1, 2) if gram else exact.new_empty(exact.shape[0], 0, 0)
        return Side(items, mask, torch.linalg.vector_norm(exact, dim=-1), grams)


def prepare_sides(
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None,
    word_mask: Bool[Tensor, "caption word"] | None,
    *,
    grams: Sequence[Literal["images", "captions"]] = (),
) -> tuple[Side, Side]:
    """`prepare_side` of images and captions, in the wider of their dtypes, with the Gram matrices that are named.

    >>> images, captions = prepare_sides(torch.ones(2, 36, 8), torch.ones(3, 12, 8).double(), None, None)
    >>> images.items.dtype, images.gram.shape
    (torch.float64, torch.Size([2, 0, 0]))
    """
    regions, words = of_one_dtype(regions, words)
    images = prepare_side(regions, region_mask, gram="images" in grams)
    return images, prepare_side(words, word_mask, gram="captions" in grams)


def contexts_and_queries(direction: Direction, images: Side, captions: Side) -> tuple[Side, Side]:
    """Words attend over regions in t2i, regions over words in i2t.

    >>> images, captions = (prepare_side(torch.randn(2, size, 8), None) for size in (36, 12))
    >>> contexts, queries = contexts_and_queries("t2i", images, captions)
    >>> contexts is images, queries is captions
    (True, True)
    """
    return (images, captions) if direction == "t2i" else (captions, images)


def attention_weights(
    products: Float[Tensor, "context_item context query query_item"],
    context_mask: Bool[Tensor, "context_item context"],
    query_mask: Bool[Tensor, "#context_item query query_item"],
    *,
    normalization: Normalization,
    temperature: float,
) -> Float[Tensor, "context_item context query query_item"]:
    """Softmax over the context of the normalized products (SCAN eq. 2-4 and 6-8); padding gets weight zero.

    The normalization runs over the *queries* for each context item: that is what the paper and the released code do.

    >>> products = torch.tensor([2.0, 0.0, 5.0]).view(1, 3, 1, 1)
    >>> real = torch.tensor([[True, True, False]])
    >>> one_query = torch.ones(1, 1, 1, dtype=torch.bool)
    >>> attention_weights(products, real, one_query, normalization="none", temperature=1.0).flatten()
    tensor([0.8808, 0.1192, 0.0000])
    """
    logits = F.leaky_relu(products, NEGATIVE_SLOPE) if normalization.startswith("clipped") else products
    if normalization == "softmax":
        logits = logits.masked_fill(~query_mask[:, None], float("-inf")).softmax(dim=2)
    if normalization.endswith(("l1", "l2")):
        if normalization.endswith("l2"):
            norms = _safe_sqrt(squares := logits.square().sum(dim=2, keepdim=True))
            has_none = squares <= torch.finfo(squares.dtype).tiny
        else:
            norms = logits.abs().sum(dim=2, keepdim=True)
            has_none = norms == 0
        # Products that are all zero have no direction. They stay zero whatever they are divided by; their gradient
        # would be what rounding leaves of it, times 1e8.
        scale = (temperature / (norms + EPSILON)).masked_fill(has_none, 0.0)
    else:
        scale = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)
    padding = logits.new_zeros(context_mask.shape).masked_fill(~context_mask, float("-inf"))[:, :, None, None]
    return torch.addcmul(padding, logits, scale).softmax(dim=1)


def attended_cosine(
    products: Float[Tensor, "context_item context query query_item"],
    weights: Float[Tensor, "context_item context query query_item"],
    context_gram: Float[Tensor, "context_item context context"],
    query_norms: Float[Tensor, "#context_item query query_item"],
) -> Float[Tensor, "context_item query query_item"]:
    """Cosine of every query with its attended context, which is never formed (see the head of this file).

    >>> context, query = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([3.0, 4.0])
    >>> weights = torch.tensor([0.25, 0.5])
    >>> layout, gram, norm = (1, 2, 1, 1), (context @ context.T)[None], query.norm().view(1, 1, 1)
    >>> attended_cosine((context @ query).view(layout), weights.view(layout), gram, norm)
    tensor([[[0.9899]]])
    >>> torch.cosine_similarity(weights @ context, query, dim=0)
    tensor(0.9899)
    """
    dot = (weights * products).sum(dim=1)
    with no_autocast(products.device):
        spread = (context_gram @ weights.flatten(2)).view_as(weights)
    context_norms = _safe_sqrt((weights * spread).sum(dim=1))
    norms = query_norms * context_norms
    # A query or context of length zero has no direction: cosine and gradient zero, where dividing by the floor would
    # give a gradient of 1e8.
    return (dot / norms.clamp_min(EPSILON)).masked_fill(norms < EPSILON**2, 0.0)


def aggregate(
    similarities: Float[Tensor, "context_item query query_item"],
    query_mask: Bool[Tensor, "#context_item query query_item"],
    *,
    aggregation: Aggregation,
    lse_scale: float,
) -> Float[Tensor, "context_item query_item"]:
    """Reduce the similarities of an item's real queries to one score (SCAN eq. 5, 9 and the pooled variants).

    >>> similarities = torch.tensor([0.5, 0.25, 0.9]).view(1, 3, 1)
    >>> real = torch.tensor([True, True, False]).view(1, 3, 1)
    >>> aggregate(similarities, real, aggregation="mean", lse_scale=6.0)
    tensor([[0.3750]])
    """
    if aggregation == "logsumexp":
        # Not divided by the number of queries, as published. torch.logsumexp subtracts the maximum first, so that
        # exp(lse_scale) cannot overflow in half precision.
        masked = (similarities * lse_scale).masked_fill(~query_mask, float("-inf"))
        return masked.logsumexp(dim=1) / lse_scale
    if aggregation == "max":
        return similarities.masked_fill(~query_mask, float("-inf")).amax(dim=1)
    total = similarities.masked_fill(~query_mask, 0.0).sum(dim=1)
    return total if aggregation == "sum" else total / query_mask.sum(dim=1)


def query_shares(
    similarities: Float[Tensor, "context_item query query_item"],
    query_mask: Bool[Tensor, "#context_item query query_item"],
    *,
    aggregation: Aggregation,
    lse_scale: float,
) -> Float[Tensor, "context_item query query_item"]:
    """What each query adds to its item's score: parts that sum to `aggregate` of the same arguments.

    Of a sum or a mean these are the terms. A maximum is all the work of the first query that reaches it. Of a
    LogSumExp each query has the part of the score that its weight in the softmax says, which is the derivative of the
    score by its similarity.

    >>> similarities = torch.tensor([0.5, 0.25, 0.9]).view(1, 3, 1)
    >>> real = torch.tensor([True, True, False]).view(1, 3, 1)
    >>> query_shares(similarities, real, aggregation="mean", lse_scale=6.0).flatten()
    tensor([0.2500, 0.1250, 0.0000])
    """
    if aggregation in ("sum", "mean"):
        terms = similarities.masked_fill(~query_mask, 0.0)
        return terms if aggregation == "sum" else terms / query_mask.sum(dim=1, keepdim=True)
    real = similarities.masked_fill(~query_mask, float("-inf"))
    if aggregation == "max":
        weights = torch.zeros_like(similarities).scatter(1, real.argmax(dim=1, keepdim=True), 1.0)
    else:
        weights = (real * lse_scale).softmax(dim=1)
    score = aggregate(similarities, query_mask, aggregation=aggregation, lse_scale=lse_scale)
    return weights * score[:, None]


def stacked_attention(
    products: Float[Tensor, "context_item context query query_item"] | Ragged,
    contexts: Side,
    query_norms: Float[Tensor, "#context_item query query_item"],
    query_mask: Bool[Tensor, "#context_item query query_item"],
    *,
    normalization: Normalization,
    temperature: float,
    aggregation: Aggregation,
    lse_scale: float = 1.0,
    focal: Focal | None = None,
    focus: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Float[Tensor, "context_item query_item"]:
    """Scores of one tile of products: attend, optionally refocus the weights (BFAN), compare, aggregate.

    `focus` leaves weights out; `focal` is the name of a function that does, BFAN's, which a program may do instead.

    >>> from functools import partial
    >>> images, captions = prepare_side(torch.randn(4, 36, 8), None), prepare_side(torch.randn(6, 12, 8), None)
    >>> score_tile = partial(stacked_attention, normalization="clipped_l2", temperature=9.0, aggregation="mean")
    >>> all_pairs(images, captions, score_tile).shape
    torch.Size([4, 6])
    """

    def attend(products: Tensor, gram: Tensor, norms: Tensor, mask: Tensor) -> Tensor:
        weights = attention_weights(products, mask, query_mask, normalization=normalization, temperature=temperature)
        weights = weights if focus is None else focus(weights, mask)
        return attended_cosine(products, weights, gram, norms)

    compute: Callable[..., Tensor] = attend
    if isinstance(products, Ragged) or (_is_by_hand(normalization, temperature) and _on_cpu(products)):
        slope = NEGATIVE_SLOPE if normalization == "clipped_l2" else 1.0
        compute = partial(attended_cosines, how=How(slope, temperature, EPSILON, focal, focus, attend))
    similarities = compute(products, contexts.gram, query_norms, contexts.mask)
    return aggregate(similarities, query_mask, aggregation=aggregation, lse_scale=lse_scale)


def takes_ragged(items: Tensor, *, normalization: Normalization, temperature: float) -> bool:
    """Whether `stacked_attention` with these options takes the products of such items without padding, as `Ragged`.

    >>> takes_ragged(torch.ones(2, 3, 8, dtype=torch.float64), normalization="clipped_l2", temperature=9.0)
    False
    """
    exact = items.dtype == torch.float32 and _is_by_hand(normalization, temperature)
    return exact and _on_cpu(items) and is_compiled()


def _is_by_hand(normalization: Normalization, temperature: float) -> bool:
    return normalization in ("clipped_l2", "l2") and temperature <= STEEPEST


def _on_cpu(products: Tensor) -> bool:
    """Where passes over memory are what attention costs; a compiler finds its own."""
    return products.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))


def all_pairs(
    contexts: Side,
    queries: Side,
    score_tile: Callable[..., Tensor],
    *,
    both_directions: bool = False,
    query_grams: bool = False,
    ragged: bool = False,
) -> Float[Tensor, "context_item query_item"]:
    """Every context against every query, in tiles of sets of like length that stay in the cache.

    Captions differ much in length: sorted and cropped tile by tile, hardly any padding is computed.

    Args:
        contexts: the side that is attended over.
        queries: the side that attends.
        score_tile: maps (products, contexts, query_norms, query_mask) of a tile to its scores.
        both_directions: also let the contexts attend over the queries, and add the two scores (BFAN).
        query_grams: also give `score_tile` the products of the queries of a set, `(1, query, query, query_item)`.
        ragged: give `score_tile` products without any padding, `Ragged` ones (see `takes_ragged`).

    >>> from functools import partial
    >>> images, captions = prepare_side(torch.randn(4, 36, 8), None), prepare_side(torch.randn(6, 12, 8), None)
    >>> score_tile = partial(stacked_attention, normalization="clipped_l2", temperature=9.0, aggregation="mean")
    >>> all_pairs(images, captions, score_tile, both_directions=True).shape
    torch.Size([4, 6])
    """
    score = partial(_score_products, score_tile=score_tile, both_directions=both_directions, query_grams=query_grams)
    if torch.compiler.is_compiling():  # a compiler tiles the whole computation itself, and cannot read lengths
        return score(_products(contexts, _rows(queries), queries), contexts, queries)
    contexts, context_rank = _sort_by_length(contexts)
    if ragged:
        return _all_ragged(contexts, queries, score)[context_rank]
    queries, query_rank = _sort_by_length(queries)
    size = _tile_size(contexts, queries)
    few = max(LANES, size // FEWER_QUERIES // LANES * LANES)
    many = max(1, size * size // few)
    query_tiles = [(tile, _rows(tile)) for tile in _split_and_crop(queries, few)]
    blocks = []
    for tile in _split_and_crop(contexts, many):
        columns = [score(_products(tile, rows, query_tile), tile, query_tile) for query_tile, rows in query_tiles]
        blocks.append(torch.cat(columns, dim=1))
    return torch.cat(blocks)[context_rank[:, None], query_rank]


def _all_ragged(
    contexts: Side, queries: Side, score: Callable[..., Tensor]
) -> Float[Tensor, "context_item query_item"]:
    """Contexts that are sorted by length against queries that are not, by products without padding."""
    spans = _spans(queries)
    wide = contexts.mask.shape[1] * max(len(span.rows) for span in spans) * contexts.norms.element_size()
    tiles = math.ceil(len(contexts.mask) / max(1, RAGGED_BYTES // wide))
    size = math.ceil(len(contexts.mask) / tiles)  # all tiles are of about one size
    if len(set(lengths(contexts.mask))) > 1:
        size = min(size, LANES)  # contexts are padded
    blocks = []
    for tile in _split_and_crop(contexts, size):
        parts = []
        for span in spans:
            products = inner_products(tile.items.flatten(0, 1), span.rows).unflatten(0, tile.mask.shape)
            parts.append(score(Ragged(products, span.counts), tile, span.queries))
        blocks.append(torch.cat(parts, dim=1))
    order = torch.tensor([number for span in spans for number in span.order], device="cpu")
    return torch.cat(blocks)[:, order.argsort()]


class _Span(NamedTuple):
    """Queries from long to short that are multiplied at once."""

    order: list[int]
    """Which they are."""
    queries: Side
    """Without their items, which are the rows."""
    rows: Float[Tensor, "column dim"]
    counts: list[int]
    """How many of them have each word."""


def _spans(queries: Side) -> list[_Span]:
    """All queries, so many at a time that their real items are about `RAGGED_COLUMNS`."""
    ends, longest = lengths(queries.mask), queries.mask.shape[1]
    order = sorted(range(len(ends)), key=lambda number: -ends[number])
    groups: list[list[int]] = []
    columns = RAGGED_COLUMNS
    for number in order:
        if columns + ends[number] > RAGGED_COLUMNS:
            groups.append([])
            columns = 0
        groups[-1].append(number)
        columns += ends[number]
    spans, items = [], queries.items.flatten(0, 1)
    for some in groups:
        counts = counts_of([ends[number] for number in some])
        here, words = torch.tensor(some, device="cpu"), len(counts)
        mask = split(taken(queries.mask, some), len(some))[0]
        norms, gram = queries.norms[here, :words], queries.gram[here, :words, :words]
        rows = items.index_select(0, torch.tensor(columns_of(some, counts, longest), device="cpu"))
        spans.append(_Span(some, Side(rows.new_empty(len(some), words, 0), mask, norms, gram), rows, counts))
    return spans


def _rows(queries: Side) -> Float[Tensor, "query_row dim"]:
    """The items of queries in the kernel's layout: all first ones, all second ones, ..."""
    return queries.items.transpose(0, 1).flatten(0, 1)


def _products(
    contexts: Side, rows: Float[Tensor, "query_row dim"], queries: Side
) -> Float[Tensor, "context_item context query query_item"]:
    """One matrix product in the kernel's layout."""
    products = at_least_float32(inner_products(contexts.items.flatten(0, 1), rows))
    count, length, _ = queries.items.shape  # `len` would be a fixed number in a graph
    return products.view(*contexts.items.shape[:2], length, count)


def _score_products(
    products: Float[Tensor, "context_item context query query_item"] | Ragged,
    contexts: Side,
    queries: Side,
    *,
    score_tile: Callable[..., Tensor],
    both_directions: bool,
    query_grams: bool,
) -> Float[Tensor, "context_item query_item"]:
    """The scores of one tile of products."""
    grams = (queries.gram.permute(1, 2, 0)[None],) if query_grams else ()
    scores = score_tile(products, contexts, queries.norms.T[None], queries.mask.T[None], *grams)
    if both_directions:
        # The same products with the sides exchanged: a copy in the kernel's layout, no second matrix product.
        if isinstance(products, Ragged):
            parts, sides = products.parted(LANES), _split_and_crop(queries, LANES)
        else:
            parts, sides = [products], [queries]
        others = contexts.norms.T[None], contexts.mask.T[None]
        turned = (part.permute(3, 2, 1, 0).contiguous() for part in parts)
        found = [score_tile(part, side, *others) for part, side in zip(turned, sides, strict=True)]
        scores = scores + torch.cat(found).T
    return scores


def _sort_by_length(side: Side) -> tuple[Side, Int[Tensor, " set"]]:
    """The sets from long to short, and where each of them went."""
    ends = lengths(side.mask)
    order = sorted(range(len(ends)), key=lambda number: -ends[number])
    there = torch.tensor(order, device=side.mask.device)
    if order == list(range(len(ends))):
        return side, there
    items, norms, gram = (field[there] for field in (side.items, side.norms, side.gram))
    return Side(items, taken(side.mask, order), norms, gram), there.argsort()


def _split_and_crop(side: Side, size: int) -> list[Side]:
    """Tiles of at most `size` sets, each without the padding that all its sets share."""
    tiles = []
    # split, not slices: the gradient of a slice is a whole tensor of zeros a tile
    fields = (field.split(size) for field in (side.items, side.norms, side.gram))
    for items, norms, gram, mask in zip(*fields, split(side.mask, size), strict=True):
        longest = mask.shape[1]
        tiles.append(Side(items[:, :longest], mask, norms[:, :longest], gram[:, :longest, :longest]))
    return tiles


def aligned_products(contexts: Side, queries: Side) -> Float[Tensor, "pair context query 1"]:
    """Products of aligned pairs in the kernel's layout; each pair is a context item with a single query item.

    >>> images, captions = prepare_side(torch.randn(4, 36, 8), None), prepare_side(torch.randn(4, 12, 8), None)
    >>> aligned_products(images, captions).shape
    torch.Size([4, 36, 12, 1])
    """
    return at_least_float32(contexts.items @ queries.items.transpose(1, 2))[..., None]


def aligned_pairs(
    contexts: Side,
    queries: Side,
    score_tile: Callable[..., Tensor],
    *,
    both_directions: bool = False,
    query_grams: bool = False,
) -> Float[Tensor, " pair"]:
    """Context i against query i only, through the same tile function as `all_pairs`.

    >>> from functools import partial
    >>> images, captions = prepare_side(torch.randn(4, 36, 8), None), prepare_side(torch.randn(4, 12, 8), None)
    >>> score_tile = partial(stacked_attention, normalization="clipped_l2", temperature=9.0, aggregation="mean")
    >>> aligned, every = (score(images, captions, score_tile) for score in (aligned_pairs, all_pairs))
    >>> torch.allclose(aligned, every.diag(), atol=1e-5)
    True
    """
    products = aligned_products(contexts, queries)
    grams = (queries.gram[..., None],) if query_grams else ()
    scores = score_tile(products, contexts, queries.norms[..., None], queries.mask[..., None], *grams)
    if both_directions:
        exchanged = products.transpose(1, 2)
        scores = scores + score_tile(exchanged, queries, contexts.norms[..., None], contexts.mask[..., None])
    return scores[:, 0]


def pair_shares(
    contexts: Side,
    queries: Side,
    *,
    normalization: Normalization,
    temperature: float,
    aggregation: Aggregation,
    lse_scale: float = 1.0,
    focus: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Float[Tensor, "pair query"]:
    """What each query of aligned pairs adds to their score: `query_shares`, options as for `stacked_attention`.

    >>> images, captions = prepare_side(torch.randn(4, 36, 8), None), prepare_side(torch.randn(4, 12, 8), None)
    >>> pair_shares(images, captions, normalization="clipped_l2", temperature=9.0, aggregation="mean").shape
    torch.Size([4, 12])
    """
    products, query_mask = aligned_products(contexts, queries), queries.mask[..., None]
    weights = attention_weights(
        products, contexts.mask, query_mask, normalization=normalization, temperature=temperature
    )
    if focus is not None:
        weights = focus(weights, contexts.mask)
    similarities = attended_cosine(products, weights, contexts.gram, queries.norms[..., None])
    return query_shares(similarities, query_mask, aggregation=aggregation, lse_scale=lse_scale)[..., 0]


def _tile_size(contexts: Side, queries: Side) -> int:
    """How many sets of either side make a tile."""
    bytes_each = contexts.items.shape[1] * queries.items.shape[1] * queries.norms.element_size()
    tile = PRODUCTS_BYTES.get(queries.norms.device.type, PRODUCTS_BYTES["cuda"])
    return max(1, math.isqrt(tile // bytes_each))


def tile_bytes(device: torch.device) -> int:
    """`TILE_BYTES` of a device; other accelerators are treated as GPUs.

    >>> tile_bytes(torch.device("cpu")) == TILE_BYTES["cpu"]
    True
    """
    return TILE_BYTES.get(device.type, TILE_BYTES["cuda"])


def _safe_sqrt(tensor: Tensor) -> Tensor:
    """Square root whose gradient at zero is zero, not infinite: a zero row must not turn training into NaN."""
    return tensor.clamp_min(torch.finfo(tensor.dtype).tiny).sqrt()
