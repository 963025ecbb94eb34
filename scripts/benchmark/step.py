"""A training step, its parts and VSRN's encoder, beside the released order of operations and torch's product.

`python -m scripts.benchmark step`: SCAN t-i LSE, 128 pairs, 36 regions of 2048 numbers, dim 1024, captions of 12 words
on average, float32. "As released" is the published order of operations, caption by caption, with torch's layers and its
product; "torch's product" is the package with `XMODAL_PRODUCT=torch`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from scripts.benchmark.baselines import bare_product, loop_over_captions, vsrn_as_released
from scripts.benchmark.heads import eager_scan, forward, forward_backward
from scripts.benchmark.measure import time_in_turns
from scripts.benchmark.sets import DIM, REGIONS, random_batch
from xmodal.data import PairBatch, RegionBatch
from xmodal.heads import VSRN
from xmodal.model import Matcher
from xmodal.objectives import HingeRanking, hinge_ranking_loss
from xmodal.products import PRODUCTS, Product, candidates, chosen_product, use_product
from xmodal.training.step import MatchingStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PAIRS, INPUT_DIM, WORDS, GRAPH_DIM = 128, 2048, 8000, 2048


class ReleasedStep(nn.Module):
    """Projection, bi-GRU, caption by caption, hinge on the hardest: a step as published, by torch's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.projection, self.embedding = nn.Linear(INPUT_DIM, DIM), nn.Embedding(WORDS, 300)
        self.rnn = nn.GRU(300, DIM, batch_first=True, bidirectional=True)

    def forward(self, batch: PairBatch) -> Tensor:
        """The loss."""
        regions = F.normalize(self.projection(batch.images.regions), dim=-1)
        lengths = batch.word_mask.sum(dim=1)
        packed = pack_padded_sequence(self.embedding(batch.tokens), lengths, batch_first=True, enforce_sorted=False)
        words, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        words = F.normalize((words[..., :DIM] + words[..., DIM:]) / 2, dim=-1)
        return hinge_ranking_loss(loop_over_captions(regions, words, batch.word_mask))


def random_pairs() -> PairBatch:
    """A batch as the loader gives it."""
    mask = random_batch(PAIRS, PAIRS).word_mask
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, WORDS, mask.shape, generator=generator) * mask
    features = torch.rand(PAIRS, REGIONS, INPUT_DIM, generator=generator)
    images = RegionBatch(features, torch.ones(PAIRS, REGIONS, dtype=torch.bool))
    return PairBatch(images, tokens, mask, image=torch.arange(PAIRS), caption=torch.arange(PAIRS))


def released_step(batch: PairBatch) -> Callable[[], None]:
    """Loss, gradients, clipping and Adam, as released."""
    step = ReleasedStep()
    optimizer = torch.optim.Adam(step.parameters(), 2e-4)
    return partial(descend, step, optimizer, lambda: step(batch))


def own_step(batch: PairBatch) -> Callable[[], None]:
    """The same by the package's parts."""
    image, text = {"name": "regions", "input_dim": INPUT_DIM, "dim": DIM}, {"name": "gru", "dim": DIM, "word_dim": 300}
    matcher = Matcher(image, text, {"name": "scan"}, vocabulary=[str(number) for number in range(WORDS)])
    step = MatchingStep(matcher, HingeRanking())
    optimizer = torch.optim.Adam(step.parameters(), 2e-4)
    return partial(descend, step, optimizer, lambda: step(batch, 0)["total"])


def descend(step: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    """Gradients, clipping and a step of the optimizer, as released."""
    optimizer.zero_grad()
    loss().backward()
    nn.utils.clip_grad_norm_(step.parameters(), 2.0)
    optimizer.step()


def encoding(head: VSRN, regions: Tensor, encode: Callable[..., Tensor]) -> None:
    """VSRN's image embeddings."""
    with torch.no_grad():
        encode(head, regions)


def by(product: Product, work: Callable[[], Any]) -> Callable[[], Any]:
    """Work whose large products are computed by one library."""

    def run() -> Any:
        use_product(product)
        return work()

    return run


def speeds(repetitions: int) -> None:
    """Of every product at hand, in GFLOP/s."""
    rows, columns = torch.randn(PAIRS * REGIONS, DIM), torch.randn(1700, DIM)
    names = candidates(torch.float32, torch.get_num_threads())
    cases = {name: partial(PRODUCTS[name], rows, columns, None, None) for name in names}
    seconds = fastest(cases, repetitions)
    print(f"\n{'float32 product':44}{'GFLOP/s':>10}{'x torch':>10}")
    for name, each in seconds.items():
        speed = 2e-9 * len(rows) * len(columns) * DIM / each
        print(f"{name + ' (chosen)' * (name == chosen_product()):44}{speed:10.0f}{seconds['torch'] / each:10.2f}")


def fastest(cases: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Seconds of the fastest turn of every case."""
    turns, _ = time_in_turns(cases, repetitions)
    return {name: min(each) for name, each in turns.items()}


def suites() -> dict[str, dict[str, Callable[[], Any]]]:
    """What is timed, by title and name."""
    batch, pairs = random_batch(PAIRS, PAIRS), random_pairs()
    head, regions = VSRN(GRAPH_DIM).eval(), F.normalize(torch.randn(PAIRS, REGIONS, GRAPH_DIM), dim=-1)
    found: dict[str, dict[str, Callable[[], Any]]] = {
        "training step": {"as released": released_step(pairs), "torch's product": own_step(pairs)},
        "VSRN, encoding 128 images": {
            "as released": partial(encoding, head, regions, vsrn_as_released),
            "torch's product": partial(encoding, head, regions, VSRN.embed_images),
        },
    }
    for mode, how in {"forward": forward, "forward + backward": forward_backward}.items():
        found[f"SCAN, {mode}"] = {
            "as released": partial(how, loop_over_captions, batch),
            "torch's product": partial(how, eager_scan, batch),
            "bare product": partial(how, bare_product, batch),
        }
    return found


def run(repetitions: int) -> None:
    """Products, step, parts of a step and VSRN's encoder; about three minutes on two idle cores."""
    repetitions, chosen = max(1, repetitions // 2), chosen_product()
    with torch.no_grad():
        speeds(repetitions)
    for title, cases in suites().items():
        fixed = {name: by(chosen if name == "bare product" else "torch", case) for name, case in cases.items()}
        fixed["chosen product"] = by(chosen, cases["torch's product"])
        print_suite(title, fastest(fixed, repetitions))
    use_product(None)


def print_suite(title: str, seconds: dict[str, float]) -> None:
    """Seconds, how many times as fast as released, and how many times the bare product where that was timed."""
    print(f"\n{title:44}{'ms':>10}{'released / it':>16}{'it / product':>14}")
    for name, each in seconds.items():
        product = f"{each / seconds['bare product']:13.2f}x" if "bare product" in seconds else ""
        print(f"{name:44}{1e3 * each:10.0f}{seconds['as released'] / each:15.2f}x{product}")
