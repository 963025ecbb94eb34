"""All segments of an index as one row of items, numbered through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.data.strings import refuse_string
from xmodal.search.segment import Segment  # noqa: TC001  # of a NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.search.manifest import SegmentEntry


RESIDENT = 1 << 30
"""Bytes of an index up to which what was read of it stays in memory, whatever else the system keeps of its files."""


class Part(NamedTuple):
    """Some items of one segment."""

    segment: Segment
    items: Int[Tensor, " some"]
    """Their numbers in the segment, ascending."""
    places: Int[Tensor, " some"]
    """Where they were in what was asked for."""


class Collection:
    """Segments, one after the other, without what was removed from them.

    Args:
        segments: the files.
        entries: what the manifest says of them.
        again: embeds items again, in an index that does not keep their vectors.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from xmodal.search.collection import Collection
        >>> from xmodal.search.manifest import SegmentEntry
        >>> from xmodal.search.draft import Items, draft, write_segment
        >>> from xmodal.search.segment import Segment
        >>> items = Items(["7", "8"], torch.eye(2), torch.tensor([1, 1]))
        >>> write_segment(Path("a.safetensors"), [draft(items, None)])
        >>> segments = [Segment(Path("a.safetensors"))]
        >>> collection = Collection(segments, [SegmentEntry("a.safetensors", 2, 0, removed=[0])])
        >>> len(collection), collection.alive.tolist(), collection.id(1), collection.find("7")
        (2, [False, True], '8', None)
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        entries: Sequence[SegmentEntry],
        again: Callable[[Part], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.segments, self.again = list(segments), again
        self._bytes = sum(len(segment.mapped) for segment in segments)
        sizes = torch.tensor([len(segment) for segment in segments], dtype=torch.long)
        self.ends = sizes.cumsum(0)
        self.alive: Bool[Tensor, " item"] = torch.ones(int(sizes.sum()), dtype=torch.bool)
        for entry, start in zip(entries, (self.ends - sizes).tolist(), strict=True):
            self.alive[start + torch.tensor(entry.removed, dtype=torch.long)] = False

    def __len__(self) -> int:
        return len(self.alive)

    def parts(self, items: Int[Tensor, " some"]) -> Iterator[Part]:
        """Some items, in any order, segment by segment."""
        order = torch.arange(len(items))
        if not bool((items[1:] > items[:-1]).all()):
            items, order = items.sort()
        stops = torch.searchsorted(items, self.ends).tolist()
        start = 0
        for segment, stop, end in zip(self.segments, stops, self.ends.tolist(), strict=True):
            if stop > start:
                yield Part(segment, items[start:stop] - (end - len(segment)), order[start:stop])
            start = stop

    def let_go(self, segment: Segment) -> None:
        """Forget what was read of a segment, where all that may be read is too much to stay in memory."""
        if self._bytes > RESIDENT:
            segment.forget()

    def id(self, item: int) -> str:
        """The id of an item."""
        segment, local = self._locate(item)
        return segment.id(local)

    def metadata(self, item: int) -> dict[str, Any]:
        """What is known of an item besides."""
        segment, local = self._locate(item)
        return {name: values[local] for name, values in segment.metadata.items()}

    def boxes(self, item: int) -> Float[Tensor, "place 4"] | None:
        """The boxes of the vectors of an item, as shares of width and height."""
        segment, local = self._locate(item)
        if "boxes" not in segment.arrays:
            return None
        boxes = torch.from_numpy(segment.arrays["boxes"][segment.rows(torch.tensor([local])).numpy()])
        return None if bool(boxes.isnan().any()) else boxes

    def find(self, name: str) -> int | None:
        """The number of an id that was not removed."""
        for segment, end in zip(reversed(self.segments), reversed(self.ends.tolist()), strict=True):
            local = segment.find(name)
            if local is not None and self.alive[end - len(segment) + local]:
                return end - len(segment) + local
        return None

    def admitted(self, chosen: Sequence[str] | Mapping[str, Any] | None) -> Int[Tensor, " some"]:
        """The numbers of the items that may be found, ascending.

        Raises:
            KeyError: an id is not in the index, or no item has metadata of that name.
        """
        if chosen is None:
            return self.alive.nonzero()[:, 0]
        refuse_string("filter", chosen, "ids, or a mapping of metadata")
        if not isinstance(chosen, Mapping):
            found = {name: self.find(name) for name in chosen}
            if lost := [name for name, item in found.items() if item is None]:
                raise KeyError(f"filter names {lost[0]!r}, which is not in the index")
            return torch.tensor(sorted(item for item in found.values() if item is not None), dtype=torch.long)
        return (self.alive & self._matching(chosen)).nonzero()[:, 0]

    def _matching(self, wanted: Mapping[str, Any]) -> Bool[Tensor, " item"]:
        known = {name for segment in self.segments for name in segment.metadata}
        if strangers := sorted(set(wanted) - known):
            raise KeyError(f"no item has metadata {strangers[0]!r}; known: {', '.join(sorted(known)) or 'none'}")
        rows = []
        for segment in self.segments:
            fits = torch.ones(len(segment), dtype=torch.bool)
            for name, value in wanted.items():
                several = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
                there = segment.metadata.get(name, [None] * len(segment))
                fits &= torch.tensor([each in several for each in there], dtype=torch.bool)
            rows.append(fits)
        return torch.cat(rows)

    def vectors(
        self, items: Int[Tensor, " some"]
    ) -> tuple[Float[Tensor, "some place dim"], Bool[Tensor, "some place"]]:
        """The float vectors of some items, in the order given, padded to the longest, and their mask."""
        parts = list(self.parts(items))
        lengths = torch.empty(len(items), dtype=torch.long)
        for part in parts:
            lengths[part.places] = part.segment.lengths[part.items].long()
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        together: Tensor | None = None
        for part in parts:
            vectors, real = self._of_segment(part)
            if together is None:
                together = vectors.new_zeros(*mask.shape, vectors.shape[2])
            together[part.places, : real.shape[1]] = vectors
        assert together is not None, "there is an item"
        return together, mask

    def _of_segment(self, part: Part) -> tuple[Tensor, Tensor]:
        if "floats" in part.segment.arrays:
            return part.segment.vectors(part.items)
        assert self.again is not None, "vectors are kept, or embedded again"
        return self.again(part)

    def _locate(self, item: int) -> tuple[Segment, int]:
        number = int(torch.searchsorted(self.ends, item, right=True))
        segment = self.segments[number]
        return segment, item - (int(self.ends[number]) - len(segment))
