"""Heads as people write them, outside of the package."""

from __future__ import annotations

from functools import partial
from typing import get_args

import torch
from hypothesis import strategies as st
from torch import nn

from xmodal.heads import SCAN, Cosine, Head
from xmodal.heads.attention import (
    Aggregation,
    Direction,
    Focal,
    Normalization,
    all_pairs,
    contexts_and_queries,
    prepare_side,
    stacked_attention,
)
from xmodal.heads.bfan import refocus
from xmodal.heads.comparison import CrossAttention


class Filtering(Head):
    """Like SAF (Diao et al., AAAI 2021): a vector of similarity for every word, filtered and summed.

    Its `compare` makes `(image, caption, word, dim)` tensors, has parameters, dropout and a batch norm, and knows no
    mask that is None.
    """

    def __init__(self, dim: int, similarities: int = 4) -> None:
        super().__init__()
        self.project = nn.Linear(dim, similarities)
        self.filter = nn.Linear(similarities, 1)
        self.norm = nn.BatchNorm1d(similarities)
        self.dropout = nn.Dropout(0.5)
        self.score = nn.Linear(similarities, 1)
        self.shapes: list[tuple[int, int]] = []
        nn.init.uniform_(self.norm.running_mean)

    def compare(self, images, captions, region_mask=None, word_mask=None):
        self.shapes.append((len(images), len(captions)))
        products = torch.einsum("ird,cwd->icwr", images, captions)
        weights = products.masked_fill(~region_mask[:, None, None], float("-inf")).softmax(dim=-1)
        attended = torch.einsum("icwr,ird->icwd", weights, images)
        similarities = self.project((attended - captions).square()).masked_fill(~word_mask[..., None], 0.0)
        similarities = self.norm(similarities.flatten(0, 2)).view(similarities.shape)
        share = self.filter(self.dropout(similarities)).masked_fill(~word_mask[..., None], float("-inf")).softmax(dim=2)
        return self.score((share * similarities).sum(dim=2)).squeeze(-1)


class Projected(Filtering):
    """With work once an item before it compares."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.images, self.captions = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.embedded = {"images": 0, "captions": 0}

    def embed_images(self, regions, region_mask=None):
        self.embedded["images"] += len(regions)
        return self.images(regions).tanh()

    def embed_captions(self, words, word_mask=None):
        self.embedded["captions"] += len(words)
        return self.captions(words).tanh()


class Inherited(SCAN):
    """Compares in its own way and inherits everything else."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = Filtering(dim)

    def compare(self, images, captions, region_mask=None, word_mask=None):
        return self.inner.compare(images, captions, region_mask, word_mask)


class Pooled(Cosine):
    """Compares pooled vectors in its own way."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.metric = nn.Bilinear(dim, dim, 1)

    def compare(self, images, captions, region_mask=None, word_mask=None):
        every = (len(images), len(captions), -1)
        return self.metric(images[:, None].expand(every), captions.expand(every)).squeeze(-1)


class MaxSim(Head):
    """The best region of every word; its own way to score aligned pairs."""

    def __init__(self, dim: int = 0) -> None:
        super().__init__()

    def compare(self, images, captions, region_mask=None, word_mask=None):
        products = torch.einsum("ird,cwd->icwr", images, captions)
        best = products.masked_fill(~region_mask[:, None, None], float("-inf")).amax(dim=-1)
        return best.masked_fill(~word_mask, 0.0).sum(dim=-1)

    def pairs(self, regions, words, region_mask=None, word_mask=None):
        products = torch.einsum("prd,pwd->pwr", regions, words)
        best = products.masked_fill(~region_mask[:, None], float("-inf")).amax(dim=-1)
        return best.masked_fill(~word_mask, 0.0).sum(dim=-1)


class Halved(MaxSim):
    """Compares in its own way, which the pairs that it inherits know nothing of."""

    def compare(self, images, captions, region_mask=None, word_mask=None):
        return super().compare(images, captions, region_mask, word_mask) / 2


class Negated(MaxSim):
    """The same, of what is embedded."""

    def embed_images(self, regions, region_mask=None):
        return -regions


class Called(SCAN):
    """Scores in its own `forward`, in which the work once an item is done as well."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project, self.scale = nn.Linear(dim, dim), nn.Parameter(torch.tensor(-3.0))

    def forward(self, regions, words, region_mask=None, word_mask=None):
        return self.scale * super().forward(self.project(regions), words, region_mask, word_mask)


class Widened(MaxSim):
    """Embeds as many more and longer vectors than it was given."""

    def embed_images(self, regions, region_mask=None):
        return regions.repeat(1, 10, 4)

    embed_captions = embed_images

    def compare(self, images, captions, region_mask=None, word_mask=None):
        return torch.einsum("ird,cwd->icwr", images, captions).amax(dim=(2, 3))


class Metric(Head):
    """Has no parameters, but a buffer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("metric", torch.randn(dim, dim) / dim**2)

    def compare(self, images, captions, region_mask=None, word_mask=None):
        images, captions = images * region_mask[..., None], captions * word_mask[..., None]
        return torch.einsum("ird,de,cwe->ic", images, self.metric, captions)


class Reweighted(SCAN):
    """Embeds in its own way, and says that it still compares by cross attention."""

    comparison = CrossAttention("i2t", temperature=4.0, aggregation="mean")

    def __init__(self, dim: int) -> None:
        super().__init__("i2t", temperature=4.0, aggregation="mean")
        self.images, self.captions = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.embedded = {"images": 0, "captions": 0}

    embed_images, embed_captions = Projected.embed_images, Projected.embed_captions


class SilentlyReweighted(Reweighted):
    """The same without a word about it."""

    comparison = None


class Attending(Head):
    """Any cross attention that can be declared, by the kernel that SCAN and BFAN share."""

    def __init__(self, how: CrossAttention) -> None:
        super().__init__()
        self.how = how

    @property
    def comparison(self):
        return self.how

    def compare(self, images, captions, region_mask=None, word_mask=None):
        how = self.how
        focus = None if how.focal is None else partial(refocus, focal=how.focal)
        options = {name: getattr(how, name) for name in ("normalization", "temperature", "aggregation", "lse_scale")}
        sides = contexts_and_queries(
            how.direction, prepare_side(images, region_mask), prepare_side(captions, word_mask)
        )
        scores = all_pairs(*sides, partial(stacked_attention, focus=focus, **options), both_directions=how.both)
        return scores if how.direction == "t2i" else scores.T

    def extra_repr(self):
        return repr(self.how)


def declarable(**fixed: st.SearchStrategy) -> st.SearchStrategy[CrossAttention]:
    """Any cross attention."""
    options = {
        "direction": st.sampled_from(get_args(Direction)),
        "normalization": st.sampled_from(get_args(Normalization)),
        "aggregation": st.sampled_from(get_args(Aggregation)),
        "temperature": st.sampled_from([0.5, 4.0, 30.0]),
        "lse_scale": st.sampled_from([5.0, 30.0]),
        "focal": st.sampled_from([None, *get_args(Focal)]),
        "both": st.booleans(),
    }
    return st.builds(CrossAttention, **{**options, **fixed})


FOREIGN: list[type[Head]] = [
    *(Filtering, Projected, Inherited, Pooled, MaxSim, Reweighted, SilentlyReweighted, Called, Metric),
    *(Halved, Negated),
]
