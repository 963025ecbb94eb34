"""Search at scale: a shortlist by one vector an item, then the head's own scores of what is on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch

from xmodal.heads.comparison import InnerProduct
from xmodal.heads.cosine import pool
from xmodal.inference import comparing
from xmodal.numerics import check_count
from xmodal.scoring.blocks import score_all
from xmodal.scoring.embedding import check_lengths, embedded_parts, in_dtype
from xmodal.scoring.pairs import score_pairs
from xmodal.scoring.plan import make_plan
from xmodal.scoring.sides import Sides

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.heads import Head

Wanted = Literal["images", "captions"]

TOP = 10


class Shortlist(NamedTuple):
    """The best candidates of every query, best first, and what the shortcut costs.

    `recall_of_exact_top10` is the share of the ten best candidates by the head's scores of *all* candidates that are on
    the shortlist, in percent, measured on some of the queries; None if it was not measured.
    """

    candidates: Int[Tensor, "query candidate"]
    scores: Float[Tensor, "query candidate"]
    recall_of_exact_top10: float | None


def shortlist(
    head: Head,
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    k: int = 100,
    wanted: Wanted = "images",
    checked_queries: int = 100,
) -> Shortlist:
    """The `k` candidates nearest to every query by inner product (faiss), ranked by the head's scores.

    Nearest by the head's own embeddings if it compares by their inner products (pooled cosine, VSRN): the list is then
    exact. By the cosine of mean regions and words otherwise.

    Args:
        head: any head.
        regions: encoded images.
        words: encoded captions.
        region_mask: True = real region.
        word_mask: True = real word.
        k: candidates a query, at most as many as there are.
        wanted: `images` for captions as queries, `captions` for images as queries.
        checked_queries: on how many queries, evenly spread, to measure `recall_of_exact_top10` by scoring everything;
            0 for none.

    Raises:
        ValueError: for inputs that cannot be scored, or whose vectors are no finite numbers, another `wanted`, or `k`
            below 1.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring import shortlist
        >>> found = shortlist(SCAN(), torch.randn(40, 36, 64), torch.randn(6, 12, 64), k=20)
        >>> found.candidates.shape, found.recall_of_exact_top10 <= 100
        (torch.Size([6, 20]), True)
    """
    if wanted not in get_args(Wanted):
        raise ValueError(f"wanted must be one of {', '.join(get_args(Wanted))}; got {wanted!r}")
    check_count("k", k)
    check_count("checked_queries", checked_queries, least=0)
    inputs = (regions, words, region_mask, word_mask)
    with comparing(head, torch.as_tensor(regions).device):
        return _shortlist(head, inputs, k, wanted, checked_queries)


def _shortlist(
    head: Head,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    k: int,
    wanted: Wanted,
    checked_queries: int,
) -> Shortlist:
    """The same, once the options are checked."""
    images, captions = _vectors(head, Sides.checked(*inputs))
    for kind, vectors in (("image", images), ("caption", captions)):
        check_lengths(vectors.float(), lambda row, kind=kind: f"{kind} {row}")
    pool_of, queries = (images, captions) if wanted == "images" else (captions, images)
    candidates = _nearest(pool_of, queries, min(k, len(pool_of)))
    asked = torch.arange(len(queries), device="cpu").repeat_interleave(candidates.shape[1])
    pairs = (candidates.flatten(), asked) if wanted == "images" else (asked, candidates.flatten())
    scores = score_pairs(head, *inputs, *pairs).view(candidates.shape)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    candidates = candidates.gather(1, order)

    recall = None
    if checked_queries:
        some = torch.linspace(0, len(queries) - 1, min(checked_queries, len(queries)), device="cpu").long()
        regions, words, region_mask, word_mask = inputs
        if wanted == "images":
            exact = score_all(head, regions, words[some], region_mask, None if word_mask is None else word_mask[some]).T
        else:
            exact = score_all(head, regions[some], words, None if region_mask is None else region_mask[some], word_mask)
        best = exact.topk(min(TOP, len(pool_of)), dim=1).indices
        found = (best[:, :, None] == candidates[some][:, None, :]).any(dim=2)
        recall = 100.0 * float(found.float().mean())
    return Shortlist(candidates, scores, recall)


def _vectors(head: Head, sides: Sides) -> tuple[Float[Tensor, "image dim"], Float[Tensor, "caption dim"]]:
    """One vector an image and a caption: those that the head compares by, or the pooled ones."""
    if not isinstance(head.comparison, InnerProduct):
        images, captions = (pool(side.items, side.mask) for side in sides)
        return images.cpu(), captions.cpu()
    plan = make_plan(head, sides)
    head = in_dtype(head, plan.exact_dtype)
    ((_, images),) = embedded_parts(head.embed_images, sides.images, plan)
    ((_, captions),) = embedded_parts(head.embed_captions, sides.captions, plan)
    return images.items.cpu(), captions.items.cpu()


def _nearest(
    candidates: Float[Tensor, "candidate dim"], queries: Float[Tensor, "query dim"], k: int
) -> Int[Tensor, "query {k}"]:
    """The candidates with the greatest inner products, by faiss."""
    import faiss  # here: loading it takes a while, and scoring all pairs does without

    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(candidates.float().contiguous().numpy())
    return torch.from_numpy(index.search(queries.float().contiguous().numpy(), k)[1])
