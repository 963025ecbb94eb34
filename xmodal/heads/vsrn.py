"""VSRN: visual semantic reasoning (Li et al., ICCV 2019, arXiv 1909.02701)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn

from xmodal.heads.base import Attention, Explanation, Head, ImageStages, check_inputs, check_items
from xmodal.heads.comparison import InnerProduct
from xmodal.heads.recurrent import read_in_order
from xmodal.masks import comes_first
from xmodal.numerics import (
    Size,
    at_least_float32,
    check_count,
    full_mask,
    no_autocast,
    normed_real,
    of_one_dtype,
    unit_length,
)
from xmodal.products import Linear, inner_products, linear

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

Norm = Literal["l2", "batch"]
RegionNorm = Literal["region", "dim"]


def region_relationship(
    subjects: Float[Tensor, "image region dim"],
    objects: Float[Tensor, "image region dim"],
    values: Float[Tensor, "image region dim"],
    region_mask: Bool[Tensor, "image region"],
) -> Float[Tensor, "image region dim"]:
    """Messages between the regions of an image: (R / N) V with the affinity R = S O^T (VSRN eq. 2-3).

    The affinity is divided by the number of real regions, not passed through a softmax, as in the released code.

    Args:
        subjects: what a region asks with (theta in the paper).
        objects: what a region is asked by (phi).
        values: what a region hands on (g).
        region_mask: True = real region; padding hands on nothing and is not counted.

    Example:
        >>> import torch
        >>> from xmodal.heads.vsrn import region_relationship
        >>> regions = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> region_relationship(regions, regions, regions, torch.ones(1, 2, dtype=torch.bool))
        tensor([[[0.5000, 0.0000],
                 [0.0000, 4.0000]]])
    """
    dtype, count = values.dtype, region_mask.sum(dim=1)[:, None, None]
    with no_autocast(values.device):  # sums over thousands of channels overflow float16
        subjects, objects, values = (at_least_float32(t) for t in (subjects, objects, values))
        affinity = subjects @ objects.transpose(1, 2) / count
        return (affinity @ values.masked_fill(~region_mask[..., None], 0.0)).to(dtype)


def normalize_regions(
    regions: Float[Tensor, "image region dim"], region_mask: Bool[Tensor, "image region"], *, axis: RegionNorm
) -> Float[Tensor, "image region dim"]:
    """Unit L2 norm along an axis; padding becomes zero.

    `region` is what the released code does: every channel gets norm one over the regions of its image. Its authors
    later called `dim`, every region of norm one, more reasonable. What is all zero stays zero, in the released code it
    becomes NaN.

    Example:
        >>> import torch
        >>> from xmodal.heads.vsrn import normalize_regions
        >>> regions, real = torch.tensor([[[3.0, 0.0], [4.0, 1.0]]]), torch.ones(1, 2, dtype=torch.bool)
        >>> normalize_regions(regions, real, axis="region")
        tensor([[[0.6000, 0.0000],
                 [0.8000, 1.0000]]])
    """
    exact = at_least_float32(regions).masked_fill(~region_mask[..., None], 0.0)
    return unit_length(exact, dim=1 if axis == "region" else 2).to(regions.dtype)


def vsrn_scores(
    images: Float[Tensor, "image dim"], captions: Float[Tensor, "caption dim"]
) -> Float[Tensor, "image caption"]:
    """Cosines of unit image and caption embeddings, as `VSRN.embed_images` and `VSRN.embed_captions` give them.

    Example:
        >>> import torch
        >>> from xmodal.heads import vsrn_scores
        >>> vsrn_scores(torch.eye(2), torch.tensor([[0.6, 0.8]]))
        tensor([[0.6000],
                [0.8000]])
    """
    return inner_products(*of_one_dtype(images, captions))


class RegionGraph(nn.Module):
    """One layer of region relationship reasoning: a residual graph convolution over an image's regions (VSRN eq. 3).

    The scale and offset of its batch norm start at zero, so that a new layer is the identity.

    Example:
        >>> import torch
        >>> from xmodal.heads.vsrn import RegionGraph
        >>> layer, regions = RegionGraph(dim=8), torch.randn(2, 36, 8)
        >>> bool((layer(regions, torch.ones(2, 36, dtype=torch.bool)) == regions).all())
        True
    """

    def __init__(self, dim: Size) -> None:
        super().__init__()
        self.subject = Linear(dim, dim)
        self.object = Linear(dim, dim)
        self.value = Linear(dim, dim)
        self.output = Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(
        self, regions: Float[Tensor, "image region dim"], region_mask: Bool[Tensor, "image region"]
    ) -> Float[Tensor, "image region dim"]:
        """The regions with what they learned from one another added."""
        if self._joining_pays(regions):
            return self._joined(regions, region_mask)
        messages = region_relationship(self.subject(regions), self.object(regions), self.value(regions), region_mask)
        update = self.output(messages)
        return regions + normed_real(self.norm, update, region_mask)

    def _joining_pays(self, regions: Float[Tensor, "image region dim"]) -> bool:
        """Whether so many regions only pass through that two products of weights cost less than two of regions."""
        dim, rows = regions.shape[-1], regions.shape[0] * regions.shape[1]
        in_full = not (torch.compiler.is_compiling() or torch.is_autocast_enabled(regions.device.type))
        is_inference = in_full and not (self.training or torch.is_grad_enabled())
        return is_inference and rows > 1.5 * dim and regions.dtype in (torch.float32, torch.float64)

    def _joined(
        self, regions: Float[Tensor, "image region dim"], region_mask: Bool[Tensor, "image region"]
    ) -> Float[Tensor, "image region dim"]:
        """The same with subject and object, and value, output and norm, joined into one matrix each.

        (S x + s)^T (O y + o) = x^T (S^T O y + S^T o) + (O^T s)^T y + s^T o, and what is handed on, sum_y R_xy (V y + v)
        = V (R y) + v sum_y R_xy, goes through the value matrix after the sum as well as before it.
        """
        subject, object_, value, output = self.subject, self.object, self.value, self.output
        asked = linear(regions, inner_products(subject.weight.T, object_.weight.T), subject.weight.T @ object_.bias)
        offset = regions @ (object_.weight.T @ subject.bias) + subject.bias @ object_.bias
        affinity = regions @ asked.transpose(1, 2) + offset[:, None]
        affinity = (affinity / region_mask.sum(dim=1)[:, None, None]).masked_fill_(~region_mask[:, None], 0.0)
        mean, variance = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
        scale = self.norm.weight * (variance + self.norm.eps).rsqrt()
        handed_on = scale[:, None] * inner_products(output.weight, value.weight.T)
        update = linear(affinity @ regions, handed_on, scale * (output.bias - mean) + self.norm.bias)
        update += affinity.sum(dim=2)[..., None] * (scale * (output.weight @ value.bias))
        return regions + update.masked_fill_(~region_mask[..., None], 0.0)


class VSRN(Head):
    """Region graph, region GRU and cosine (Li et al., ICCV 2019, sec. 3).

    Takes projected regions and the states of a one-way sentence GRU, neither of them normalized
    (`RegionProjection(normalize=False)`, `GRUEncoder(bidirectional=False, normalize=False)`). Real regions come before
    padding and are read by the GRU in the given order.

    Args:
        dim: dim of the joint space (2048 in the paper).
        layers: number of region graph layers (4 in the paper).
        norm: `l2` normalizes the regions before the graph layers (the released COCO models); `batch` does not, but
            puts a batch norm on the pooled image vector (the released Flickr30k models).
        region_norm: axis of the L2 norms on regions: `region` as released, or `dim`; see `normalize_regions`.

    Example:
        >>> import torch
        >>> from xmodal.heads import VSRN
        >>> head = VSRN(dim=64)
        >>> head(torch.randn(4, 36, 64), torch.randn(6, 12, 64)).shape
        torch.Size([4, 6])
    """

    comparison = InnerProduct()
    has_region_states = True

    def __init__(self, dim: Size, layers: Size = 4, norm: Norm = "l2", region_norm: RegionNorm = "region") -> None:
        super().__init__()
        for name, value, known in (("norm", norm, get_args(Norm)), ("region_norm", region_norm, get_args(RegionNorm))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        check_count("dim", dim)
        check_count("layers", layers)
        self.dim = dim
        self.norm: Norm = norm
        self.region_norm: RegionNorm = region_norm
        self.graph = nn.ModuleList(RegionGraph(dim) for _ in range(layers))
        self.rnn = nn.GRU(dim, dim, batch_first=True)
        self.pooled_norm = nn.BatchNorm1d(dim) if norm == "batch" else nn.Identity()

    def reason(
        self, regions: Float[Tensor, "image region dim"], region_mask: Bool[Tensor, "image region"] | None = None
    ) -> Float[Tensor, "image region dim"]:
        """The states of the regions after the graph layers: what `summarize` and a captioner read. Padding is zero.

        Raises:
            ValueError: for regions of another dim, an image without a real region or with padding before one.
        """
        region_mask = self._check(regions, region_mask, "regions", "region_mask", "image region dim")
        # Work once an item is done in the precision of the weights, whatever that of the features.
        states = regions.to(next(self.parameters()).dtype).masked_fill(~region_mask[..., None], 0.0)
        if self.norm == "l2":
            states = normalize_regions(states, region_mask, axis=self.region_norm)
        for layer in self.graph:
            states = layer(states, region_mask)
        return normalize_regions(states, region_mask, axis=self.region_norm)

    def summarize(
        self, states: Float[Tensor, "image region dim"], region_mask: Bool[Tensor, "image region"] | None = None
    ) -> Float[Tensor, "image dim"]:
        """The region GRU reads the states of `reason` one by one; a unit vector an image."""
        region_mask = self._check(states, region_mask, "states", "region_mask", "image region dim")
        return self._pool(read_in_order(self.rnn, states, region_mask), region_mask)

    def image_stages(self, regions, region_mask=None):
        """The states of `reason`, those of the region GRU, which live in the joint space, and the last of these."""
        region_mask = self._check(regions, region_mask, "regions", "region_mask", "image region dim")
        states = self.reason(regions, region_mask)
        memory = read_in_order(self.rnn, states, region_mask)
        return ImageStages(states, memory, self._pool(memory, region_mask))

    def embed_images(self, regions, region_mask=None):
        """Unit image embeddings `(image, dim)`: reasoning over the regions, then the region GRU."""
        return self.summarize(self.reason(regions, region_mask), region_mask)

    def embed_captions(self, words, word_mask=None):
        """Unit caption embeddings `(caption, dim)`: the state of the sentence GRU at the last real word."""
        word_mask = self._check(words, word_mask, "words", "word_mask", "caption word dim")
        return unit_length(at_least_float32(_last_real(words, word_mask)))

    def compare(self, images, captions, region_mask=None, word_mask=None):
        """`vsrn_scores`; padding was dealt with in the embeddings."""
        return vsrn_scores(images, captions)

    def attention(self, regions, words, region_mask=None, word_mask=None):
        """How much each region agrees with the whole image: the paper's visualization (sec. 4.6).

        VSRN lets no word look at a region, so that every word gets the same weights: the inner products of the
        regions' states with the image embedding, shifted so that the least region has zero and divided so that they
        sum to one.
        """
        check_inputs(regions, words, region_mask, word_mask, aligned=True)
        states = self.reason(regions, region_mask)
        agreement = (states @ self.summarize(states, region_mask)[..., None])[..., 0]
        real = full_mask(regions, region_mask)
        agreement = agreement - agreement.masked_fill(~real, float("inf")).amin(dim=1, keepdim=True)
        agreement = agreement.masked_fill(~real, 0.0)
        total = agreement.sum(dim=1, keepdim=True)
        uniform = real / real.sum(dim=1, keepdim=True)
        weights = torch.where(total > 0, agreement / total, uniform)
        real_words = full_mask(words, word_mask)
        return Attention(real_words[..., None] * weights[:, None, :])

    def explain(self, regions, words, region_mask=None, word_mask=None):
        """How the caption as a whole looks at the regions: no word looks for itself."""
        return (Explanation(self.attention(regions, words, region_mask, word_mask), "caption"),)

    def extra_repr(self) -> str:  # noqa: D102
        return f"norm={self.norm!r}, region_norm={self.region_norm!r}"

    def _pool(
        self, memory: Float[Tensor, "image region dim"], region_mask: Bool[Tensor, "image region"]
    ) -> Float[Tensor, "image dim"]:
        return unit_length(at_least_float32(self.pooled_norm(_last_real(memory, region_mask))))

    def _check(self, items: Tensor, mask: Tensor | None, name: str, mask_name: str, axes: str) -> Tensor:
        """The mask, all True where None, once items and mask fit this head."""
        check_items(items, mask, name, mask_name, axes)
        if items.shape[-1] != self.dim:
            raise ValueError(f"{name} have dim {items.shape[-1]}, this head was built with dim={self.dim}")
        mask = full_mask(items, mask)
        if not torch.compiler.is_compiling() and not comes_first(mask):
            raise ValueError(f"{mask_name} must be True for the first items and False after them: a GRU reads in order")
        return mask


def _last_real(items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"]) -> Float[Tensor, "set dim"]:
    """The last real item of every set."""
    return items[torch.arange(items.shape[0], device=items.device), mask.sum(dim=1) - 1]
