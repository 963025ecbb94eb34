"""What is in an index right now: one small file, replaced in one step.

An index is its manifest and the segments that it names. Segments never change; adding writes a new one, removing notes
items as gone, compacting writes one segment in place of several, and nothing of it is true before the manifest says so.
Whoever is killed in between leaves files that no manifest names, which the next writer removes.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Interval

from xmodal.data.atomic import remove_remains, written_whole
from xmodal.schema import Count, CountOrNone, check_fields

if TYPE_CHECKING:
    from pathlib import Path

    from xmodal.model import Matcher

MANIFEST = "manifest.json"
QUANTIZER = "quantizer.safetensors"
SEGMENT = "segment-{:08d}.safetensors"
_NUMBERED = re.compile(r"segment-(\d{8,})\.safetensors")

FORMAT = "xmodal index"
VERSION = 1

SMALL = 1 << 20
"""Bytes of a file up to which it is compared with its hash whenever an index is opened; of larger ones `verify` is."""

Indexed = Literal["images", "captions"]


@dataclass(frozen=True)
class SegmentEntry:
    """A segment and which of its items are gone."""

    file: str
    items: Count
    bytes: Annotated[int, Ge(0)]
    removed: list[CountOrNone] = field(default_factory=list)
    sha256: str = ""
    """Of the file; empty in indexes that were made before it was kept."""

    @classmethod
    def of(cls, path: Path, items: int) -> SegmentEntry:
        """The entry of a file that was just written.

        >>> from pathlib import Path
        >>> Path("segment").write_bytes(b"abc")
        3
        >>> SegmentEntry.of(Path("segment"), 1).sha256[:8]
        'ba7816bf'
        """
        return cls(path.name, items, path.stat().st_size, sha256=file_hash(path))


@dataclass(frozen=True)
class _Recall:
    """What `Index.measure` notes."""

    percent: Annotated[float, Interval(ge=0, le=100)]
    """Share of the exact top that inexact search found."""
    queries: CountOrNone
    top: Count
    rescored: Count
    """Items that were scored from float vectors."""


@dataclass(frozen=True)
class Manifest:
    """What an index holds, and of whose making."""

    indexed: Indexed
    model: str
    """Hash of the matcher that embedded the items; only its queries are comparable."""
    data: dict[str, Any]
    """What the source said of itself: sizes and extractor of an image source."""
    bits: Literal[8, 4]
    dim: CountOrNone
    next_segment: Count = 1
    segments: list[SegmentEntry] = field(default_factory=list)
    recall: dict[str, Any] | None = None
    """As `Index.measure` found it; None before."""
    quantizer: str = ""
    """sha256 of the file that says how vectors are compressed; empty where there is none, or it was not kept."""
    format: str = FORMAT
    version: int = VERSION

    def save(self, folder: Path) -> None:
        """Replace the manifest of a folder in one step."""
        with written_whole(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            FileNotFoundError: the folder holds no index.
            ValueError: the manifest is damaged, or of a version that this one does not know.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no index: {MANIFEST} is missing. `xmodal index` makes one.")
        try:
            values = json.loads(path.read_bytes())
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {values['format']!r}, wanted {FORMAT!r}")
            if values["version"] != VERSION:
                raise ValueError(f"its version is {values['version']!r}, this program reads {VERSION}")
            if not isinstance(values["segments"], list):
                raise ValueError(f"segments is {values['segments']!r}, wanted a list")
            values.pop("front", None)  # of older indexes, where it says nothing
            manifest = cls(**{**values, "segments": [SegmentEntry(**entry) for entry in values["segments"]]})
            manifest.check()
            return manifest
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged or foreign ({error}). Build the index again.") from error

    def check(self) -> None:
        """Make sure that all of it can be true.

        Raises:
            ValueError: a value is of another type or out of range, or two contradict each other.

        >>> Manifest("images", "", {}, bits=8, dim=4, segments=[SegmentEntry("a", 1, 9)]).check()
        Traceback (most recent call last):
        ...
        ValueError: segment 'a' is named otherwise than segments are
        """
        check_fields(self)
        if self.recall is not None:
            check_fields(_Recall(**self.recall))
        seen: set[str] = set()
        for entry in self.segments:
            check_fields(entry)
            number = _NUMBERED.fullmatch(entry.file)
            if number is None:
                raise ValueError(f"segment {entry.file!r} is named otherwise than segments are")
            if entry.file in seen or int(number[1]) >= self.next_segment:
                raise ValueError(f"{entry.file} is named twice, or is not before the next one, {self.next_segment}")
            seen.add(entry.file)
            if len(set(entry.removed)) < len(entry.removed) or max(entry.removed, default=0) >= entry.items:
                raise ValueError(f"items are removed from {entry.file} twice, or that are not among its {entry.items}")

    def check_matcher(self, matcher: Matcher, folder: Path) -> None:
        """Make sure that a matcher is the one that the index was built with.

        Raises:
            ValueError: it is another one.
        """
        found = matcher.fingerprint(trusting=True)
        if found != self.model:
            raise ValueError(
                f"{folder} was built with another model ({self.model[:12]}...) than this one ({found[:12]}...): its "
                "scores would mean nothing. Build the index again with this model, or search with that one."
            )


def file_hash(path: Path) -> str:
    """The sha256 of a file, read block by block.

    >>> from pathlib import Path
    >>> Path("empty").touch()
    >>> file_hash(Path("empty"))[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_hash(path: Path, wanted: str) -> None:
    """Make sure that a file is what was written.

    Args:
        path: the file.
        wanted: its sha256; empty where it is not known.

    Raises:
        ValueError: it is not.

    >>> from pathlib import Path
    >>> Path("empty").touch()
    >>> check_hash(Path("empty"), "0" * 64)
    Traceback (most recent call last):
    ValueError: empty is damaged: its sha256 is e3b0c442..., manifest.json says 00000000.... Build the index again.
    """
    if wanted and (found := file_hash(path)) != wanted:
        raise ValueError(
            f"{path} is damaged: its sha256 is {found[:8]}..., {MANIFEST} says {wanted[:8]}.... Build the index again."
        )


def remove_strangers(folder: Path, manifest: Manifest) -> None:
    """Remove what killed writers left: unfinished files, and segments that no manifest names.

    >>> from pathlib import Path
    >>> Path("segment-00000007.safetensors").touch()
    >>> remove_strangers(Path("."), Manifest("images", "", {}, bits=8, dim=4))
    >>> list(Path(".").iterdir())
    []
    """
    remove_remains(folder)
    named = {entry.file for entry in manifest.segments}
    for path in folder.glob(SEGMENT.format(0).replace("0" * 8, "*")):
        if path.name not in named:
            path.unlink()
