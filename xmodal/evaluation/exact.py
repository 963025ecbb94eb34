"""The metrics of float32 scores from low-precision ones.

A rank only needs to know which candidates beat a query's best right answer, and for nearly all of them low precision
tells. The others are settled in two steps, each with a bound on the error of the scores that it starts from:

1. low-precision scores, wrong by some bound at most: pairs that may be on either side of a right answer are computed
   again in float32, image by image;
2. float32 in another order of summation is wrong in its last digits: pairs that this still leaves open (duplicates,
   near ties) are computed in the very tiles of `score_all`, which gives the very bits of its result.

Both bounds are measured and checked, not proved. A bound can be proved (rounding to bfloat16 changes a product by less
than 2% of the lengths of its two vectors), but after normalization, softmax and aggregation it is so wide that it
leaves every pair open. Instead, a bound starts at three times the largest error of a sample: all right answers, as many
random pairs, and all pairs of a few random tiles. Where low precision overflows nothing is known of any pair, and all
are computed in float32. Every pair that is computed again, and those are the ones nearest to
a decision, then checks it; where it is violated it becomes three times the error seen, and whatever it decided is
decided anew. So the metrics can only be wrong if a pair that was never computed again is wrong by more than three times
as much as all those that were. Scores that jump where an input barely changes (BFAN, which drops regions below a
threshold) have rare large errors; their bound is wide and more pairs are computed again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from xmodal.evaluation.ranks import BLOCK_ELEMENTS, as_relevance, best_right, check_answers, evaluate_retrieval
from xmodal.inference import comparing
from xmodal.scoring.blocks import score_all, score_tiles
from xmodal.scoring.pairs import score_pairs
from xmodal.scoring.plan import make_plan, result_dtype
from xmodal.scoring.sides import Sides
from xmodal.scoring.tiles import fast_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.data.relevance import Relevance
    from xmodal.heads import Head
    from xmodal.scoring.plan import Tile

SAFETY = 3.0
"""A bound on errors, divided by the largest error seen."""

SAMPLE_TILES = 4
"""Random tiles that errors are first measured on."""

ROUNDING = 2.0**-22
"""The least that a bound is of the largest score: samples without any error do not make low precision exact."""

HOPELESS = 0.25
"""The share of open pairs from which on it is cheaper to compute all in float32."""

BACKEND = "eager"
"""Its tiles are small enough to compute one again."""

LOW, FLOAT32, SETTLED = 0, 1, 2
"""How a score was computed: in low precision, in float32, in the tile of `score_all`."""


def evaluate_exact(
    head: Head,
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    caption_image: Int[Tensor, " caption"] | Relevance,
    dtype: torch.dtype = torch.bfloat16,
    budget_bytes: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """`evaluate_retrieval` of the float32 scores of `score_all` (backend `eager`), in less time than these take.

    Scores all pairs in low precision and, in float32, those whose side of a right answer the error bound leaves open.
    The bound is measured and checked on every pair that is computed twice, not proved: see the head of this file for
    what that means. Heads without a fast path (pooled heads: one small product) are scored in float32 at once.

    Args:
        head: any head.
        regions: encoded images, float32.
        words: encoded captions, float32.
        region_mask: True = real region.
        word_mask: True = real word.
        caption_image: the image that each caption describes, or a `Relevance`, as for `evaluate_retrieval`.
        dtype: of the low-precision products.
        budget_bytes: as for `score_all`; the metrics are those of its scores with the same budget.
        device: as for `score_all`.
        progress: show a bar.

    Returns:
        The dict of `evaluate_retrieval` and, under `exact`, `pairs`; `recomputed`: pairs computed in float32, one by
        one; `settled`: pairs of which the bits were needed; `error_bound` of the low-precision scores, in the end;
        `largest_error` seen; `widened`: how often a bound was violated and widened.

    Raises:
        ValueError: for inputs that cannot be scored, or relevance that does not fit, before anything is scored.

    Example:
        >>> import torch
        >>> from xmodal.heads import SCAN
        >>> from xmodal.scoring import evaluate_exact
        >>> regions, words = torch.randn(4, 36, 64), torch.randn(8, 12, 64)
        >>> metrics = evaluate_exact(SCAN(), regions, words, caption_image=torch.arange(8) // 2)
        >>> sorted(metrics), metrics["exact"]["pairs"]
        (['exact', 'i2t', 'rsum', 't2i'], 32)
    """
    relevance = as_relevance(caption_image, len(regions), len(words))
    check_answers(relevance)
    images, captions = Sides.checked(regions, words, region_mask, word_mask)
    inputs = (images.items, captions.items, images.mask, captions.mask)
    options = {"budget_bytes": budget_bytes, "device": device}
    exact_dtype = result_dtype(images.items.dtype)
    if fast_path(head.comparison) is None:
        scores = score_all(head, *inputs, dtype=exact_dtype, progress=progress, **options)
        count = scores.numel()
        report = {"recomputed": 0, "settled": count, "error_bound": 0.0, "largest_error": 0.0, "widened": 0}
        return {**evaluate_retrieval(scores, relevance), "exact": {"pairs": count, **report}}
    scores = score_all(head, *inputs, dtype=dtype, progress=progress, backend=BACKEND, **options)
    settling = _Settling(head, inputs, options, exact_dtype, scores.to(exact_dtype), relevance)
    with comparing(head, images.items.device):
        settling.run()
    return {**evaluate_retrieval(settling.scores, relevance), "exact": settling.report()}


class _Settling:
    """Scores on their way from low precision to as much precision as the ranks need."""

    def __init__(
        self,
        head: Head,
        inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
        options: dict[str, Any],
        dtype: torch.dtype,
        scores: Float[Tensor, "image caption"],
        relevance: Relevance,
    ) -> None:
        self.head, self.inputs, self.options, self.dtype = head, inputs, options, dtype
        self.sides = Sides.checked(*inputs)
        self.scores, self.right = scores, (relevance.image, relevance.caption)
        self.how = torch.zeros(scores.shape, dtype=torch.uint8)
        self.largest_error = [0.0, 0.0]  # of LOW scores, and of FLOAT32 ones
        self.bound = [float("inf"), float("inf")]  # on those errors
        self.widened = 0

    def run(self) -> None:
        """Compute again what is open, until nothing is."""
        self.measure()
        while True:
            images, captions = self.open_pairs()
            if not len(images):
                return
            low = self.how[images, captions] == LOW
            if int(low.sum()) > HOPELESS * self.scores.numel():
                self.settle(lambda rows, columns: True)
            elif bool(low.any()):
                self.recompute(images[low], captions[low])
            else:
                self.settle(self.tiles_with(images, captions))

    def measure(self) -> None:
        """Set the bounds by the errors of all right answers, as many random pairs, and some random tiles."""
        if not torch.stack(self.scores.aminmax()).isfinite().all():  # a product beyond the range of float16
            self.settle(lambda rows, columns: True)
            return
        generator = torch.Generator().manual_seed(0)
        images, captions = (torch.randint(size, (SAMPLE_TILES,), generator=generator) for size in self.how.shape)
        tiles = list(self.tiles(self.tiles_with(images, captions)))
        drawn = torch.zeros_like(self.how, dtype=torch.bool)
        _, captions_of_right = self.right
        drawn[self.right] = True
        drawn[torch.randint(len(drawn), captions_of_right.shape, generator=generator), captions_of_right] = True
        for tile in tiles:
            drawn[tile.images[:, None], tile.captions] = True
        # Normalized over a single query, a product is its sign: its score jumps at zero, beyond every bound.
        regions, words, region_mask, word_mask = self.inputs
        drawn[_is_single(regions, region_mask)] = True
        drawn[:, _is_single(words, word_mask)] = True
        if int(drawn.sum()) > HOPELESS * drawn.numel():
            self.settle(lambda rows, columns: True)
            return
        self.recompute(*drawn.nonzero(as_tuple=True))
        for tile in tiles:
            self.accept(tile.images[:, None], tile.captions, tile.scores, SETTLED)
        least = ROUNDING * max(float(self.scores.abs().max()), torch.finfo(self.dtype).tiny)
        self.bound = [max(SAFETY * error, least) for error in self.largest_error]

    def open_pairs(self) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """Pairs that may be on either side of a right answer, and the right answers they are near to.

        No pair is settled yet, and none comes twice.
        """
        bounds = torch.tensor([*self.bound, 0.0], dtype=self.dtype)
        image, caption = self.right
        right, margins = self.scores[self.right], bounds[self.how[self.right].int()]
        edges = (right - margins, right + margins)
        image_least, image_most = (best_right(edge, image, len(self.scores)) for edge in edges)
        caption_least, caption_most = (best_right(edge, caption, self.scores.shape[1]) for edge in edges)
        open_captions = torch.zeros_like(caption_least, dtype=torch.bool)
        found = []
        block = max(1, BLOCK_ELEMENTS // len(caption_least))
        for start in range(0, len(self.scores), block):
            rows = slice(start, start + block)
            margins = bounds[self.how[rows].int()]
            low, high = self.scores[rows] - margins, self.scores[rows] + margins
            # An interval without a width, compared with another one, is decided: equal is as good as the right answer.
            near_caption = (high >= caption_least) & (low <= caption_most)
            near_caption &= (margins > 0) | (caption_least < caption_most)
            near_image = (high >= image_least[rows, None]) & (low <= image_most[rows, None])
            near_image &= (margins > 0) | (image_least < image_most)[rows, None]
            mine = torch.zeros_like(near_image)
            among = (image >= start) & (image < start + block)
            mine[image[among] - start, caption[among]] = True
            near_caption &= ~mine
            near_image &= ~mine
            open_captions |= near_caption.any(dim=0)
            near = near_caption | near_image | (mine & near_image.any(dim=1, keepdim=True))
            found.append(torch.stack((near & (self.how[rows] != SETTLED)).nonzero(as_tuple=True)))
            found[-1][0] += start
        answers = open_captions[caption] & (self.how[self.right] != SETTLED)
        found.append(torch.stack((image[answers], caption[answers])))
        images, captions = torch.cat(found, dim=1).unique(dim=1)
        return images, captions

    def recompute(self, images: Int[Tensor, " pair"], captions: Int[Tensor, " pair"]) -> None:
        """Float32 scores of some pairs, whose last bits may differ from those of `score_all`."""
        self.accept(images, captions, score_pairs(self.head, *self.inputs, images, captions, **self.options), FLOAT32)

    def settle(self, wanted: Callable[[Tensor, Tensor], bool]) -> None:
        """The scores of `score_all` for all pairs of the tiles that are wanted."""
        for tile in self.tiles(wanted):
            self.accept(tile.images[:, None], tile.captions, tile.scores, SETTLED)

    def tiles(self, wanted: Callable[[Tensor, Tensor], bool]) -> Iterator[Tile]:
        """Tiles of `score_all` in float32."""
        plan = make_plan(self.head, self.sides, dtype=self.dtype, backend=BACKEND, **self.options)
        return score_tiles(self.head, self.sides, plan, wanted)

    def tiles_with(
        self, images: Int[Tensor, " pair"], captions: Int[Tensor, " pair"]
    ) -> Callable[[Tensor, Tensor], bool]:
        """Whether a tile has one of these pairs."""
        among = torch.zeros_like(self.how, dtype=torch.bool)
        among[images, captions] = True
        return lambda rows, columns: bool(among[rows[:, None], columns].any())

    def accept(self, images: Tensor, captions: Tensor, scores: Tensor, how: int) -> None:
        """Take better scores, and check by them the bounds on the errors of those they replace."""
        scores = scores.to(self.scores)
        before = self.how[images, captions]
        errors = (scores - self.scores[images, captions]).abs()
        for level in range(how):
            seen = errors[before == level]
            if seen.numel():
                self.check(level, float(seen.max()))
        better = before <= how
        self.scores[images, captions] = torch.where(better, scores, self.scores[images, captions])
        self.how[images, captions] = before.clamp_min(how)

    def check(self, level: int, error: float) -> None:
        """Note an error; a bound that it violates is set anew. Infinity less infinity is as wrong as can be."""
        error = math.inf if math.isnan(error) else error
        self.largest_error[level] = max(self.largest_error[level], error)
        if error > self.bound[level]:
            self.bound[level] = SAFETY * error
            self.widened += 1

    def report(self) -> dict[str, Any]:
        """What `evaluate_exact` returns under `exact`."""
        return {
            "pairs": self.how.numel(),
            "recomputed": int((self.how == FLOAT32).sum()),
            "settled": int((self.how == SETTLED).sum()),
            "error_bound": self.bound[LOW],
            "largest_error": self.largest_error[LOW],
            "widened": self.widened,
        }


def _is_single(items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"] | None) -> Bool[Tensor, " set"]:
    """Sets with a single real item."""
    if mask is None:
        return torch.full((len(items),), items.shape[1] == 1)
    return (mask.sum(dim=1) == 1).cpu()
