import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.data import PairBatch, RegionBatch
from xmodal.training.augmentation import drop_at_random, shrink


@given(st.integers(0, 2**31 - 1), st.floats(0, 1))
def test_what_is_kept_is_real_in_order_and_never_nothing(seed, share):
    torch.manual_seed(seed)
    lengths = torch.randint(1, 8, (5,))
    mask = torch.arange(7) < lengths[:, None]
    items = torch.arange(1, 8).expand(5, 7).masked_fill(~mask, -1)
    chosen = drop_at_random(mask, share)
    kept, kept_mask = chosen.of(items), chosen.mask
    for row, row_mask, length in zip(kept, kept_mask, lengths.tolist(), strict=True):
        real = row[row_mask].tolist()
        assert real == sorted(set(real) & set(range(1, length + 1)))
        assert real
        assert not (row_mask[1:] & ~row_mask[:-1]).any(), "real items come first"
    assert kept_mask.any(dim=0).all(), "no column of padding only"


def test_about_the_share_is_dropped():
    torch.manual_seed(0)
    mask = torch.ones(200, 50, dtype=torch.bool)
    kept = drop_at_random(mask, 0.2).mask
    assert 0.78 < kept.sum() / mask.sum() < 0.82


def test_nothing_to_drop_leaves_the_batch_and_the_generator_alone():
    images = RegionBatch(torch.rand(2, 3, 4), torch.ones(2, 3).bool(), torch.rand(2, 3, 4))
    batch = PairBatch(images, torch.ones(2, 5), torch.ones(2, 5).bool(), *[[0, 1]] * 2)
    before = torch.get_rng_state()
    assert shrink(batch, 0.0, 0.0) is batch
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    smaller = shrink(batch, 0.5, 0.5)
    assert smaller.images.regions.shape[:2] == smaller.images.boxes.shape[:2] == smaller.images.region_mask.shape
    kept = smaller.images.boxes[smaller.images.region_mask]
    assert all((box == images.boxes).all(dim=-1).any() for box in kept), "boxes go with their regions"
    assert smaller.tokens.shape == smaller.word_mask.shape
