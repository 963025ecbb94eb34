"""Segments of small changes become few: what is searched stays short, and what was removed goes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from xmodal.search.draft import kept, write_segment
from xmodal.search.manifest import SEGMENT, Manifest, SegmentEntry
from xmodal.search.segment import Segment

if TYPE_CHECKING:
    from pathlib import Path

    from xmodal.search.cells import Cells

TOGETHER = 8
"""Segments of like size that become one; so that every item is written anew about log_8(items) times."""


def compacted(folder: Path, manifest: Manifest, most_items: int, cells: Cells | None = None) -> Manifest:
    """The manifest with segments merged that should be; what they were merged into is written, the old ones stay.

    Merged are eight segments of like size, where they are small enough together, and a segment of which more than half
    is gone; one of which all is gone is left out.

    Args:
        folder: of the index.
        manifest: what is true otherwise.
        most_items: of a segment.
        cells: of the index.

    >>> from pathlib import Path
    >>> from xmodal.search.draft import Items, draft
    >>> entries = []
    >>> for number in range(8):
    ...     one = draft(Items([f"image {number}"], torch.eye(1), torch.tensor([1])), None)
    ...     write_segment(Path(f"{number}"), [one])
    ...     entries.append(SegmentEntry(f"{number}", 1, 0))
    >>> manifest = Manifest("images", "", {}, bits=8, dim=1, segments=entries)
    >>> [entry.items for entry in compacted(Path("."), manifest, most_items=100).segments]
    [8]
    """
    while True:
        entries = [entry for entry in manifest.segments if len(entry.removed) < entry.items]
        manifest = replace(manifest, segments=entries)
        chosen = _to_merge(entries, most_items)
        if not chosen:
            return manifest
        path = folder / SEGMENT.format(manifest.next_segment)
        parts = []
        for entry in chosen:
            segment = Segment(folder / entry.file)
            alive = torch.ones(len(segment), dtype=torch.bool)
            alive[torch.tensor(entry.removed, dtype=torch.long)] = False
            parts.append(kept(segment, alive.nonzero()[:, 0]))
        write_segment(path, parts, cells)
        merged = SegmentEntry.of(path, sum(len(part.ids) for part in parts))
        left = [entry for entry in entries if entry not in chosen]
        manifest = replace(manifest, segments=[*left, merged], next_segment=manifest.next_segment + 1)


def _to_merge(entries: list[SegmentEntry], most_items: int) -> list[SegmentEntry]:
    """Segments that should become one; empty for none."""
    tiers: dict[int, list[SegmentEntry]] = defaultdict(list)
    for entry in entries:
        if 2 * len(entry.removed) > entry.items:
            return [entry]
        size = entry.items - len(entry.removed)
        tiers[(size.bit_length() - 1) // 3].append(entry)
    for tier in tiers.values():
        some = tier[:TOGETHER]
        if len(some) == TOGETHER and sum(entry.items for entry in some) <= most_items:
            return some
    return []
