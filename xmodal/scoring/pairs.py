"""Some pairs out of all: the products of one image with all the captions it is asked for at once, or the other way."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.heads.comparison import InnerProduct
from xmodal.inference import comparing
from xmodal.scoring.compared import compared_pairs, comparer, room_for
from xmodal.scoring.embedding import embedded_parts, in_dtype
from xmodal.scoring.memory import check_budget
from xmodal.scoring.packing import Collection
from xmodal.scoring.plan import Plan, result_dtype
from xmodal.scoring.sides import Side, Sides, as_tensor
from xmodal.scoring.tiles import Scratch, fast_path, multiply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.heads import Head
    from xmodal.scoring.compared import Room
    from xmodal.scoring.tiles import FastPath

PACK_COST = 256
"""As in `packing`. A pack is multiplied with a single item here: less work a place, so that one more costs more."""


class Pairs(NamedTuple):
    """Both sides, embedded, and which image goes with which caption."""

    sides: Sides
    images: Int[Tensor, " pair"]
    captions: Int[Tensor, " pair"]

    @property
    def by_image(self) -> bool:
        """Whether fewer images than captions take part: each is compared with all that are paired with it."""
        return len(self.images.unique()) <= len(self.captions.unique())

    def runs(self) -> Iterator[tuple[Int[Tensor, ""], Int[Tensor, " pair"]]]:
        """Every image or caption, of what there is less, and the pairs it is in."""
        which = self.images if self.by_image else self.captions
        order = which.argsort(stable=True)
        distinct, counts = which[order].unique_consecutive(return_counts=True)
        return zip(distinct, order.split(counts.tolist()), strict=True)


def score_pairs(
    head: Head,
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None,
    word_mask: Bool[Tensor, "caption word"] | None,
    images: Int[Tensor, " pair"],
    captions: Int[Tensor, " pair"],
    *,
    budget_bytes: int | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, " pair"]:
    """Scores of image `images[i]` and caption `captions[i]`, in at least float32; other arguments as for `score_all`.

    Per-item work of the head runs once for every image and caption that takes part.

    Args:
        head: any head.
        regions: encoded images.
        words: encoded captions.
        region_mask: True = real region; None means that all are real.
        word_mask: True = real word.
        images: the image of every pair, counted from 0.
        captions: its caption.
        budget_bytes: bound on the temporary memory.
        device: compute there instead of on the device of `regions`; the head must be there.

    Raises:
        ValueError: for inputs that cannot be scored, a budget that is not positive, and images and captions that are
            not as many, no whole numbers, or out of range.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring import score_pairs
        >>> regions, words = torch.randn(4, 36, 64), torch.randn(6, 12, 64)
        >>> score_pairs(SCAN(), regions, words, None, None, torch.tensor([3, 0]), torch.tensor([5, 1])).shape
        torch.Size([2])
    """
    sides = Sides.checked(regions, words, region_mask, word_mask)
    images = _numbers("images", images, len(sides.images))
    captions = _numbers("captions", captions, len(sides.captions))
    if len(images) != len(captions):
        raise ValueError(f"pairs are of {len(images)} images and {len(captions)} captions; wanted as many of both")
    device = torch.device(device or sides.images.items.device)
    plan = Plan(check_budget(budget_bytes, device), result_dtype(sides.images.items.dtype), device, "eager")
    with comparing(head, device):
        head = head.in_stages
        if not len(images):
            return torch.empty(0, dtype=plan.dtype, device="cpu")
        path = fast_path(head.comparison)
        if head.comparison is None and not head.compares_pairs_one_by_one:
            return compared_pairs(head, sides, images, captions, plan)
        pairs = _embedded(head, Pairs(sides, images, captions), plan)
        if path is not None:
            return _fast_pairs(path, pairs, plan)
        if isinstance(head.comparison, InnerProduct):
            return _inner_products(pairs, plan)
        return _compared_in_runs(head, pairs, plan)


def _numbers(name: str, given: Int[Tensor, " pair"] | Sequence[int], count: int) -> Int[Tensor, " pair"]:
    """Which images, or captions, of so many are in pairs."""
    numbers = as_tensor(given)
    if numbers.ndim != 1:
        raise ValueError(f"{name} of pairs have shape {tuple(numbers.shape)}; wanted a number for every pair")
    if not len(numbers):
        return numbers.long()
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise ValueError(f"{name} of pairs are {numbers.dtype}; wanted whole numbers")
    least, most = (int(end) for end in numbers.long().aminmax())
    if least < 0 or most >= count:
        raise ValueError(f"{name} of pairs are from {least} to {most}; wanted numbers from 0 to {count - 1}")
    return numbers.long()


def _embedded(head: Head, pairs: Pairs, plan: Plan) -> Pairs:
    """The images and captions that take part, embedded."""
    head = in_dtype(head, plan.dtype)
    images, image_index = _embedded_side(head.embed_images, pairs.sides.images, pairs.images, plan)
    captions, caption_index = _embedded_side(head.embed_captions, pairs.sides.captions, pairs.captions, plan)
    return Pairs(Sides(images, captions), image_index, caption_index)


def _embedded_side(
    embed: Callable[[Tensor, Tensor], Tensor], side: Side, sets: Int[Tensor, " pair"], plan: Plan
) -> tuple[Side, Int[Tensor, " pair"]]:
    """The sets of one side that take part, embedded, and where they are now."""
    sets = sets.cpu()
    ((there, embedded),) = embedded_parts(embed, side, plan, sets=sets.unique())
    place = torch.empty(len(side), dtype=torch.long, device="cpu")
    place[there] = torch.arange(len(there), device="cpu")
    return embedded, place[sets]


def _fast_pairs(path: FastPath, pairs: Pairs, plan: Plan) -> Float[Tensor, " pair"]:
    """By the products of each image or caption with all that it is paired with."""
    scores = torch.empty(len(pairs.images), dtype=plan.dtype, device="cpu")
    scratch, by_image = Scratch(), pairs.by_image
    images, captions = (Collection(side.items, side.mask, plan.dtype, plan.device) for side in pairs.sides)
    (anchors, anchor_use), (others, other_use) = (images, path.images), (captions, path.captions)
    if not by_image:
        (anchors, anchor_use), (others, other_use) = (others, other_use), (anchors, anchor_use)
    asked = pairs.captions if by_image else pairs.images
    max_rows = max(1, plan.budget_bytes // 4 // others.row_bytes)
    for anchor, run in pairs.runs():
        one = anchors.block([anchor[None]], anchor_use)
        for parts in others.divide(asked[run], max_rows, pack_cost=PACK_COST):
            many = others.block([asked[run[part]] for part in parts], other_use)
            image_block, caption_block = (one, many) if by_image else (many, one)
            products = multiply(image_block, caption_block, path, scratch)
            tile = path.score(products, image_block, caption_block, scratch)
            scores[run[torch.cat(parts)]] = tile.flatten().to(scores)
    return scores


def _inner_products(pairs: Pairs, plan: Plan) -> Float[Tensor, " pair"]:
    """Of the vectors that images and captions are embedded as."""
    images, captions = (side.items for side in pairs.sides)
    scores = torch.empty(len(pairs.images), dtype=plan.dtype, device="cpu")
    step = max(1, plan.budget_bytes // 4 // (3 * images[0].nbytes))
    for some in torch.arange(len(scores), device="cpu").split(step):
        left, right = images[pairs.images[some].to(images.device)], captions[pairs.captions[some].to(captions.device)]
        scores[some] = (left * right).sum(dim=-1).to(scores)
    return scores


def _compared_in_runs(head: Head, pairs: Pairs, plan: Plan) -> Float[Tensor, " pair"]:
    """By `Head.compare` of each image or caption with all that it is paired with."""
    compare, room, by_image = comparer(head, plan.dtype), None, pairs.by_image
    scores = torch.empty(len(pairs.images), dtype=plan.dtype, device="cpu")
    for _, run in pairs.runs():
        start = 0
        while start < len(run):
            some = run[start : start + _fitting(room, by_image)]
            start += len(some)
            rows, columns = (some[:1], some) if by_image else (some, some[:1])
            images = pairs.sides.images.take(pairs.images[rows], plan.device, plan.dtype)
            captions = pairs.sides.captions.take(pairs.captions[columns], plan.device, plan.dtype)
            inputs = (images.items, captions.items, images.mask, captions.mask)
            scores[some] = compare(*inputs).flatten().to(scores)
            room = room or room_for(head, compare, inputs, plan)
    return scores


def _fitting(room: Room | None, by_image: bool) -> int:
    """How many captions are compared with one image at a time, or the other way; the first tells how many may be."""
    if room is None:
        return 1
    return room.captions_beside(1) if by_image else room.images_beside(1)
