"""Every bad input is refused by name, with what was seen and what is wanted."""

from __future__ import annotations

import inspect
import math
from copy import deepcopy

import pytest
import torch
from batches import DIM, LEARNED_HEADS

from xmodal.heads import (
    BFAN,
    HEADS,
    SCAN,
    VSRN,
    Cosine,
    attended_program,
    cosine_scores,
    scan_attention,
    scan_pair_scores,
    scan_scores,
)
from xmodal.heads.attention import attention_weights
from xmodal.heads.base import check_inputs
from xmodal.heads.cosine import pool

pytestmark = pytest.mark.bad_input

REGIONS, WORDS = torch.ones(2, 3, 4), torch.ones(2, 5, 4)
NO_MASK = torch.zeros(2, 3, dtype=torch.bool)
HALF_EMPTY = torch.tensor([[True, False, False], [False, False, False]])
HALF_EMPTY_WORDS = torch.tensor([[True, True, True, True, False], [False, False, False, False, False]])

BAD = {
    "rank of regions": ((REGIONS[0], WORDS), r"regions must be \(image, region, dim\), got shape \(3, 4\)"),
    "rank of words": ((REGIONS, WORDS[0]), r"words must be \(caption, word, dim\), got shape \(5, 4\)"),
    "no regions at all": ((REGIONS[:, :0], WORDS), r"regions has shape \(2, 0, 4\).*at least one region"),
    "no images": ((REGIONS[:0], WORDS), r"regions has shape \(0, 3, 4\): there must be at least one image"),
    "no captions": ((REGIONS, WORDS[:0]), r"words has shape \(0, 5, 4\): there must be at least one caption"),
    "no words at all": ((REGIONS, WORDS[:, :0]), r"words has shape \(2, 0, 4\).*at least one word"),
    "dim": ((REGIONS, WORDS[..., :3]), r"regions have dim 4 and words have dim 3"),
    "integer region mask": ((REGIONS, WORDS, NO_MASK.long()), r"region_mask must be boolean.*torch.int64.*\.bool\(\)"),
    "float word mask": ((REGIONS, WORDS, None, torch.ones(2, 5)), r"word_mask must be boolean.*torch.float32"),
    "region mask shape": ((REGIONS, WORDS, NO_MASK[:1]), r"region_mask must have shape \(2, 3\).*got \(1, 3\)"),
    "word mask shape": ((REGIONS, WORDS, None, NO_MASK), r"word_mask must have shape \(2, 5\).*got \(2, 3\)"),
    "image without region": ((REGIONS, WORDS, HALF_EMPTY), r"image 1 has no real region in region_mask"),
    "caption without word": ((REGIONS, WORDS, None, HALF_EMPTY_WORDS), r"caption 1 has no real word in word_mask"),
}


@pytest.mark.parametrize("score", [scan_scores, scan_pair_scores, scan_attention, cosine_scores, check_inputs])
@pytest.mark.parametrize("case", BAD)
def test_bad_shapes_and_masks(score, case):
    arguments, message = BAD[case]
    arguments = (*arguments, None, None)[:4]
    with pytest.raises(ValueError, match=message):
        score(*arguments)


EVERY = {**{name: deepcopy(head).float() for name, head in LEARNED_HEADS.items()}, "scan": SCAN(), "bfan": BFAN()}
EVERY |= {"scan i2t": SCAN("i2t"), "vsrn": VSRN(DIM).eval(), "cosine": Cosine(), "scan plain": SCAN("t2i", "clipped")}
every_head = pytest.mark.parametrize("head", EVERY.values(), ids=EVERY)


def draw(images=3, captions=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, 5, DIM, generator=generator), torch.randn(captions, 4, DIM, generator=generator)


@every_head
def test_a_batch_without_images_or_captions_is_refused_alike_by_all(head):
    regions, words = draw()
    for sides, shape in (((regions[:0], words), r"\(0, 5, 8\)"), ((regions, words[:0]), r"\(0, 4, 8\)")):
        with pytest.raises(ValueError, match=f"has shape {shape}: there must be at least one"):
            head(*sides)


@every_head
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float16), (torch.bfloat16, torch.float32)], ids=str)
def test_sides_of_two_precisions_are_compared_in_the_wider(head, dtypes):
    """Against float64, in which the numbers of either side are exact."""
    regions, words = (side.to(dtype) for side, dtype in zip(draw(4, 4), dtypes, strict=True))
    exact = deepcopy(head).double()(regions.double(), words.double())
    found = head(regions, words)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(head.pairs(regions, words), found.diag(), rtol=1e-5, atol=1e-5)


@every_head
def test_a_device_that_somebody_made_the_default_changes_nothing(head, monkeypatch):
    monkeypatch.setattr(attended_program, "FEW", 0)
    regions, words = draw(4, 8)
    wanted, pairs = head(regions, words), head.pairs(regions, words[:4])
    with torch.device("meta"):
        assert torch.equal(head(regions, words), wanted)
        assert torch.equal(head.pairs(regions, words[:4]), pairs)


@pytest.mark.parametrize("head", [SCAN(), Cosine()], ids=repr)
def test_aligned_pairs_need_equal_counts(head):
    for method in (head.pairs, head.attention):
        with pytest.raises(ValueError, match="aligned pairs need as many images as captions, got 2 and 1"):
            method(REGIONS, WORDS[:1])


@pytest.mark.parametrize("score", [scan_scores, scan_pair_scores, cosine_scores])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_validate_refuses_what_is_not_finite_among_real_features_only(score, value):
    dirty = WORDS.clone()
    dirty[1, 4, 0] = value
    with pytest.raises(ValueError, match=r"words\[1, 4\] holds NaN or infinity"):
        score(REGIONS, dirty, validate=True)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 4] = False
    assert score(REGIONS, dirty, None, mask, validate=True).isfinite().all()


@pytest.mark.parametrize("build", [SCAN, lambda **options: scan_scores(REGIONS, WORDS, **options)])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"direction": "t2t"}, "direction must be one of t2i, i2t; got 't2t'"),
        ({"normalization": "l2norm"}, "normalization must be one of softmax, l2, clipped_l2.*got 'l2norm'"),
        ({"aggregation": "LogSumExp"}, "aggregation must be one of logsumexp, mean, max, sum; got 'LogSumExp'"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"lse_scale": -6.0}, "lse_scale must be positive, got -6.0"),
    ],
)
def test_unknown_options(build, option, message):
    with pytest.raises(ValueError, match=message):
        build(**option)


def test_unknown_pooling():
    with pytest.raises(ValueError, match="pooling must be one of mean, max; got 'sum'"):
        pool(REGIONS, pooling="sum")
    with pytest.raises(ValueError, match="pooling must be one of mean, max, gpo, esa, self_attention; got 'sum'"):
        Cosine("sum")


INFINITE, TOO_MUCH = float("inf"), 1.5
REFUSED = [
    *(({"name": name, "temperature": INFINITE}, "temperature must be finite, got inf") for name in ("adapt", "sgraf")),
    ({"name": "rdan_style", "temperature": INFINITE}, "temperature must be finite, got inf"),
    ({"name": "adapt", "temperature": "warm"}, "temperature must be a number, got 'warm'"),
    ({"name": "naaf", "temperature": INFINITE}, "temperature must be finite, got inf"),
    ({"name": "naaf", "intra_temperature": INFINITE}, "intra_temperature must be finite, got inf"),
    ({"name": "naaf", "penalty": INFINITE}, "penalty must be finite, got inf"),
    ({"name": "dprnn", "word_temperature": INFINITE}, "word_temperature must be finite, got inf"),
    ({"name": "dprnn", "weighting": INFINITE}, "weighting must be finite, got inf"),
    ({"name": "dprnn", "candidates": 2.5}, "candidates must be a whole number, got 2.5"),
    ({"name": "rdan_style", "relation_dim": 0}, "relation_dim must be at least 1, got 0"),
    ({"name": "rdan_style", "relation_dim": -1}, "relation_dim must be at least 1, got -1"),
    ({"name": "mtfn", "fused_dim": 0}, "fused_dim must be at least 1, got 0"),
    ({"name": "mtfn", "dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    ({"name": "sgraf", "sim_dim": 2.5}, "sim_dim must be a whole number, got 2.5"),
    ({"name": "cosine", "pooling": {"name": "gpo", "temperature": INFINITE}}, "temperature must be finite, got inf"),
    ({"name": "cosine", "pooling": {"name": "gpo", "hidden_dim": 0}}, "hidden_dim must be at least 1, got 0"),
    ({"name": "cosine", "pooling": {"name": "esa", "drop": TOO_MUCH}}, "drop must be at least 0 and below 1, got 1.5"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_numbers_out_of_their_range_are_refused_when_a_head_is_made(options, message):
    options = dict(options)
    kind = HEADS[options.pop("name")]
    dim = {"dim": 8} if "dim" in inspect.signature(kind).parameters else {}
    with pytest.raises(ValueError, match=f"^{message}"):
        kind(**dim, **options)


@pytest.mark.parametrize("normalization", ["none", "clipped", "softmax"])
def test_a_temperature_is_as_exact_as_the_features(normalization):
    """0.1 is another number in float32; one query and two context items, in plain numbers."""
    products = torch.tensor([0.7, -0.3], dtype=torch.float64).view(1, 2, 1, 1)
    real, one = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.bool)
    weights = attention_weights(products, real, one, normalization=normalization, temperature=0.1)
    first, second = {"none": (0.7, -0.3), "clipped": (0.7, -0.03), "softmax": (1.0, 1.0)}[normalization]
    wanted = 1 / (1 + math.exp(0.1 * (second - first)))
    assert abs(float(weights[0, 0, 0, 0]) - wanted) < 1e-15
