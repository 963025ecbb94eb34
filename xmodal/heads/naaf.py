"""NAAF: negative-aware attention (Zhang et al., CVPR 2022)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.heads.attention import (
    Side,
    aggregate,
    aligned_pairs,
    aligned_products,
    all_pairs,
    attended_cosine,
    attention_weights,
    prepare_side,
    prepare_sides,
)
from xmodal.heads.base import Head, check_inputs
from xmodal.heads.scan import scan_attention
from xmodal.numerics import Positive, check_number, full_mask, of_one_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

ENOUGH_WORDS = 200
"""More sampled words than this give a new threshold: the released code's empirical value."""

MEMORY = 0.3
"""Share of the old threshold in the new one, as released."""


def naaf_scores(
    regions: Float[Tensor, "image region dim"],
    words: Float[Tensor, "caption word dim"],
    region_mask: Bool[Tensor, "image region"] | None = None,
    word_mask: Bool[Tensor, "caption word"] | None = None,
    *,
    threshold: float | Tensor = 0.0,
    temperature: float = 20.0,
    intra_temperature: float | None = None,
    validate: bool = False,
) -> Float[Tensor, "image caption"]:
    """Negative-aware attention scores (Zhang et al., CVPR 2022, eq. 6-12), every image against every caption.

    With a_ji = e_j . v_i, a word adds three things. What it matches, by features: e_j . c_j / |c_j|, where c_j is the
    mean of the regions with a_ji above the threshold, weighted by exp(temperature a_ji), 0 without any. What it
    matches, by relevance: sum_i q_ji a_ji with SCAN's attention q of words over regions. And what it does not match:
    r_j = max_i a_ji - threshold where that is negative. In the test form the last is decided by r'_j = sum_k
    softmax_k(intra_temperature e_j . e_k) r_k, which words of like meaning share: r_j, whatever its sign, counts where
    r'_j is negative. The score is the mean over the words. These readings are those of the released code (NAAF,
    model.py: xattn_score, xattn_score_test).

    Args:
        regions: region embeddings of the images, L2-normalized in the paper, which is not required.
        words: word embeddings of the captions in the same space, L2-normalized in the paper.
        region_mask: True = real region; None means that all are real.
        word_mask: True = real word; None means that all are real.
        threshold: below which a word and a region do not match.
        temperature: inverse temperature of both attentions over regions, > 0 (20 as published).
        intra_temperature: inverse temperature of the attention among words in the test form, > 0 (5 as released); None
            for the training form.
        validate: also refuse NaN and infinity among the real features, at the cost of a pass over them.

    Returns:
        Scores in the inputs' dtype, or float32 where that is a half precision.

    Raises:
        ValueError: for inputs that cannot be scored (see `check_inputs`) and for a temperature that is not positive.

    Example:
        >>> import torch
        >>> from xmodal.heads import naaf_scores
        >>> match, mismatch = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> naaf_scores(torch.cat([match, mismatch]), match, threshold=0.25)
        tensor([[ 2.0000],
                [-0.2500]])
    """
    check_inputs(regions, words, region_mask, word_mask, validate=validate)
    score_tile = _negative_aware(threshold, temperature, intra_temperature)
    sides = prepare_sides(regions, words, region_mask, word_mask, grams=["images", "captions"])
    return all_pairs(*sides, score_tile, query_grams=True)


def naaf_pair_scores(
    regions: Float[Tensor, "pair region dim"],
    words: Float[Tensor, "pair word dim"],
    region_mask: Bool[Tensor, "pair region"] | None = None,
    word_mask: Bool[Tensor, "pair word"] | None = None,
    *,
    threshold: float | Tensor = 0.0,
    temperature: float = 20.0,
    intra_temperature: float | None = None,
    validate: bool = False,
) -> Float[Tensor, " pair"]:
    """Scores of aligned pairs: the diagonal of `naaf_scores`, whose arguments these are, without the rest of it.

    Example:
        >>> import torch
        >>> from xmodal.heads import naaf_pair_scores
        >>> naaf_pair_scores(torch.randn(3, 36, 64), torch.randn(3, 12, 64)).shape
        torch.Size([3])
    """
    check_inputs(regions, words, region_mask, word_mask, aligned=True, validate=validate)
    score_tile = _negative_aware(threshold, temperature, intra_temperature)
    sides = prepare_sides(regions, words, region_mask, word_mask, grams=["images", "captions"])
    return aligned_pairs(*sides, score_tile, query_grams=True)


def matching_threshold(
    matched: Float[Tensor, " word"], mismatched: Float[Tensor, " word"], *, penalty: float = 2.0
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]] | None:
    """Where the Gaussians of matched and mismatched words part, and a lower bound of what matches (NAAF eq. 1-5).

    The first is a root of A t^2 + B t + C = 0, where the density of the matched is the penalty times that of the
    mismatched; the second is three deviations below the mean of the matched. Either is 0 where it is outside of
    [0, 1], as in the released code (NAAF, model.py), which takes the second in testing.

    Args:
        matched: best products of words with a region of their own image.
        mismatched: of the same words with a region of the image that fits their caption least.
        penalty: alpha, by which a mismatch taken for a match weighs more (2 as released).

    Returns:
        Both, or None where the densities do not cross.

    Example:
        >>> import torch
        >>> from xmodal.heads.naaf import matching_threshold
        >>> matched, mismatched = torch.linspace(0.5, 0.9, 50), torch.linspace(0.0, 0.2, 50)
        >>> [round(float(threshold), 3) for threshold in matching_threshold(matched, mismatched)]
        [0.316, 0.343]
    """
    found = _parting((matched.mean(), matched.std()), (mismatched.mean(), mismatched.std()), penalty)
    return (found.root, found.bound) if bool(found.exists) else None


class _Parting(NamedTuple):
    """Where two Gaussians part, if they do."""

    root: Float[Tensor, ""]
    bound: Float[Tensor, ""]
    exists: Bool[Tensor, ""]


def _parting(matched: tuple[Tensor, Tensor], mismatched: tuple[Tensor, Tensor], penalty: float) -> _Parting:
    """`matching_threshold` of means and deviations, by operations that wait for no device."""
    (mp, sp), (mn, sn) = matched, mismatched
    a = sp**2 - sn**2
    b = 2 * (mp * sn**2 - mn * sp**2)
    c = (mn * sp) ** 2 - (mp * sn) ** 2 + 2 * (sp * sn) ** 2 * (sn / (penalty * sp) + 1e-8).log()
    discriminant = b**2 - 4 * a * c
    root, bound = (discriminant.sqrt() - b) / (2 * a + 1e-10), mp - 3 * sp
    zero = torch.zeros_like(root)
    # Chosen, not multiplied: a root that does not exist is not a number.
    root, bound = (torch.where((value >= 0) & (value <= 1), value, zero) for value in (root, bound))
    return _Parting(root, bound, discriminant > 0)


def _mean_and_deviation(
    values: Float[Tensor, "pair word"], chosen: Bool[Tensor, "pair word"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Of the values that are chosen: not a number where there are too few."""
    values, count = values.masked_fill(~chosen, 0.0), chosen.sum()
    mean = values.sum() / count
    return mean, ((values - mean).masked_fill(~chosen, 0.0).square().sum() / (count - 1)).sqrt()


class NAAF(Head):
    """The NAAF head as a Module, which learns its threshold from what it scores in training.

    In training, captions that rank their own image first give their words' best products with that image and with the
    one that they rank last; more than 200 words of a batch give a new threshold (`matching_threshold`), of which 0.7
    counts beside 0.3 of the old one. Training needs square batches of matched pairs for it. In evaluation the scores
    are those of the test form, with the lower bound for threshold. Both thresholds are buffers, 0 in the beginning.

    Here a batch is scored with the threshold that those before it gave, and moves it once. The released code
    (NAAF, model.py) moves it after every caption, so that it changes within a batch, and sets it to 0 as long as a
    batch has given fewer than 200 words.

    Args:
        temperature: inverse temperature of both attentions over regions, > 0 (20 as published).
        intra_temperature: inverse temperature of the attention among words in evaluation, > 0 (5 as released).
        penalty: by which a mismatch taken for a match weighs more in the threshold, > 0 (2 as released).
        learn_threshold: whether training moves the thresholds.

    Raises:
        ValueError: for a number that is not positive and, in training, for a batch that is not square.

    Example:
        >>> import torch
        >>> from xmodal.heads import NAAF
        >>> NAAF().eval()(torch.randn(4, 36, 256), torch.randn(6, 12, 256)).shape
        torch.Size([4, 6])
    """

    threshold: Tensor
    lower_bound: Tensor

    def __init__(
        self,
        temperature: Positive = 20.0,
        intra_temperature: Positive = 5.0,
        penalty: Positive = 2.0,
        learn_threshold: bool = True,
    ) -> None:
        super().__init__()
        check_number("penalty", penalty, above=0)
        _negative_aware(0.0, temperature, intra_temperature)  # refuses temperatures that are not positive
        self.temperature = temperature
        self.intra_temperature = intra_temperature
        self.penalty = penalty
        self.learn_threshold = learn_threshold
        self.register_buffer("threshold", torch.tensor(0.0))
        self.register_buffer("lower_bound", torch.tensor(0.0))

    def compare(self, images, captions, region_mask=None, word_mask=None):
        """`naaf_scores`; in training they also move the thresholds."""
        scores = naaf_scores(images, captions, region_mask, word_mask, **self._options())
        if self.training and self.learn_threshold:
            if len(images) != len(captions):
                raise ValueError(
                    f"NAAF learns its threshold from square batches of matched pairs, got {len(images)} images and "
                    f"{len(captions)} captions; use eval(), train in one process, or set learn_threshold=False"
                )
            self._learn(images, captions, full_mask(images, region_mask), full_mask(captions, word_mask), scores)
        return scores

    def pairs(self, regions, words, region_mask=None, word_mask=None):  # noqa: D102
        sides = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return naaf_pair_scores(*sides, region_mask, word_mask, **self._options())

    def attention(self, regions, words, region_mask=None, word_mask=None):
        """The attention by which relevance counts: SCAN's of words over regions."""
        sides = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return scan_attention(*sides, region_mask, word_mask, direction="t2i", temperature=self.temperature)

    def extra_repr(self) -> str:  # noqa: D102
        return f"temperature={self.temperature}, intra_temperature={self.intra_temperature}, penalty={self.penalty}"

    def _options(self) -> dict[str, Any]:
        if self.training:
            return {"threshold": self.threshold, "temperature": self.temperature}
        intra = self.intra_temperature
        return {"threshold": self.lower_bound, "temperature": self.temperature, "intra_temperature": intra}

    @torch.no_grad()
    def _learn(
        self,
        images: Float[Tensor, "pair region dim"],
        captions: Float[Tensor, "pair word dim"],
        region_mask: Bool[Tensor, "pair region"],
        word_mask: Bool[Tensor, "pair word"],
        scores: Float[Tensor, "pair pair"],
    ) -> None:
        own = torch.arange(len(scores), device=scores.device)
        chosen = word_mask & (scores.argmax(dim=0) == own)[:, None]
        images, captions = of_one_dtype(images, captions)
        words = prepare_side(captions, word_mask, gram=False)

        def best(image: Int[Tensor, " pair"]) -> Float[Tensor, "pair word"]:
            mask = region_mask[image]
            products = aligned_products(prepare_side(images[image], mask, gram=False), words)[..., 0]
            return products.masked_fill(~mask[..., None], float("-inf")).amax(dim=1)

        matched, mismatched = best(own), best(scores.argmin(dim=0))
        found = _parting(_mean_and_deviation(matched, chosen), _mean_and_deviation(mismatched, chosen), self.penalty)
        moves = found.exists & (chosen.sum() > ENOUGH_WORDS)
        for kept, new in ((self.threshold, found.root), (self.lower_bound, found.bound)):
            kept.copy_(torch.where(moves, (1 - MEMORY) * new + MEMORY * kept, kept))


def negative_aware_attention(
    products: Float[Tensor, "context_item context query query_item"],
    contexts: Side,
    query_norms: Float[Tensor, "#context_item query query_item"],
    query_mask: Bool[Tensor, "#context_item query query_item"],
    query_grams: Float[Tensor, "#context_item query query query_item"],
    *,
    threshold: float | Tensor,
    temperature: float,
    intra_temperature: float | None,
) -> Float[Tensor, "context_item query_item"]:
    """Scores of one tile of products, for `xmodal.heads.attention.all_pairs`.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from xmodal.heads.attention import all_pairs, prepare_side
        >>> from xmodal.heads.naaf import negative_aware_attention
        >>> score = partial(negative_aware_attention, threshold=0.1, temperature=20.0, intra_temperature=5.0)
        >>> images, captions = prepare_side(torch.randn(4, 36, 8), None), prepare_side(torch.randn(6, 12, 8), None)
        >>> all_pairs(images, captions, score, query_grams=True).shape
        torch.Size([4, 6])
    """
    real = contexts.mask[:, :, None, None]
    best = products.masked_fill(~real, float("-inf")).amax(dim=1)

    matches = real & (products > threshold)
    logits = (temperature * products).masked_fill(~matches & matches.any(dim=1, keepdim=True), float("-inf"))
    weights = logits.softmax(dim=1).masked_fill(~matches, 0.0)
    by_features = attended_cosine(products, weights, contexts.gram, torch.ones_like(query_norms))

    relevance = attention_weights(
        products, contexts.mask, query_mask, normalization="clipped_l2", temperature=temperature
    )
    by_relevance = (relevance * products).sum(dim=1)

    beyond = best - threshold
    if intra_temperature is None:
        mismatch = beyond.clamp_max(0.0)
    else:
        among = (intra_temperature * query_grams).masked_fill(~query_mask[:, None], float("-inf")).softmax(dim=2)
        shared = (among * beyond.masked_fill(~query_mask, 0.0)[:, None]).sum(dim=2)
        mismatch = beyond.masked_fill(shared >= 0, 0.0)
    return aggregate(mismatch + by_features + by_relevance, query_mask, aggregation="mean", lse_scale=1.0)


def _negative_aware(
    threshold: float | Tensor, temperature: float, intra_temperature: float | None
) -> Callable[..., Tensor]:
    for name, value in (("temperature", temperature), ("intra_temperature", intra_temperature)):
        if value is not None:
            check_number(name, value, above=0)
    return partial(
        negative_aware_attention,
        threshold=threshold,
        temperature=temperature,
        intra_temperature=intra_temperature,
    )
