"""DP-RNN: expressing objects just like words (Chen and Luo, AAAI 2020, arXiv 2002.08510)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from xmodal.heads.attention import tile_bytes
from xmodal.heads.base import Attention, Head, check_inputs, check_items, every_pair
from xmodal.heads.recurrent import read_in_order
from xmodal.masks import is_full, note_full
from xmodal.numerics import (
    NotNegative,
    Positive,
    Size,
    SizeOrNone,
    at_least_float32,
    check_count,
    check_number,
    full_mask,
    no_autocast,
    unit_length,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Side = Literal["word", "object"]


class CrossSimilarities(NamedTuple):
    """How much each item of a pair agrees with what it attends to, and where words look."""

    words: Float[Tensor, "pair word"]
    objects: Float[Tensor, "pair region"]
    weights: Float[Tensor, "pair word region"]


def cross_similarities(
    objects: Float[Tensor, "pair region dim"],
    words: Float[Tensor, "pair word dim"],
    region_mask: Bool[Tensor, "pair region"],
    word_mask: Bool[Tensor, "pair word"],
    *,
    object_temperature: float = 9.0,
    word_temperature: float = 4.0,
) -> CrossSimilarities:
    """Cosines of items with what they attend to on the other side, in both directions (DP-RNN eq. 3-8).

    Attention is the softmax of cosines that are cut at zero and normalized over the asking items, as in SCAN.

    Args:
        objects: unit vectors; padding is zero.
        words: unit vectors; padding is zero.
        region_mask: True = real object.
        word_mask: True = real word.
        object_temperature: lambda_1, inverse temperature of the softmax over the words that objects attend to.
        word_temperature: lambda_2, of that over the objects.

    Example:
        >>> import torch
        >>> from xmodal.heads.dprnn import cross_similarities
        >>> items, real = torch.eye(2)[None], torch.ones(1, 2, dtype=torch.bool)
        >>> cross_similarities(items, items, real, real, object_temperature=50.0, word_temperature=50.0).words
        tensor([[1., 1.]])
    """
    cosines = at_least_float32(objects @ words.transpose(1, 2)).clamp_min(0.0)
    to_words = (object_temperature * unit_length(cosines, dim=1)).masked_fill(~word_mask[:, None], float("-inf"))
    to_objects = (word_temperature * unit_length(cosines, dim=2)).masked_fill(~region_mask[..., None], float("-inf"))
    texts = to_words.softmax(dim=2).to(words.dtype) @ words
    weights = to_objects.softmax(dim=1).transpose(1, 2)
    views = weights.to(objects.dtype) @ objects
    return CrossSimilarities(
        (at_least_float32(words) * unit_length(at_least_float32(views))).sum(dim=-1),
        (at_least_float32(objects) * unit_length(at_least_float32(texts))).sum(dim=-1),
        weights.masked_fill(~word_mask[..., None], 0.0),
    )


def object_order(
    relevance: Float[Tensor, "pair region word"],
    region_mask: Bool[Tensor, "pair region"],
    word_mask: Bool[Tensor, "pair word"],
) -> Int[Tensor, "pair region"]:
    """Objects in the order of the words that each is most relevant to; the order of the detector among equals.

    Padding comes last.

    Example:
        >>> import torch
        >>> from xmodal.heads.dprnn import object_order
        >>> relevance = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.3, 0.4]]])
        >>> object_order(relevance, torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool))
        tensor([[1, 0, 2]])
    """
    position = relevance.masked_fill(~word_mask[:, None], float("-inf")).argmax(dim=2)
    return position.masked_fill(~region_mask, relevance.shape[2]).argsort(dim=1, stable=True)


class DPRNN(Head):
    """Dual path recurrent network: objects are put into the order of the words and read by a GRU (AAAI 2020).

    For every pair each object is given the place of the word that it is most relevant to; a bi-GRU reads the objects
    in this order, and the mean of its directions takes their place. The score is the weighted mean of how words agree
    with the objects that they attend to (`score="word"`), or objects with words (`score="object"`); the published
    figures average the scores of a model of either kind. Objects that share a word keep the order that the detector
    gave, so that the order of the regions matters.

    No code was released. Ours are the unit length of objects, words and states, and weights that start at zero, thus as
    plain means; those of the side that is not scored would get no gradient and stay plain means. The published training
    leaves out the recurrence in the first epoch (`recurrent=False`) and trains it alone in the second: the recipes say
    by which commands. The gate on positions is in `xmodal.encoders.gated_regions`.

    In training only the `candidates` images that come nearest to a caption by the early score, the product of the sums
    of objects and weighted words, are compared beside its own; the other pairs have the score minus infinity, which no
    ranking loss counts. That needs square batches of matched pairs. Otherwise every pair is compared, each with a GRU
    of its own, in blocks.

    Args:
        dim: dim of the joint space.
        score: `word` or `object`, whose agreements are the score.
        weighting: how much learned weights of the scored side count, >= 0 (0.3 as published for words, and for objects
            0.3 on Flickr30k and 0 on COCO); 0 is the plain mean.
        object_temperature: lambda_1, inverse temperature of the attention of objects over words, > 0 (9 as published).
        word_temperature: lambda_2, that of words over objects, > 0 (4 as published).
        recurrent: whether objects are put into the order of the words and read.
        candidates: negative images a caption in training (10 as published); 0 compares all pairs.

    Raises:
        ValueError: for an option that cannot be and, in training with candidates, for a batch that is not square.

    Example:
        >>> import torch
        >>> from xmodal.heads import DPRNN
        >>> DPRNN(dim=16).eval()(torch.randn(4, 36, 16), torch.randn(6, 12, 16)).shape
        torch.Size([4, 6])
    """

    def __init__(
        self,
        dim: Size,
        score: Side = "word",
        weighting: NotNegative = 0.3,
        object_temperature: Positive = 9.0,
        word_temperature: Positive = 4.0,
        recurrent: bool = True,
        candidates: SizeOrNone = 10,
    ) -> None:
        super().__init__()
        if score not in get_args(Side):
            raise ValueError(f"score must be one of {', '.join(get_args(Side))}; got {score!r}")
        check_number("object_temperature", object_temperature, above=0)
        check_number("word_temperature", word_temperature, above=0)
        check_number("weighting", weighting, least=0)
        check_count("candidates", candidates, least=0)
        check_count("dim", dim)
        self.scored: Side = score
        self.weighting = weighting
        self.object_temperature = object_temperature
        self.word_temperature = word_temperature
        self.candidates = candidates
        self.rnn = nn.GRU(dim, dim, batch_first=True, bidirectional=True) if recurrent else None
        self.weight = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.weight.weight)

    def embed_images(self, regions, region_mask=None):
        """Unit vectors of the objects; padding is zero."""
        check_items(regions, region_mask, "regions", "region_mask", "image region dim")
        return self._unit(regions, full_mask(regions, region_mask))

    def embed_captions(self, words, word_mask=None):
        """Unit vectors of the words; padding is zero."""
        check_items(words, word_mask, "words", "word_mask", "caption word dim")
        return self._unit(words, full_mask(words, word_mask))

    def compare(self, images, captions, region_mask=None, word_mask=None):
        """Scores of all pairs, or in training of the candidates."""
        region_mask, word_mask = full_mask(images, region_mask), full_mask(captions, word_mask)
        image, caption = every_pair(images, captions)
        if torch.compiler.is_exporting():  # neither candidates nor memory are known in a graph
            scores = self._score(images[image], captions[caption], region_mask[image], word_mask[caption])
            return scores.view(images.shape[0], captions.shape[0])
        if self.training and self.candidates:
            if len(images) != len(captions):
                raise ValueError(
                    f"candidates are chosen in square batches of matched pairs, got {len(images)} images and "
                    f"{len(captions)} captions; use eval(), train in one process, or set candidates=0"
                )
            image, caption = self._nearest(images, captions, region_mask, word_mask)
        all_real = is_full(region_mask)
        size = max(1, tile_bytes(images.device) // self.pair_bytes(images[:1], captions[:1]))

        def block(i: Int[Tensor, " pair"], j: Int[Tensor, " pair"]) -> Float[Tensor, " pair"]:
            real = note_full(region_mask[i]) if all_real else region_mask[i]  # which packing would have to read
            return self._score(images[i], captions[j], real, word_mask[j])

        blocks = zip(image.split(size), caption.split(size), strict=True)
        if torch.is_grad_enabled():  # the states of all pairs would not fit beside one another
            scores = torch.cat([checkpoint(block, *some, use_reentrant=False) for some in blocks])
        else:
            scores = torch.cat([block(*some) for some in blocks])
        return scores.new_full((len(images), len(captions)), float("-inf")).index_put((image, caption), scores)

    def pairs(self, regions, words, region_mask=None, word_mask=None):  # noqa: D102
        check_inputs(regions, words, region_mask, word_mask, aligned=True)
        region_mask, word_mask = full_mask(regions, region_mask), full_mask(words, word_mask)
        images, captions = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return self._score(images, captions, region_mask, word_mask)

    def attention(self, regions, words, region_mask=None, word_mask=None):
        """Where words look among the objects, after these were read in the order of the words."""
        check_inputs(regions, words, region_mask, word_mask, aligned=True)
        region_mask, word_mask = full_mask(regions, region_mask), full_mask(words, word_mask)
        images, captions = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        return Attention(self._similarities(images, captions, region_mask, word_mask)[1].weights)

    def pair_bytes(self, image, caption):
        """What the GRU makes of the objects of a pair, and both attentions."""
        (regions, dim), words = image.shape[1:], caption.shape[1]
        return image.element_size() * (12 * regions * dim + 3 * words * dim + 6 * regions * words)

    def extra_repr(self) -> str:  # noqa: D102
        return f"score={self.scored!r}, weighting={self.weighting}, recurrent={self.rnn is not None}"

    def _unit(self, items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]) -> Tensor:
        items = at_least_float32(items).masked_fill(~mask[..., None], 0.0)
        return unit_length(items).to(self.weight.weight.dtype)

    def _shares(
        self, items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"], side: Side
    ) -> Float[Tensor, "set item"]:
        """How much each item of a set counts; the items of the side that is not scored count alike."""
        if side != self.scored:
            return at_least_float32(mask / mask.sum(dim=1, keepdim=True))
        logits = self.weighting * at_least_float32(self.weight(items)[..., 0])
        return logits.masked_fill(~mask, float("-inf")).softmax(dim=1)

    @torch.no_grad()
    def _nearest(
        self,
        images: Float[Tensor, "pair region dim"],
        captions: Float[Tensor, "pair word dim"],
        region_mask: Bool[Tensor, "pair region"],
        word_mask: Bool[Tensor, "pair word"],
    ) -> tuple[Int[Tensor, " candidate"], Int[Tensor, " candidate"]]:
        """Image and caption of the matches, and of the images that the early score puts first for every caption."""
        shares = self._shares(captions, word_mask, "word").to(captions.dtype)
        early = images.sum(dim=1) @ (shares[..., None] * captions).sum(dim=1).T
        own = torch.arange(len(images), device=images.device)
        early.fill_diagonal_(float("-inf"))
        near = early.topk(min(self.candidates, len(images) - 1), dim=0).indices
        return torch.cat([own[None], near]).flatten(), own.repeat(len(near) + 1)

    def _score(
        self,
        objects: Float[Tensor, "pair region dim"],
        words: Float[Tensor, "pair word dim"],
        region_mask: Bool[Tensor, "pair region"],
        word_mask: Bool[Tensor, "pair word"],
    ) -> Float[Tensor, " pair"]:
        objects, found = self._similarities(objects, words, region_mask, word_mask)
        if self.scored == "word":
            return (self._shares(words, word_mask, "word") * found.words).sum(dim=1)
        return (self._shares(objects, region_mask, "object") * found.objects).sum(dim=1)

    def _similarities(
        self,
        objects: Float[Tensor, "pair region dim"],
        words: Float[Tensor, "pair word dim"],
        region_mask: Bool[Tensor, "pair region"],
        word_mask: Bool[Tensor, "pair word"],
    ) -> tuple[Float[Tensor, "pair region dim"], CrossSimilarities]:
        """The objects as they were read, and how they and the words agree."""
        if self.rnn is not None:
            objects = self._read(self.rnn, objects, words, region_mask, word_mask)
        temperatures = {"object_temperature": self.object_temperature, "word_temperature": self.word_temperature}
        return objects, cross_similarities(objects, words, region_mask, word_mask, **temperatures)

    def _read(
        self,
        rnn: nn.GRU,
        objects: Float[Tensor, "pair region dim"],
        words: Float[Tensor, "pair word dim"],
        region_mask: Bool[Tensor, "pair region"],
        word_mask: Bool[Tensor, "pair word"],
    ) -> Float[Tensor, "pair region dim"]:
        """The states of the GRU that reads the objects in the order of the words, each in its object's place."""
        # An order is no matter of rounding, and the states of many steps add up theirs.
        with no_autocast(objects.device):
            shares = self._shares(words.detach(), word_mask, "word").detach()
            products = at_least_float32(objects.detach()) @ at_least_float32(words.detach()).transpose(1, 2)
            order = object_order(shares[:, None] * products, region_mask, word_mask)
            ordered = objects.gather(1, order[..., None].expand_as(objects))
            forward, backward = read_in_order(rnn, ordered, region_mask).chunk(2, dim=-1)
            read = unit_length(at_least_float32((forward + backward) / 2)).to(objects.dtype)
        return read.gather(1, order.argsort(dim=1)[..., None].expand_as(read))
