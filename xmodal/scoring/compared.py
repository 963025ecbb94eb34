"""Scores of heads that no engine knows better than the heads themselves: `Head.compare`, in blocks under a budget.

How large a block may be depends on what `compare` makes of a pair, which may be a matrix. The head says so
(`Head.pair_bytes`), or the first pairs are compared while their allocations are counted.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.heads.comparison import InnerProduct
from xmodal.scoring.allocations import measured
from xmodal.scoring.embedding import embedded_parts, in_dtype
from xmodal.scoring.plan import Tile
from xmodal.scoring.sides import Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.heads import Head
    from xmodal.scoring.plan import Plan
    from xmodal.scoring.sides import Side, Sides


class Room(NamedTuple):
    """How many images and captions fit into memory together when every pair of them is compared."""

    limit: int
    """Bytes that there are."""
    pair: int
    """Bytes of a pair."""
    image: int
    """Bytes of an image."""
    caption: int
    """Bytes of a caption."""

    def captions(self) -> int:
        """So many captions that they take as much memory as the images that fit beside them; one at least."""
        both = self.image**2 + self.pair * self.image * self.limit / self.caption
        return max(1, int((sqrt(both) - self.image) / self.pair))

    def images_beside(self, captions: int) -> int:
        """Images beside so many captions; one at least."""
        return max(1, (self.limit - self.caption * captions) // (self.pair * captions + self.image))

    def captions_beside(self, images: int) -> int:
        """Captions beside so many images; one at least."""
        return max(1, (self.limit - self.image * images) // (self.pair * images + self.caption))


def compared_tiles(
    head: Head, sides: Sides, plan: Plan, wanted: Callable[[Tensor, Tensor], bool] = lambda images, captions: True
) -> Iterator[Tile]:
    """Tiles of any head; captions in order of their lengths, from the longest, and cropped.

    A quarter of the budget is for embedded images and one for embedding, half of it for comparing.

    >>> from xmodal.heads import Cosine
    >>> from xmodal.scoring.plan import make_plan
    >>> from xmodal.scoring.sides import Sides
    >>> sides = Sides.checked(torch.randn(4, 36, 64), torch.randn(6, 12, 64))
    >>> sum(tile.scores.numel() for tile in compared_tiles(Cosine(), sides, make_plan(Cosine(), sides)))
    24
    """
    head = head.in_stages
    exact, compare = in_dtype(head, plan.exact_dtype), comparer(head, plan.dtype)
    ends = _ends(sides.captions)
    order = ends.argsort(descending=True, stable=True)
    room, step, together = None, 1, 1
    for rows, images in embedded_parts(exact.embed_images, sides.images, plan, held_bytes=plan.budget_bytes // 4):
        start = 0
        while start < len(order):
            chosen = order[start : start + step]
            start += step
            places = int(ends[chosen[0]])
            captions, peak = measured(_embedded, exact, sides.captions, chosen, places, together, plan)
            if room is None:  # one image and one caption, the longest, tell how many may be compared at once
                image = images.take(slice(0, 1), plan.device, plan.dtype)
                room = room_for(head, compare, (image.items, captions.items, image.mask, captions.mask), plan)
                step, together = room.captions(), max(1, plan.budget_bytes // 4 // peak)
            for part in torch.arange(len(rows), device="cpu").split(room.images_beside(len(chosen))):
                if wanted(rows[part], chosen):
                    few = images.take(slice(int(part[0]), int(part[-1]) + 1), plan.device, plan.dtype)
                    yield Tile(rows[part], chosen, compare(few.items, captions.items, few.mask, captions.mask))
            del captions  # before the next ones are made


def _embedded(head: Head, side: Side, chosen: Int[Tensor, " set"], places: int, together: int, plan: Plan) -> Taken:
    """Some captions, embedded so many at a time from their first places."""
    captions, mask = None, []
    for start in range(0, len(chosen), together):
        words = side.take(chosen[start : start + together], plan.device, plan.exact_dtype, places=places)
        some = head.embed_captions(words.items, words.mask).to(plan.dtype)
        mask.append(words.mask)
        if len(some) == len(chosen):
            return Taken(some, words.mask)
        captions = some.new_empty(len(chosen), *some.shape[1:]) if captions is None else captions
        captions[start : start + together] = some
    assert captions is not None, "nobody asks for no captions"
    return Taken(captions, torch.cat(mask))


def comparer(head: Head, dtype: torch.dtype) -> Callable[..., Float[Tensor, "image caption"]]:
    """`Head.compare` for embeddings of a dtype.

    >>> from xmodal.heads import Cosine
    >>> comparer(Cosine(), torch.float32)(torch.eye(2), torch.eye(2))
    tensor([[1., 0.],
            [0., 1.]])
    """
    if isinstance(head.comparison, InnerProduct):
        return lambda images, captions, region_mask=None, word_mask=None: images @ captions.T
    return in_dtype(head, dtype).compare


def room_for(
    head: Head,
    compare: Callable[..., Float[Tensor, "image caption"]],
    pair: tuple[Tensor, Tensor, Tensor, Tensor],
    plan: Plan,
) -> Room:
    """How many pairs like one, given as the arguments of `Head.compare`, fit half of the budget.

    >>> from xmodal.heads import Cosine
    >>> from xmodal.scoring.plan import Plan
    >>> plan, real = Plan(1 << 10, torch.float32, torch.device("cpu"), "eager"), torch.ones(1, 3, dtype=torch.bool)
    >>> pair = (torch.ones(1, 8), torch.ones(1, 8), real, real)
    >>> room = room_for(Cosine(), comparer(Cosine(), plan.dtype), pair, plan)
    >>> room, room.captions(), room.images_beside(1)
    (Room(limit=512, pair=4, image=64, caption=64), 3, 6)
    """
    limit = plan.budget_bytes // 2
    items = 2 * pair[0].nbytes, 2 * pair[1].nbytes  # as they were given, and cast
    stated = head.pair_bytes(pair[0], pair[1])
    if isinstance(head.comparison, InnerProduct):
        stated = torch.finfo(pair[0].dtype).bits // 8
    if stated is not None:
        return Room(limit, max(1, stated), *items)
    _, needed = measured(compare, *pair)
    given = sum(side.nbytes for side in pair)
    if 4 * needed + 2 * given <= limit:  # a share of four pairs has less of what one item needs by itself
        _, needed = measured(compare, *(side.repeat_interleave(2, dim=0) for side in pair))
        needed = -(-needed // 4)
    return Room(limit, max(1, needed), *items)


def compared_pairs(
    head: Head, sides: Sides, images: Int[Tensor, " pair"], captions: Int[Tensor, " pair"], plan: Plan
) -> Float[Tensor, " pair"]:
    """Scores of aligned pairs of a head with its own way to score these, `Head.pairs`.

    >>> from xmodal.heads import Cosine
    >>> from xmodal.scoring.plan import make_plan
    >>> from xmodal.scoring.sides import Sides
    >>> sides = Sides.checked(torch.randn(4, 36, 64), torch.randn(6, 12, 64))
    >>> two = torch.tensor([0, 3])
    >>> compared_pairs(Cosine(), sides, two, two, make_plan(Cosine(), sides)).shape
    torch.Size([2])
    """
    head = in_dtype(head, plan.exact_dtype)
    scores = torch.empty(len(images), dtype=plan.exact_dtype, device="cpu")

    def score(some: slice) -> Tensor:
        left = sides.images.take(images[some], plan.device, plan.exact_dtype)
        right = sides.captions.take(captions[some], plan.device, plan.exact_dtype)
        return head.pairs(left.items, right.items, left.mask, right.mask)

    scores[:1], peak = measured(score, slice(0, 1))
    step = max(1, plan.budget_bytes // 2 // max(1, peak))
    for start in range(1, len(scores), step):
        some = slice(start, start + step)
        scores[some] = score(some).to(scores)
    return scores


def _ends(side: Side) -> Int[Tensor, " set"]:
    """One past the last real place of every set."""
    if side.mask is None:
        return torch.full((len(side),), side.items.shape[1], device="cpu")
    return (side.mask.cpu() * torch.arange(1, side.mask.shape[1] + 1, device="cpu")).amax(dim=1)
