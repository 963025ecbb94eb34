"""Scores under autocast are those of float64, which it leaves alone: nothing becomes half precision on the way."""

from __future__ import annotations

import pytest
import torch

from xmodal.evaluation import evaluate_retrieval
from xmodal.heads import BFAN, CHAN, SCAN, VSRN, Cosine
from xmodal.heads.attended_program import Attending
from xmodal.scoring import evaluate_exact, score_all, score_pairs, shortlist
from xmodal.scoring.blocks import score_tiles
from xmodal.scoring.plan import make_plan
from xmodal.scoring.sides import Sides
from xmodal.scoring.triton.packing import pack

HEADS = [SCAN(), SCAN("i2t"), SCAN(normalization="softmax"), SCAN(normalization="clipped_l1"), CHAN(), Cosine()]
ATOL = 2e-5


@pytest.fixture
def batch():
    """Enough for the compiled program, words of several lengths."""
    generator = torch.Generator().manual_seed(0)
    regions, words = (torch.randn(*shape, 32, generator=generator) for shape in ((20, 12), (40, 9)))
    regions, words = (torch.nn.functional.normalize(items, dim=-1) for items in (regions, words))
    mask = torch.arange(9) < torch.randint(4, 10, (40, 1), generator=generator)
    return regions, words, torch.ones(20, 12, dtype=torch.bool), mask


def exact(head, batch):
    with torch.no_grad():
        return head(batch[0].double(), batch[1].double(), *batch[2:])


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_scores(head, batch, dtype):
    with torch.autocast("cpu", dtype):
        scores = score_all(head, *batch)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), exact(head, batch), atol=ATOL, rtol=0)


def test_heads_that_jump_or_have_weights_score_as_without_autocast(batch):
    """BFAN's focal function makes rounding a jump, and VSRN's weights are float32."""
    for head in (BFAN(), VSRN(dim=32)):
        expected = score_all(head, *batch)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(score_all(head, *batch), expected)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_some_pairs(head, batch):
    images, captions = torch.tensor([3, 0, 3, 19, 7]).repeat(8), torch.arange(40)
    with torch.autocast("cpu", torch.bfloat16):
        scores = score_pairs(head, *batch, images, captions)
    torch.testing.assert_close(scores.double(), exact(head, batch)[images, captions], atol=ATOL, rtol=0)


@pytest.mark.parametrize("head", [SCAN(), Cosine()], ids=str)
def test_tiles_and_the_caller_keeps_its_modes(head, batch):
    sides, found = Sides.checked(*batch), torch.empty(20, 40)
    head.train()
    with torch.autocast("cpu", torch.bfloat16):
        for tile in score_tiles(head, sides, make_plan(head, sides, budget_bytes=20_000)):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
            assert head.training
            found[tile.images[:, None], tile.captions] = tile.scores
    torch.testing.assert_close(found.double(), exact(head.eval(), batch), atol=ATOL, rtol=0)


@pytest.mark.parametrize("head", [SCAN(), VSRN(dim=32)], ids=str)
def test_shortlists(head, batch):
    expected = shortlist(head, *batch, k=5)
    with torch.autocast("cpu", torch.bfloat16):
        found = shortlist(head, *batch, k=5)
    assert torch.equal(found.candidates, expected.candidates)
    assert torch.equal(found.scores, expected.scores)


def test_exact_metrics(batch):
    right = torch.arange(40) // 2
    with torch.autocast("cpu", torch.bfloat16):
        metrics = evaluate_exact(SCAN(), *batch, caption_image=right)
    expected = evaluate_retrieval(exact(SCAN(), batch), right)
    assert {name: metrics[name] for name in expected} == expected


def test_gram_matrices_of_the_fused_kernel(batch):
    with torch.autocast("cpu", torch.bfloat16):
        side = pack(batch[0], None, size=16, depth=16)  # one image a tile
    exact = batch[0].double() @ batch[0].double().transpose(1, 2)
    torch.testing.assert_close(side.grams[:, :12, :12].double(), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("given", ["products", "gram", "norms"])
def test_the_program_refuses_what_it_would_read_wrongly(given):
    tensors = {"products": torch.ones(1, 2, 3, 16), "gram": torch.ones(1, 2, 2), "norms": torch.ones(1, 3, 16)}
    tensors[given] = tensors[given].bfloat16()
    with pytest.raises(ValueError, match="takes float32 on the CPU, got torch"):
        Attending(
            tensors["products"], tensors["gram"], torch.ones(1, 2).bool(), slope=0.1, temperature=9.0, epsilon=1e-8
        ).cosines(tensors["norms"])
