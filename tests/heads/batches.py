"""Random batches for the tests of heads, and the heads whose common properties are tested."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, get_args

import torch
from hypothesis import strategies as st
from torch import Tensor

from xmodal.heads import ADAPT, BFAN, CHAN, DPRNN, MTFN, NAAF, SCAN, SGRAF, Cosine, Head, RDANStyle
from xmodal.heads.attention import Aggregation, Direction, Normalization

if TYPE_CHECKING:
    from collections.abc import Callable

SCAN_VARIANTS = list(product(get_args(Direction), get_args(Normalization), get_args(Aggregation)))

ALL_HEADS: list[Head] = [
    *(SCAN(*variant, temperature=4.0, lse_scale=5.0) for variant in SCAN_VARIANTS),
    BFAN("prob", temperature=4.0),
    BFAN("equal", temperature=4.0),
    Cosine("mean"),
    Cosine("max"),
]
"""Every variant without parameters."""


def learned(head: Head, seed: int = 0) -> Head:
    """The head in float64 and evaluation mode, with random numbers for all of its parameters and statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in head.double().state_dict().items():
        if value.is_floating_point():
            random = torch.randn(value.shape, generator=generator, dtype=value.dtype) * 0.5
            value.copy_(random.abs() + 0.1 if "var" in name else random)
    return head.eval()


DIM = 8
"""Of the heads with parameters."""

LEARNED_HEADS: dict[str, Head] = {
    "gpo": learned(Cosine({"name": "gpo", "code_dim": 4, "hidden_dim": 3})),
    "chan": CHAN(),
    "chan mean": CHAN("mean"),
    "esa": learned(Cosine({"name": "esa"}, "max", dim=DIM)),
    "self_attention": learned(Cosine({"name": "self_attention", "norm": "channel"}, "self_attention", dim=DIM)),
    "adapt t2i": learned(ADAPT(DIM, temperature=2.0)),
    "adapt i2t": learned(ADAPT(DIM, "i2t", temperature=2.0)),
    "dprnn word": learned(DPRNN(DIM)),
    "dprnn object": learned(DPRNN(DIM, "object")),
    "mtfn": learned(MTFN(DIM, hidden_dim=5, fused_dim=4, rank=3)),
    "naaf": learned(NAAF(temperature=4.0)),
    "rdan": learned(RDANStyle(DIM, relation_dim=4, temperature=2.0)),
    "sgr": learned(SGRAF(DIM, "sgr", sim_dim=6)),
    "saf": learned(SGRAF(DIM, "saf", sim_dim=6)),
}
"""Heads with parameters, and others whose score of a pair is not what one kernel gives."""


class Batch(NamedTuple):
    """The arguments of a head."""

    regions: Tensor
    words: Tensor
    region_mask: Tensor
    word_mask: Tensor


def random_mask(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Real items anywhere in a row, at least one."""
    mask = torch.rand(count, length, generator=generator) < 0.6
    mask[torch.arange(count), torch.randint(length, (count,), generator=generator)] = True
    return mask


def random_batch(
    seed: int = 0, images: int = 3, captions: int = 4, regions: int = 5, words: int = 6, dim: int = 8
) -> Batch:
    """Features in float64, not normalized, with zero padding."""
    generator = torch.Generator().manual_seed(seed)
    region_mask = random_mask(images, regions, generator)
    word_mask = random_mask(captions, words, generator)
    return Batch(
        torch.randn(images, regions, dim, generator=generator, dtype=torch.float64) * region_mask[..., None],
        torch.randn(captions, words, dim, generator=generator, dtype=torch.float64) * word_mask[..., None],
        region_mask,
        word_mask,
    )


def gradients(head: Head, batch: Batch, *, autocast: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and their gradients to both sides under weights that differ from pair to pair."""
    regions, words = batch.regions.clone().requires_grad_(), batch.words.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = head(regions, words, batch.region_mask, batch.word_mask)
    (scores * torch.linspace(-1, 1, scores.numel()).view_as(scores)).sum().backward()
    assert regions.grad is not None
    assert words.grad is not None
    return scores.detach(), regions.grad, words.grad


def half_precision_batch(dtype: torch.dtype, dim: int = 64) -> Batch:
    """Unit features, as encoders give them, in a dtype."""
    batch = random_batch(images=4, captions=4, regions=9, words=12, dim=dim)
    return batch._replace(regions=unit(batch.regions).to(dtype), words=unit(batch.words).to(dtype))


def slow_scores(score: Callable[[Tensor, Tensor], Tensor], batch: Batch) -> Tensor:
    """Scores of all pairs by an oracle that takes the real regions of one image and the real words of one caption."""
    return torch.stack(
        [
            torch.stack([score(r[real_r], w[real_w]) for w, real_w in zip(batch.words, batch.word_mask, strict=True)])
            for r, real_r in zip(batch.regions, batch.region_mask, strict=True)
        ]
    )


def check_against(score: Callable[[Tensor, Tensor], Tensor], head: Head, batch: Batch) -> None:
    """Scores of a head in float64 and float32, and its gradients to both sides and parameters, beside an oracle."""
    results = []
    for run in (lambda b: slow_scores(score, b), lambda b: head(*b)):
        leaves = [batch.regions.clone().requires_grad_(), batch.words.clone().requires_grad_(), *head.parameters()]
        scores = run(batch._replace(regions=leaves[0], words=leaves[1]))
        weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores)
        results.append((scores.detach(), torch.autograd.grad((scores * weights).sum(), leaves, allow_unused=True)))
    (expected, expected_gradients), (scores, found_gradients) = results
    torch.testing.assert_close(scores, expected, atol=2e-9, rtol=0)
    for found, wanted in zip(found_gradients, expected_gradients, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(*torch.broadcast_tensors(zero if found is None else found, zero if wanted is None
                                   else wanted), atol=1e-7, rtol=1e-7, check_dtype=False)  # fmt: skip
    single = deepcopy(head).float()
    low = single(batch.regions.float(), batch.words.float(), batch.region_mask, batch.word_mask)
    torch.testing.assert_close(low.double(), expected, atol=2e-5, rtol=2e-5)


def batches(**fixed: int) -> st.SearchStrategy[Batch]:
    """Batches of every small shape; single images, regions, captions and words among them."""
    sizes = {
        "images": st.integers(1, 4),
        "captions": st.integers(1, 4),
        "regions": st.integers(1, 5),
        "words": st.integers(1, 5),
        "dim": st.integers(3, 8),
    }
    sizes |= {name: st.just(size) for name, size in fixed.items()}
    return st.builds(random_batch, seed=st.integers(0, 2**31), **sizes)


def unit(items: Tensor) -> Tensor:
    """Rows of length one, as the published encoders give; zero rows stay zero."""
    return torch.nn.functional.normalize(items, dim=-1)
