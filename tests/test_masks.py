"""What is noted of a mask is what reading it gives, and goes with its parts."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal import masks

MASKS = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=6)
)


def answers(mask):
    found = [masks.is_full(mask), masks.first_empty(mask), masks.comes_first(mask), masks.counts(mask)]
    return [*found, masks.lengths(mask), masks.real_places(mask).tolist()]


def plainly(rows):
    """The same in loops."""
    ends = [max((place + 1 for place, real in enumerate(row) if real), default=0) for row in rows]
    places = [real for row in rows for real in row]
    return [
        all(map(all, rows)),
        next((number for number, row in enumerate(rows) if not any(row)), None),
        all(row == sorted(row, reverse=True) for row in rows),
        [sum(row) for row in rows],
        ends,
        [place for place, real in enumerate(places) if real],
    ]


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_what_is_noted_is_what_reading_gives(rows):
    mask = torch.tensor(rows)
    assert answers(mask) == plainly(rows)
    assert answers(masks.note(mask.clone(), mask)) == plainly(rows)


@settings(max_examples=50, deadline=None)
@given(MASKS, st.integers(1, 3), st.randoms())
def test_parts_are_known_as_the_whole_is(rows, size, random):
    mask, order = torch.tensor(rows), random.sample(range(len(rows)), len(rows))
    for whole in (mask, masks.note(mask.clone(), mask)):
        some = masks.taken(whole, order)
        assert torch.equal(some, mask[order])
        assert answers(some) == plainly(some.tolist())
        for start, part in zip(range(0, len(rows), size), masks.split(some, size), strict=True):
            longest = max(masks.lengths(some)[start : start + size])
            assert torch.equal(part, some[start : start + size, :longest])
            assert longest == 0 or answers(part) == plainly(part.tolist())


def test_a_full_mask_is_known():
    assert answers(masks.note_full(torch.ones(2, 3, dtype=torch.bool))) == plainly([[True] * 3] * 2)


def test_a_mask_that_was_written_to_is_read_again():
    mask = masks.note_full(torch.ones(2, 3, dtype=torch.bool))
    mask[1, 2] = False
    assert masks.counts(mask) == [3, 2]


def test_notes_are_gone_with_their_masks():
    before = len(masks._noted)
    masks.note_full(torch.ones(2, 3, dtype=torch.bool))
    assert len(masks._noted) == before


def test_what_is_written_to_in_inference_mode_is_read_again():
    with torch.inference_mode():
        full = masks.note_full(torch.ones(2, 3, dtype=torch.bool))
        noted = masks.note(full.clone(), full)
        outside = masks.taken(noted, [1, 0])
        for mask in (full, noted, outside):
            mask[:, 1:] = False
            assert answers(mask) == plainly([[True, False, False]] * 2)
