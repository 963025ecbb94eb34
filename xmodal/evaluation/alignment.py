"""How words and regions lie in the joint space: whether the two sides have found each other, or stand apart.

Three numbers of a batch of matched pairs, cheap enough for every training step:

| name | what |
|---|---|
| `mean_cosine` | cosine of the mean word and the mean region of the batch: -1 on opposite sides, 1 in one direction |
| `positive_share` | share of the products of words with regions that are positive, of those of different pairs |
| `gap` | distance between the mean word and the mean region of a pair, on average over pairs: from 0 to 2 |

All are of items divided by their lengths, as cosines see them. Sides that were drawn at random have a cosine near 0 and
half of their products positive. Nearly all pairs that a head compares do not match, so it is theirs whose products are
counted: a sample, the words of every pair with the regions of the next, which costs no more than the pairs themselves.
A pair that is alone has no such product: the share is NaN then. Lengths may be anything from 1e-7 to 1e18, between
which float32 holds their squares; shorter items count as shorter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.numerics import at_least_float32, full_mask, unit_means

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Alignment(NamedTuple):
    """How the words and regions of matched pairs lie; see the module."""

    mean_cosine: Float[Tensor, ""]
    positive_share: Float[Tensor, ""]
    gap: Float[Tensor, ""]


def alignment(
    words: Float[Tensor, "pair word dim"],
    regions: Float[Tensor, "pair region dim"],
    word_mask: Bool[Tensor, "pair word"] | None = None,
    region_mask: Bool[Tensor, "pair region"] | None = None,
) -> Alignment:
    """How the words and regions of matched pairs lie.

    Args:
        words: word features of pairs in no order.
        regions: region features in the same space.
        word_mask: True = real word; None means that all are real.
        region_mask: True = real region; None means that all are real.

    Example:
        >>> import torch
        >>> from xmodal.evaluation.alignment import alignment
        >>> words = torch.tensor([[[2.0, 0.0]], [[2.0, 0.0]]])
        >>> regions = torch.tensor([[[0.0, 1.0], [-3.0, 0.0], [1.0, 0.0]]] * 2)
        >>> found = alignment(words, regions)
        >>> [round(value.item(), 2) for value in found]  # the mean region is (0, 1/3), the mean word (1, 0)
        [0.0, 0.33, 1.05]
    """
    return alignment_of(alignment_sums(words, regions, word_mask, region_mask))


@torch.no_grad()
def alignment_sums(
    words: Float[Tensor, "pair word dim"],
    regions: Float[Tensor, "pair region dim"],
    word_mask: Bool[Tensor, "pair word"] | None = None,
    region_mask: Bool[Tensor, "pair region"] | None = None,
) -> Float[Tensor, " sum"]:
    """What `alignment` is made of; the sums of several batches, or of several processes, may be added.

    They are the sum of all words, that of all regions, the sum of the pairs' gaps and their number, how many of the
    products that are counted are positive, and how many that are.

    Example:
        >>> import torch
        >>> from xmodal.evaluation.alignment import alignment_sums
        >>> alignment_sums(torch.ones(2, 5, 4), -torch.ones(2, 3, 4))
        tensor([ 5.,  5.,  5.,  5., -3., -3., -3., -3.,  4.,  2.,  0., 30.])
    """
    with torch.autocast(words.device.type, enabled=False):
        words, regions = at_least_float32(words), at_least_float32(regions)
        word_mask, region_mask = full_mask(words, word_mask), full_mask(regions, region_mask)
        word_means, region_means = unit_means(words, word_mask), unit_means(regions, region_mask)
        word_counts, region_counts = word_mask.sum(dim=1).to(words), region_mask.sum(dim=1).to(words)
        others, others_mask = words.roll(1, dims=0), word_mask.roll(1, dims=0)
        positive = ((others @ regions.transpose(1, 2)) > 0) & others_mask[:, :, None] & region_mask[:, None, :]
        has_others = len(words) > 1
        pairs = [
            torch.linalg.vector_norm(word_means - region_means, dim=1).sum(),
            torch.full_like(word_counts[0], len(words)),
            has_others * positive.sum().to(words),
            has_others * (word_counts.roll(1) @ region_counts),
        ]
        return torch.cat([word_counts @ word_means, region_counts @ region_means, torch.stack(pairs)])


def alignment_of(sums: Float[Tensor, " sum"]) -> Alignment:
    """The alignment that some `alignment_sums` amount to.

    Example:
        >>> import torch
        >>> from xmodal.evaluation.alignment import alignment_of, alignment_sums
        >>> apart, together = (alignment_sums(torch.ones(2, 5, 4), side * torch.ones(2, 3, 4)) for side in (-1, 1))
        >>> [round(value.item(), 2) for value in alignment_of(apart + together)]
        [0.0, 0.5, 1.0]
    """
    *sides, pairs = sums.split([(len(sums) - 4) // 2] * 2 + [4])
    cosine = torch.nn.functional.cosine_similarity(*sides, dim=0)
    gap, count, positive, products = pairs
    return Alignment(cosine, positive / products, gap / count)
