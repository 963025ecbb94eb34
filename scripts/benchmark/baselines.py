"""What the package is compared with: the published loop, and the bare product that no head can go below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from xmodal.products import inner_products

if TYPE_CHECKING:
    from torch import Tensor

    from scripts.benchmark.sets import Sets
    from xmodal.heads import VSRN


def loop_over_captions(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """SCAN t-i LSE as published: caption by caption, cropped, repeated for every image, in the same layouts."""
    columns = []
    for caption, length in zip(words, word_mask.sum(1).tolist(), strict=True):
        queries = caption[:length].repeat(len(regions), 1, 1)
        attention = F.leaky_relu(torch.bmm(regions, queries.transpose(1, 2)), 0.1)
        attention = attention / (attention.square().sum(dim=2, keepdim=True).sqrt() + 1e-8)
        attention = (9.0 * attention.transpose(1, 2).contiguous()).softmax(dim=-1)
        attended = torch.bmm(regions.transpose(1, 2), attention.transpose(1, 2).contiguous()).transpose(1, 2)
        dot = (queries * attended).sum(dim=-1)
        similarities = dot / (queries.norm(dim=-1) * attended.norm(dim=-1)).clamp_min(1e-8)
        columns.append((6.0 * similarities).exp().sum(dim=1).log() / 6.0)
    return torch.stack(columns, dim=1)


def bare_product(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """Every region times every real word, by the fastest product at hand: no head that attends can go below."""
    return inner_products(regions.flatten(0, 1), words[word_mask])


def vsrn_as_released(head: VSRN, regions: Tensor) -> Tensor:
    """VSRN's image embeddings as published: graph layers of convolutions over (image, dim, region), then the GRU."""

    def conv(layer: Any, items: Tensor) -> Tensor:
        return F.conv1d(items, layer.weight[..., None], layer.bias)

    states = (regions / regions.square().sum(dim=1, keepdim=True).sqrt()).transpose(1, 2)
    layer: Any
    for layer in head.graph:
        values, asking = conv(layer.value, states).transpose(1, 2), conv(layer.subject, states).transpose(1, 2)
        affinity = torch.matmul(asking, conv(layer.object, states)) / states.shape[2]
        messages = torch.matmul(affinity, values).transpose(1, 2).contiguous()
        states = layer.norm(conv(layer.output, messages)) + states
    states = states.transpose(1, 2)
    states = states / states.square().sum(dim=1, keepdim=True).sqrt()
    embeddings = head.rnn(states)[1][0]
    return embeddings / embeddings.square().sum(dim=1, keepdim=True).sqrt()


class BareProduct:
    """Every region times every real word by the fastest product at hand, packed beforehand, in cache-sized blocks.

    What no head that attends can go below; nothing but the products is timed. Words are filled up with zeros to a
    multiple of 16, as products in rows that start within a cache line take up to half as long again.
    """

    def __init__(self, sets: Sets, dtype: torch.dtype = torch.float32) -> None:
        self.rows, columns = sets.regions.flatten(0, 1).to(dtype), sets.words[sets.word_mask].to(dtype)
        self.columns = F.pad(columns, (0, 0, 0, -len(columns) % 16))
        self.buffer = torch.empty(1024 * 800, dtype=dtype)

    def __call__(self) -> None:
        """The products, and nothing kept of them."""
        for columns in self.columns.split(800):
            for rows in self.rows.split(1024):
                out = self.buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
                inner_products(rows, columns, out=out)
