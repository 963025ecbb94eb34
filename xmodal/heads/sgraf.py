"""SGRAF: similarity graph reasoning and attention filtration (Diao et al., AAAI 2021, arXiv 2101.01368)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from xmodal.heads.attention import attention_weights, tile_bytes
from xmodal.heads.base import Attention, Head, check_inputs, check_items, xavier
from xmodal.heads.pooling import POOLERS, make_pooler
from xmodal.heads.scan import scan_attention
from xmodal.masks import lengths
from xmodal.numerics import Positive, Size, at_least_float32, check_count, check_number, full_mask, unit_length

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float
    from torch import Tensor

Module = Literal["sgr", "saf"]

IMAGE_POOLING: dict[str, Any] = {"name": "self_attention", "norm": "channel"}
"""Global vectors of images; the released norm is `slot`, which takes exactly 36 regions in their order."""


def attended_contexts(
    regions: Float[Tensor, "image region dim"],
    products: Float[Tensor, "image region word caption"],
    region_mask: Bool[Tensor, "image region"],
    word_mask: Bool[Tensor, "#image word caption"],
    *,
    temperature: float = 9.0,
) -> Float[Tensor, "image word caption dim"]:
    """The regions that a word attends to as one unit vector: SCAN's attention of words over regions (SGRAF eq. 5-6).

    Args:
        regions: of the images; padding is zero.
        products: of every region with every word.
        region_mask: True = real region.
        word_mask: True = real word.
        temperature: inverse temperature of the softmax over the regions.

    Example:
        >>> import torch
        >>> from xmodal.heads.sgraf import attended_contexts
        >>> regions, real = torch.tensor([[[2.0, 0.0]]]), torch.ones(1, 1, dtype=torch.bool)
        >>> attended_contexts(regions, torch.ones(1, 1, 1, 1), real, real[..., None])
        tensor([[[[1., 0.]]]])
    """
    weights = attention_weights(products, region_mask, word_mask, normalization="clipped_l2", temperature=temperature)
    contexts = weights.flatten(2).transpose(1, 2).to(regions.dtype) @ regions
    return unit_length(at_least_float32(contexts)).unflatten(1, products.shape[2:])


def similarity_vectors(
    first: Float[Tensor, "*#sets dim"],
    second: Float[Tensor, "*#sets dim"],
    weight: Float[Tensor, "sim dim"],
    bias: Float[Tensor, " sim"],
) -> Float[Tensor, "*pairs sim"]:
    """Unit vectors W |x - y|^2 + b, which say how two vectors are similar (SGRAF eq. 2).

    The square is elementwise; the bias is that of the released code (SGRAF, model.py: EncoderSimilarity).

    Example:
        >>> import torch
        >>> from xmodal.heads.sgraf import similarity_vectors
        >>> similarity_vectors(torch.tensor([2.0, 0.0]), torch.zeros(2), torch.tensor([[1.0, 1.0]]), torch.zeros(1))
        tensor([1.])
    """
    return unit_length(at_least_float32(nn.functional.linear((first - second).square().to(weight.dtype), weight, bias)))


class GraphReasoning(nn.Module):
    """One step of similarity graph reasoning: S <- relu(W (softmax(Q K^T) S)) (SGRAF eq. 7-8).

    No scaling of the products and no residual, and biases everywhere, as in the released code (SGRAF, model.py).

    Example:
        >>> import torch
        >>> from xmodal.heads.sgraf import GraphReasoning
        >>> GraphReasoning(8)(torch.randn(5, 4, 8), torch.ones(5, 4, dtype=torch.bool)).shape
        torch.Size([5, 4, 8])
    """

    def __init__(self, dim: Size) -> None:
        super().__init__()
        self.query, self.key, self.output = (xavier(nn.Linear(dim, dim)) for _ in range(3))

    def forward(
        self, nodes: Float[Tensor, "*pair node dim"], mask: Bool[Tensor, "*#pair node"], read: int | None = None
    ) -> Float[Tensor, "*pair read dim"]:
        """The nodes after a step, or the first `read` of them; padding gives some value and is not listened to."""
        affinity = self.query(nodes[..., :read, :]) @ self.key(nodes).transpose(-1, -2)
        edges = at_least_float32(affinity).masked_fill(~mask[..., None, :], float("-inf")).softmax(dim=-1)
        return self.output(edges.to(nodes.dtype) @ nodes).relu()


class AttentionFiltration(nn.Module):
    """Similarity attention filtration: the sum of the nodes weighted by what a gate makes of each (SGRAF eq. 9-10).

    In training the gate's batch norm counts the statistics of every caption by itself, over the images and its nodes,
    and moves the running ones caption by caption, as in the released code (SGRAF, model.py), which calls it once a
    caption.

    Example:
        >>> import torch
        >>> from xmodal.heads.sgraf import AttentionFiltration
        >>> AttentionFiltration(8).eval()(torch.randn(5, 2, 4, 8), torch.ones(2, 4, dtype=torch.bool)).shape
        torch.Size([5, 2, 8])
    """

    def __init__(self, dim: Size) -> None:
        super().__init__()
        self.gate = xavier(nn.Linear(dim, 1))
        self.norm = nn.BatchNorm1d(1)

    def forward(
        self, nodes: Float[Tensor, "image caption node dim"], mask: Bool[Tensor, "caption node"]
    ) -> Float[Tensor, "image caption dim"]:
        """One unit vector a pair; padding is left out."""
        gates = self._normed(at_least_float32(self.gate(nodes)[..., 0]), mask).sigmoid().masked_fill(~mask, 0.0)
        gates = gates / gates.sum(dim=-1, keepdim=True)
        return unit_length((gates[..., None] * nodes).sum(dim=-2))

    def _normed(
        self, logits: Float[Tensor, "image caption node"], mask: Bool[Tensor, "caption node"]
    ) -> Float[Tensor, "image caption node"]:
        norm = self.norm
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        if self.training:
            count = (len(logits) * mask.sum(dim=-1))[:, None]
            own_mean = logits.masked_fill(~mask, 0.0).sum(dim=(0, 2))[:, None] / count
            own_variance = (logits - own_mean).square().masked_fill(~mask, 0.0).sum(dim=(0, 2))[:, None] / count
            with torch.no_grad():
                for some, unbiased in zip(own_mean, own_variance * count / (count - 1), strict=True):
                    mean.lerp_(some.to(mean), norm.momentum or 0.0)
                    variance.lerp_(unbiased.to(variance), norm.momentum or 0.0)
                norm.num_batches_tracked.add_(len(own_mean))  # type: ignore[operator]
            mean, variance = own_mean, own_variance
        return (logits - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


class SGRAF(Head):
    """Similarity graph reasoning (SGR) or attention filtration (SAF) on vectors that say how parts are alike.

    A caption's words attend over the regions of an image, as in SCAN; each word and its attended context, and the
    global vectors of both sides, give a similarity vector (SGRAF eq. 1-6). These are the nodes of a graph, which SGR
    reasons on, reading the global node in the end, or SAF filters (eq. 7-10); a linear layer and a sigmoid make the
    score. The published figures average the scores of an SGR and an SAF model. Pairs need vectors of their own: they
    are compared in blocks, and in training computed again for the gradient instead of being kept.

    Args:
        dim: dim of the joint space.
        module: `sgr` or `saf`.
        sim_dim: dim of a similarity vector (256 as published).
        steps: of graph reasoning, with parameters of their own (3 as published); ignored by `saf`.
        temperature: inverse temperature of the softmax over the regions, > 0 (9 as published).
        pooling: what makes the global vector of an image, a name of `POOLERS` or its options.
        caption_pooling: what makes the global vector of a caption.

    Raises:
        ValueError: for an unknown option, with those that exist.

    Example:
        >>> import torch
        >>> from xmodal.heads import SGRAF
        >>> SGRAF(dim=64, module="saf").eval()(torch.randn(4, 36, 64), torch.randn(6, 12, 64)).shape
        torch.Size([4, 6])
    """

    parts: ClassVar[dict[str, Any]] = {"pooling": POOLERS, "caption_pooling": POOLERS}
    """The options that are parts themselves."""

    def __init__(
        self,
        dim: Size,
        module: Module = "sgr",
        sim_dim: Size = 256,
        steps: Size = 3,
        temperature: Positive = 9.0,
        pooling: str | Mapping[str, Any] = IMAGE_POOLING,
        caption_pooling: str | Mapping[str, Any] = "self_attention",
    ) -> None:
        super().__init__()
        if module not in get_args(Module):
            raise ValueError(f"module must be one of {', '.join(get_args(Module))}; got {module!r}")
        check_number("temperature", temperature, above=0)
        for name, value in (("dim", dim), ("sim_dim", sim_dim), ("steps", steps)):
            check_count(name, value)
        self.module: Module = module
        self.temperature = temperature
        self.image_pooler, self.caption_pooler = make_pooler(pooling, dim), make_pooler(caption_pooling, dim)
        self.local, self.whole = xavier(nn.Linear(dim, sim_dim)), xavier(nn.Linear(dim, sim_dim))
        self.reasoning = nn.ModuleList(GraphReasoning(sim_dim) for _ in range(steps if module == "sgr" else 0))
        self.filtration = AttentionFiltration(sim_dim) if module == "saf" else None
        self.score = xavier(nn.Linear(sim_dim, 1))

    def embed_images(self, regions, region_mask=None):
        """The global vector of every image, then its regions: `(image, 1 + region, dim)`."""
        check_items(regions, region_mask, "regions", "region_mask", "image region dim")
        return self._with_global(regions, full_mask(regions, region_mask), self.image_pooler)

    def embed_captions(self, words, word_mask=None):
        """The global vector of every caption, then its words: `(caption, 1 + word, dim)`."""
        check_items(words, word_mask, "words", "word_mask", "caption word dim")
        return self._with_global(words, full_mask(words, word_mask), self.caption_pooler)

    def compare(self, images, captions, region_mask=None, word_mask=None):  # noqa: D102
        region_mask, word_mask = full_mask(images[:, 1:], region_mask), full_mask(captions[:, 1:], word_mask)
        ends = torch.tensor(lengths(word_mask), device="cpu")
        order = ends.argsort(descending=True, stable=True)  # as the released loader brings them
        size = images.element_size() * len(images) * captions[0, 1:].numel()
        blocks = [
            self._compare_block(images, captions[some, : 1 + longest], region_mask, word_mask[some, :longest])
            for some in order.split(max(1, tile_bytes(images.device) // size))
            for longest in [int(ends[some[0]])]
        ]
        return torch.cat(blocks, dim=1)[:, order.argsort()]

    def pair_bytes(self, image, caption):
        """What a word and its context, and the nodes of the graph, take."""
        words, dim = caption.shape[1:]
        return caption.element_size() * words * (4 * dim + 6 * self.local.out_features)

    def attention(self, regions, words, region_mask=None, word_mask=None):
        """Where the words look as they attend to their contexts: SCAN's attention, before any reasoning."""
        check_inputs(regions, words, region_mask, word_mask, aligned=True)
        images, captions = self.embed_images(regions, region_mask), self.embed_captions(words, word_mask)
        sides = images[:, 1:], captions[:, 1:]
        found = scan_attention(*sides, region_mask, word_mask, direction="t2i", temperature=self.temperature)
        return Attention(found.weights)

    def extra_repr(self) -> str:  # noqa: D102
        return f"module={self.module!r}, temperature={self.temperature}"

    def _with_global(
        self, items: Float[Tensor, "set item dim"], mask: Bool[Tensor, "set item"], pooler: nn.Module
    ) -> Float[Tensor, "set item_and_one dim"]:
        items = items.to(self.score.weight.dtype).masked_fill(~mask[..., None], 0.0)
        return torch.cat([unit_length(pooler(items, mask))[:, None].to(items.dtype), items], dim=1)

    def _compare_block(
        self,
        images: Float[Tensor, "image region_and_one dim"],
        captions: Float[Tensor, "caption word_and_one dim"],
        region_mask: Bool[Tensor, "image region"],
        word_mask: Bool[Tensor, "caption word"],
    ) -> Float[Tensor, "image caption"]:
        node_mask = nn.functional.pad(word_mask, (1, 0), value=True)  # the global node, then those of the words

        def nodes() -> Float[Tensor, "image caption node sim"]:
            return self._nodes(images, captions, region_mask, word_mask)

        def reasoned() -> Float[Tensor, "image caption sim"]:
            graph = nodes()
            for step in self.reasoning[:-1]:
                graph = step(graph, node_mask)
            return self.reasoning[-1](graph, node_mask, read=1)[..., 0, :]

        # What counts statistics must not run twice.
        saf = self.filtration
        vectors = _recomputed(reasoned) if saf is None else saf(_recomputed(nodes), node_mask)
        return at_least_float32(self.score(vectors.to(self.score.weight.dtype))[..., 0]).sigmoid()

    def _nodes(
        self,
        images: Float[Tensor, "image region_and_one dim"],
        captions: Float[Tensor, "caption word_and_one dim"],
        region_mask: Bool[Tensor, "image region"],
        word_mask: Bool[Tensor, "caption word"],
    ) -> Float[Tensor, "image caption node sim"]:
        regions, words = images[:, 1:], captions[:, 1:].transpose(0, 1)
        products = at_least_float32(regions.flatten(0, 1) @ words.flatten(0, 1).T)
        products = products.view(*regions.shape[:2], *words.shape[:2])
        contexts = attended_contexts(regions, products, region_mask, word_mask.T[None], temperature=self.temperature)
        local = similarity_vectors(contexts, words[None], self.local.weight, self.local.bias)
        whole = similarity_vectors(images[:, None, 0], captions[None, :, 0], self.whole.weight, self.whole.bias)
        return torch.cat([whole[:, :, None], local.transpose(1, 2)], dim=2).to(images.dtype)


def _recomputed(function: Any) -> Tensor:
    """What a function returns; for the gradient it is called again, so that nothing inside it is kept meanwhile."""
    if not torch.is_grad_enabled():
        return function()
    return checkpoint(function, use_reentrant=False, preserve_rng_state=False)
