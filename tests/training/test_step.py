"""Two processes, each with half a batch, train as one process with the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from xmodal.data import PairBatch, RegionBatch
from xmodal.heads import HEADS, SCAN
from xmodal.model import Matcher
from xmodal.names import build
from xmodal.objectives import OBJECTIVES
from xmodal.training.adversary import Adversary
from xmodal.training.step import MatchingStep

WORDS = ["a", "cat", "dog"]
CASES = {
    "scan t2i": ({"name": "scan"}, {"name": "hinge", "hardest": 0.5}, None),
    "scan i2t": ({"name": "scan", "direction": "i2t"}, {"name": "info_nce", "learn_temperature": True}, None),
    "vsrn and its captioner": ({"name": "vsrn", "dim": 6, "layers": 2}, {"name": "hinge", "margin": 1.0}, None),
    "scan against fast weights": ({"name": "scan"}, {"name": "hinge", "margin": 1.0}, "fast_weights"),
    "scan against a table": ({"name": "scan"}, {"name": "hinge", "margin": 1.0}, "table"),
    "bfan against ridge": ({"name": "bfan"}, {"name": "hinge", "margin": 1.0}, "ridge"),
    "scan against one for all": ({"name": "scan"}, {"name": "hinge", "margin": 1.0}, "shared"),
    "vsrn against a network": ({"name": "vsrn", "dim": 6, "layers": 1}, {"name": "hinge", "margin": 1.0}, "amortized"),
}


def step_module(case: str) -> MatchingStep:
    head, objective, _ = CASES[case]
    torch.manual_seed(0)
    matcher = Matcher(
        image={"name": "regions", "input_dim": 5, "dim": 6},
        text={"name": "gru", "dim": 6, "word_dim": 4, "bidirectional": False},
        head=head,
        vocabulary=WORDS,
        captioner={"hidden_dim": 4, "word_dim": 4} if head["name"] == "vsrn" else None,
    )
    module = MatchingStep(matcher, build("objective", OBJECTIVES, objective))
    for parameter in module.parameters():  # also those that start at zero
        nn.init.normal_(parameter, std=0.5)
    return module.double().eval()  # the statistics of batch norm are each process's own


def make_adversary(case: str) -> list[Adversary]:
    """One or none."""
    form = CASES[case][2]
    if form is None:
        return []
    adversary = Adversary.build({"name": "addr", "form": form, "alpha": 1.0, "beta": 0.3}, dim=6, pairs=8)
    adversary.objective.double()
    return [adversary]


def measured(adversary: Adversary) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Its parameters, and squared norms that add up over processes."""
    norms = {name: value.item() for name, value in adversary.gradient_norms().items()}
    return adversary.objective.state_dict(), [norms[f"addr/{of}_gradient"] ** 2 for of in ("ranking", "adversarial")]


def half(process: int) -> PairBatch:
    """Four pairs with fewer regions and words than the other process has; two share an image across the halves."""
    generator = torch.Generator().manual_seed(process)
    regions, words = (3, 4) if process == 0 else (2, 7)
    region_mask = torch.arange(regions) < torch.randint(1, regions + 1, (4, 1), generator=generator)
    word_mask = torch.arange(words) < torch.randint(1, words + 1, (4, 1), generator=generator)
    return PairBatch(
        RegionBatch(torch.randn(4, regions, 5, dtype=torch.float64, generator=generator), region_mask),
        torch.randint(0, 7, (4, words), generator=generator) * word_mask,
        word_mask,
        torch.tensor([0, 1, 2, 3]) + 3 * process,
        torch.arange(4) + 4 * process,
    )


def joined() -> PairBatch:
    def pad(tensor: torch.Tensor, length: int) -> torch.Tensor:
        return nn.functional.pad(tensor, [0, 0] * (tensor.ndim - 2) + [0, length - tensor.shape[1]])

    def join(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        longest = max(one.shape[1], other.shape[1]) if one.ndim > 1 else 0
        return torch.cat([pad(half, longest) if half.ndim > 1 else half for half in (one, other)])

    (images, *rest), (other_images, *other_rest) = half(0), half(1)
    regions = RegionBatch(*map(join, images[:2], other_images[:2]))
    return PairBatch(regions, *map(join, rest, other_rest))


def alignment(terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What two processes know as well as one; which products are sampled depends on where a batch is cut."""
    return {name: terms[f"alignment/{name}"].detach() for name in ("mean_cosine", "gap")}


def work(process: int, folder) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=process, world_size=2)
    results = {}
    for case in CASES:
        module, adversary = DistributedDataParallel(step_module(case)), make_adversary(case)
        terms = module(half(process), 0, *adversary)
        total = terms["total"]
        total.backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        results[case] = (total.detach(), gradients, list(map(measured, adversary)), alignment(terms))
    torch.save(results, folder / f"{process}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    spawn(work, (folder,), nprocs=2)
    return [torch.load(folder / f"{process}.pt") for process in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_two_processes_are_those_of_the_joined_batch(two_processes, case):
    module, adversary = step_module(case), make_adversary(case)
    terms = module(joined(), 0, *adversary)
    total = terms["total"]
    total.backward()
    assert total > 0
    for results in two_processes:
        torch.testing.assert_close(results[case][3], alignment(terms))
        torch.testing.assert_close(results[case][0], total.detach(), rtol=1e-12, atol=0)
        for gradient, parameter in zip(results[case][1], module.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-13)
            assert parameter.grad.any()
    for opponent in adversary:
        state, squares = measured(opponent)
        first, second = (results[case][2][0] for results in two_processes)
        for other in (first, second):
            torch.testing.assert_close(other[0], state)
        assert [a + b for a, b in zip(first[1], second[1], strict=True)] == pytest.approx(squares, rel=1e-5)


class Called(SCAN):
    """Scores in its own `forward`."""

    def forward(self, regions, words, region_mask=None, word_mask=None):
        return -super().forward(regions, words, region_mask, word_mask)


def test_a_head_with_its_own_forward_is_trained_by_it(monkeypatch):
    monkeypatch.setitem(HEADS, "called", Called)
    image, text = {"name": "regions", "input_dim": 5, "dim": 6}, {"name": "gru", "word_dim": 4}
    matcher = Matcher(image, text, {"name": "called"}, vocabulary=WORDS).double()
    batch, seen = half(0), []
    objective = build("objective", OBJECTIVES, {"name": "hinge"})
    objective.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    MatchingStep(matcher, objective)(batch, 0)["total"].backward()
    torch.testing.assert_close(
        seen[0], matcher(batch.images.regions, batch.tokens, batch.images.region_mask, batch.word_mask)
    )
