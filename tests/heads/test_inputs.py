"""Every bad input is refused by name, with what was seen and what is wanted."""

from __future__ import annotations

import pytest
import torch

from xmodal.heads import SCAN, Cosine, cosine_scores, scan_attention, scan_pair_scores, scan_scores
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
