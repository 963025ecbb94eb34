"""What a tile of products becomes: the Gram form of `xmodal.heads.attention` with every avoidable pass left out.

Scores are those of the heads; three facts make them cheaper here, where no gradient is needed:

- A cosine does not change when its attended context is scaled, so that the softmax over the context needs no
  denominator: `exp` of the logits is enough. BFAN's focal threshold is scale-free as well.
- Places of padding hold zero items. Their products are zero and so are their rows of the Gram matrix: whatever weight
  they get drops out of both sums of the cosine.
- Every pass writes into one of a few buffers that stay in the cache.

Tensors are laid out `(context_item, context, query_row)`: as in `xmodal.heads.attention`, except that queries are the
rows of a block. Only what sums over the queries of a set goes pack by pack.
"""

from __future__ import annotations

from functools import lru_cache, partial
from math import e, inf, log2, prod, sqrt
from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.heads.attended_program import LANES, Attending, is_served
from xmodal.heads.attention import EPSILON, NEGATIVE_SLOPE, aggregate
from xmodal.heads.comparison import CrossAttention, HardAlignment
from xmodal.heads.ragged import Ragged
from xmodal.products import inner_products
from xmodal.scoring.packing import BOTH, CONTEXT, QUERY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.heads.attention import Aggregation, Focal, Normalization
    from xmodal.heads.comparison import Comparison
    from xmodal.scoring.packing import Block, Pack, Use

TINY = 1e-30
"""What a square is at least before a root or a quotient of it is taken."""

SAFE_EXPONENT = 20.0
"""Logits of at most this size are exponentiated as they are; the squared sums stay far from the ends of float32."""


class Scratch:
    """Buffers that are taken again and again for tiles of different shapes.

    >>> scratch, like = Scratch(), torch.ones(1)
    >>> scratch.take("spare", (4, 6), like).data_ptr() == scratch.take("spare", (3, 2), like).data_ptr()
    True
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The buffer of that name in the given shape; a fresh one for a compiler, which plans memory itself."""
        if torch.compiler.is_compiling():
            return like.new_empty(shape, dtype=dtype)
        dtype, size = dtype or like.dtype, prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name, dtype] = like.new_empty(size, dtype=dtype)
        return buffer[:size].view(shape)


class FastPath(NamedTuple):
    """How a head scores a tile: how it uses the two sides, and (products, images, captions, scratch) -> scores."""

    images: Use
    captions: Use
    score: Callable[[Tensor, Block, Block, Scratch], Tensor]


def fast_path(how: Comparison | None) -> FastPath | None:
    """The fast path of heads that compare in some way; None for the others, which are asked themselves.

    >>> fast_path(CrossAttention()).captions, fast_path(None)
    (Use(query=True, context=False), None)
    """
    if isinstance(how, HardAlignment):
        return FastPath(CONTEXT, QUERY, partial(_align_tile, how))
    if not isinstance(how, CrossAttention):
        return None
    uses = (BOTH, BOTH) if how.both else (CONTEXT, QUERY) if how.direction == "t2i" else (QUERY, CONTEXT)
    return FastPath(*uses, partial(_score_tile, how))


def compile_path(path: FastPath) -> FastPath:
    """The same, with the passes over a tile fused by a compiler; pack by pack, to compile for one structure only.

    >>> path = fast_path(CrossAttention())
    >>> compile_path(path).captions  # nothing is compiled before the first tile
    Use(query=True, context=False)
    """
    score_packs = torch.compile(path.score, dynamic=True)

    def score(products: Tensor, images: Block, captions: Block, scratch: Scratch) -> Tensor:
        rows = []
        for image_pack, image in zip(images.packs, images.split(), strict=True):
            row = []
            for caption_pack, caption in zip(captions.packs, captions.split(), strict=True):
                sides = (image_pack, caption_pack) if path.images.context else (caption_pack, image_pack)
                row.append(score_packs(products[sides[0].rows, sides[1].rows], image, caption, scratch))
            rows.append(torch.cat(row, dim=1))
        return torch.cat(rows)

    return path._replace(score=score)


def multiply(
    images: Block, captions: Block, path: FastPath, scratch: Scratch
) -> Float[Tensor, "context_row query_row"]:
    """The products of two blocks, in at least float32 whatever they are multiplied in.

    >>> from xmodal.scoring.packing import Collection
    >>> path, cpu = fast_path(CrossAttention()), torch.device("cpu")
    >>> images, captions = (Collection(torch.randn(2, size, 8), None, torch.float32, cpu) for size in (36, 12))
    >>> both = [torch.arange(2)]
    >>> products = multiply(images.block(both, path.images), captions.block(both, path.captions), path, Scratch())
    >>> products.shape
    torch.Size([72, 32])
    """
    rows, columns = (images, captions) if path.images.context else (captions, images)
    shape = (len(rows.items), len(columns.items))
    products = inner_products(rows.items, columns.items, out=scratch.take("products", shape, rows.items))
    exact = torch.promote_types(products.dtype, torch.float32)
    return products if products.dtype == exact else scratch.take("widened", shape, products, exact).copy_(products)


def _score_tile(
    how: CrossAttention,
    products: Float[Tensor, "context_row query_row"],
    images: Block,
    captions: Block,
    scratch: Scratch,
) -> Float[Tensor, "image caption"]:
    """The scores of a tile; BFAN's are those of both directions, added."""

    def attended(products: Tensor, contexts: Block, queries: Block) -> Tensor:
        parts = []
        for pack in contexts.packs:  # rows run over (place, set) where the contexts are queries too
            part, (places, sets) = products[pack.rows], pack.mask.shape
            parts.append(part.view(places, sets, -1).transpose(0, 1) if how.both else part.view(sets, places, -1))
        cosines = _attend(parts, contexts, queries, scratch, how.normalization, how.temperature, how.focal)
        return _pool(cosines, queries, how.aggregation, how.lse_scale)

    images_are_rows = how.both or how.direction == "t2i"  # the sum of both directions has no direction
    contexts, queries = (images, captions) if images_are_rows else (captions, images)
    scores = attended(products, contexts, queries)
    if how.both:
        exchanged = scratch.take("exchanged", products.T.shape, products).copy_(products.T)
        scores = scores + attended(exchanged, queries, contexts).T
    return scores if images_are_rows else scores.T


def _align_tile(
    how: HardAlignment,
    products: Float[Tensor, "context_row query_row"],
    images: Block,
    captions: Block,
    scratch: Scratch,
) -> Float[Tensor, "image caption"]:
    """The scores of a tile of hard alignment: one pass over the products, the rest on a row a set."""
    best = []
    for pack in images.packs:
        part = products[pack.rows].view(*pack.mask.T.shape, -1)
        if pack.padded:
            part = part.masked_fill_(~pack.mask.T[:, :, None], float("-inf"))
        best.append(part.amax(dim=1))
    options = {"aggregation": how.aggregation, "lse_scale": 1 / how.temperature}
    similarities = torch.cat(best)
    scores = [aggregate(_places(similarities, pack), pack.mask[None], **options) for pack in captions.packs]
    return torch.cat(scores, dim=1) / (how.temperature if how.aggregation == "logsumexp" else 1.0)


def _attend(
    products: Sequence[Float[Tensor, "context_item context query_row"]],
    contexts: Block,
    queries: Block,
    scratch: Scratch,
    normalization: Normalization,
    temperature: float,
    focal: Focal | None = None,
) -> Float[Tensor, "context_item query_row"]:
    """Cosines of all queries with what they attend to of every context; products come pack by pack."""
    assert queries.norms is not None, "a block of queries has norms"
    cosines = []
    by_program = normalization in ("clipped_l2", "l2") and temperature <= SAFE_EXPONENT
    count = sum(len(pack.sets) for pack in queries.packs)
    for part, pack in zip(products, contexts.packs, strict=True):
        if by_program and is_served(part, count):
            slope = NEGATIVE_SLOPE if normalization == "clipped_l2" else 1.0
            cosines.append(_attend_by_program(part, pack, queries, slope, temperature, focal))
            continue
        weights = _attention_weights(part, pack, queries, scratch, normalization, temperature)
        if focal is not None:
            weights = _focus(weights, pack, scratch, focal)
        cosines.append(_attended_cosines(part, weights, pack, queries.norms, scratch))
    return torch.cat(cosines)


def _attend_by_program(
    products: Float[Tensor, "context_item context query_row"],
    contexts: Pack,
    queries: Block,
    slope: float,
    temperature: float,
    focal: Focal | None,
) -> Float[Tensor, "context_item query_row"]:
    """The same in one pass over the products of a pack; packs of few queries, put together, in another."""
    assert contexts.gram is not None, "a context is packed with its Gram matrix"
    assert queries.norms is not None, "a block of queries has norms"
    gram, mask = contexts.gram, contexts.mask.T
    options = {"slope": slope, "temperature": temperature, "epsilon": EPSILON, "focal": focal}
    cosines = products.new_zeros(len(products), products.shape[2])  # rows that are in no pack stay so
    narrow = []
    for pack in queries.packs:
        if len(pack.sets) < LANES // 2:
            narrow.append(pack)
            continue
        norms = queries.norms[pack.rows].view(1, *pack.mask.shape)
        found, _ = Attending(_places(products, pack), gram, mask, **options).cosines(norms)
        cosines[:, pack.rows] = found.flatten(1)
    if narrow:
        rows, counts, real = _put_together(tuple((pack.rows.start, *pack.mask.shape) for pack in narrow))
        values = torch.from_numpy(products.numpy().take(rows.numpy(), axis=2))  # torch takes four times as long
        norms = queries.norms.new_zeros(1, counts[0] * len(counts)).index_copy_(1, real, queries.norms[None, rows])
        norms = norms.view(1, len(counts), counts[0])
        found, _ = Attending(Ragged(values, counts), gram, mask, **options).cosines(norms)
        cosines.index_copy_(1, rows, found.flatten(1).index_select(1, real))
    return cosines.clamp_(-1.0, 1.0)


@lru_cache(maxsize=64)
def _put_together(
    packs: tuple[tuple[int, int, int], ...],
) -> tuple[Int[Tensor, " row"], list[int], Int[Tensor, " row"]]:
    """Packs of one block as `Ragged` has them: place by place, and from long sets to short.

    Args:
        packs: of each, the first row, the places and the sets.

    Returns:
        The rows, how many sets have each place, and where each row is among all places of all sets.
    """
    packs = tuple(sorted(packs, key=lambda pack: pack[1], reverse=True))
    width = sum(sets for _, _, sets in packs)
    rows, counts, real = [], [], []
    for place in range(packs[0][1]):
        has = [(start + place * sets, sets) for start, places, sets in packs if places > place]
        rows += [row for start, sets in has for row in range(start, start + sets)]
        counts.append(sum(sets for _, sets in has))
        real += range(place * width, place * width + counts[-1])
    return torch.tensor(rows, device="cpu"), counts, torch.tensor(real, device="cpu")


def _attention_weights(
    products: Float[Tensor, "context_item context query_row"],
    contexts: Pack,
    queries: Block,
    scratch: Scratch,
    normalization: Normalization,
    temperature: float,
) -> Float[Tensor, "context_item context query_row"]:
    """Attention over the context, up to a factor a query. What padding gets is not zero and does not matter."""
    weights = scratch.take("weights", products.shape, products)
    spare = scratch.take("spare", products.shape, products)
    if normalization.startswith("clipped"):
        # There is no public name for a leaky ReLU into a buffer, and one into a fresh tensor takes twice as long.
        logits = torch.ops.aten.leaky_relu.out(products, NEGATIVE_SLOPE, out=weights)
    else:
        logits = weights.copy_(products)
    rate = temperature * log2(e)
    if normalization == "softmax":
        for pack in queries.packs:
            each = _places(logits, pack)
            each.copy_(each.masked_fill(~pack.mask, float("-inf")).softmax(dim=-2))
        logits *= rate
    elif normalization.endswith(("l1", "l2")):
        # torch.linalg.vector_norm over an outer axis takes forty times as long as a product and a sum.
        if normalization.endswith("l2"):
            norms = _sum_over_places(torch.mul(logits, logits, out=spare), queries).sqrt_()
        else:
            norms = _sum_over_places(torch.abs(logits, out=spare), queries)
        scales = norms.add_(EPSILON).reciprocal_().mul_(rate)
        scales = scales.split([len(pack.sets) for pack in queries.packs], dim=-1)
        for pack, scale in zip(queries.packs, scales, strict=True):
            _places(logits, pack).mul_(scale[..., None, :])
    else:
        logits *= rate
    if normalization in ("clipped", "none") or temperature > SAFE_EXPONENT:
        if contexts.padded:
            logits.masked_fill_(~contexts.mask.T[:, :, None], float("-inf"))
        logits -= logits.amax(dim=1, keepdim=True)
    return logits.exp2_()  # a third of the time of exp on a CPU


def _places(rows: Float[Tensor, "*axes row"], pack: Pack) -> Float[Tensor, "*axes place set"]:
    """The rows of a pack of queries, by their places and sets."""
    return rows[..., pack.rows].unflatten(-1, pack.mask.shape)


def _sum_over_places(rows: Float[Tensor, "*axes row"], queries: Block) -> Float[Tensor, "*axes set"]:
    """Sums over the rows of every set, padding included."""
    return torch.cat([_places(rows, pack).sum(dim=-2) for pack in queries.packs], dim=-1)


def _focus(
    weights: Float[Tensor, "context_item context query_row"], contexts: Pack, scratch: Scratch, focal: Focal
) -> Float[Tensor, "context_item context query_row"]:
    """Drop the weights that BFAN's focal function does not keep; see `xmodal.heads.bfan.focal_mask`.

    F_i > 0 says that a weight is above a mean of the weights, plain (`equal`) or weighted by their roots (`prob`). A
    mean that no weight is above, as of equal weights, keeps the greatest.
    """
    if contexts.padded:
        weights = weights.mul_(contexts.mask.T[:, :, None])
    spare = scratch.take("spare", weights.shape, weights)
    if focal == "equal":
        mean = weights.sum(dim=1, keepdim=True) / contexts.mask.sum(dim=0)[:, None, None]
    else:
        confidence = torch.sqrt(weights, out=spare)
        total = confidence.sum(dim=1, keepdim=True)
        mean = confidence.mul_(weights).sum(dim=1, keepdim=True).div_(total)
    threshold = torch.minimum(mean, weights.amax(dim=1, keepdim=True).mul_(1 - torch.finfo(weights.dtype).eps))
    return weights.mul_(torch.gt(weights, threshold, out=spare))


def _attended_cosines(
    products: Float[Tensor, "context_item context query_row"],
    weights: Float[Tensor, "context_item context query_row"],
    contexts: Pack,
    query_norms: Float[Tensor, " query_row"],
    scratch: Scratch,
) -> Float[Tensor, "context_item query_row"]:
    """Cosine of every query with its attended context, which is never formed (see `xmodal.heads.attention`)."""
    assert contexts.gram is not None, "a context is packed with its Gram matrix"
    spare = scratch.take("spare", products.shape, products)
    dots = torch.mul(weights, products, out=spare).sum(dim=1)
    squares = torch.bmm(contexts.gram, weights, out=spare).mul_(weights).sum(dim=1)
    if torch.compiler.is_compiling() or _has_short(query_norms, contexts.gram):
        cosines = _floored(dots, squares, weights, contexts, query_norms)
    else:
        cosines = dots.div_(query_norms.clamp_min(EPSILON)).mul_(squares.clamp_min_(TINY).rsqrt_())
    # Rounding can leave a context that cancels itself without a length.
    return cosines.clamp_(-1.0, 1.0)


def _has_short(query_norms: Float[Tensor, " row"], gram: Float[Tensor, "set place place"]) -> bool:
    """Whether the floor of a cosine's denominator, `EPSILON`, may be felt.

    Where items, but for zeros, are longer than this says, a context as short would be made of nothing but rounding.
    """
    lengths = query_norms, gram.diagonal(dim1=1, dim2=2).sqrt()
    shortest = [length.masked_fill(length == 0, inf).min() for length in lengths]
    return bool(shortest[0] * shortest[1] < EPSILON / sqrt(torch.finfo(gram.dtype).eps))


def _floored(
    dots: Float[Tensor, "context_item query_row"],
    squares: Float[Tensor, "context_item query_row"],
    weights: Float[Tensor, "context_item context query_row"],
    contexts: Pack,
    query_norms: Float[Tensor, " query_row"],
) -> Float[Tensor, "context_item query_row"]:
    """Cosines as `xmodal.heads.attention.attended_cosine` has them of short items, from weights up to a factor."""
    factor = (contexts.mask.T[:, None].to(weights) @ weights)[:, 0]
    lengths = query_norms * squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt_()
    return (dots / torch.maximum(lengths, EPSILON * factor)).masked_fill_(lengths < EPSILON**2 * factor, 0.0)


def _pool(
    cosines: Float[Tensor, "context_item query_row"], queries: Block, aggregation: Aggregation, lse_scale: float
) -> Float[Tensor, "context_item query_item"]:
    """One score a set of queries; see `xmodal.heads.attention.aggregate`."""
    if aggregation != "logsumexp" or lse_scale > SAFE_EXPONENT:
        options = {"aggregation": aggregation, "lse_scale": lse_scale}
        return torch.cat([aggregate(_places(cosines, pack), pack.mask[None], **options) for pack in queries.packs], 1)
    rate = lse_scale * log2(e)
    exponentials = cosines.mul_(rate).exp2_()
    for pack in queries.packs:
        if pack.padded:
            _places(exponentials, pack).mul_(pack.mask)
    return _sum_over_places(exponentials, queries).log2_().div_(rate)
