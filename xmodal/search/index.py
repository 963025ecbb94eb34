"""An index on disk: images to search with sentences, or captions to search with images, and answers that are certain.

Attention-weighted heads score a pair, not a vector, so that no vector database searches by them. An index keeps every
vector compressed twice (`xmodal.search.quantize`): 4 bits to find candidates by approximate scores, 8 bits to bound
what the scores of all others can be (`xmodal.search.bound`). Candidates, and whatever a bound does not exclude, are
scored by the head from float vectors: the answer is that of scoring everything, which was not done.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from xmodal.data.atomic import folder_written_whole, locked, refuse_existing
from xmodal.data.strings import refuse_string
from xmodal.heads.comparison import CrossAttention
from xmodal.inference import evaluating, without_autocast
from xmodal.numerics import check_count
from xmodal.scoring.blocks import bar_options
from xmodal.search.cells import Cells
from xmodal.search.collection import Collection
from xmodal.search.compaction import compacted
from xmodal.search.draft import draft, write_segment
from xmodal.search.embed import (
    check_metadata,
    embedded_blocks,
    embedded_queries,
    indexed_side,
    is_one,
    item_ids,
)
from xmodal.search.hits import Found, Hit, WordHit, check_scores, word_shares
from xmodal.search.manifest import (
    MANIFEST,
    QUANTIZER,
    SEGMENT,
    SMALL,
    Manifest,
    SegmentEntry,
    check_hash,
    file_hash,
    remove_strangers,
)
from xmodal.search.quantize import Quantizer
from xmodal.search.ranking import SPARE, Ranked, make_ranking, rank
from xmodal.search.segment import Segment, padded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from xmodal.data.captions import Caption
    from xmodal.data.image_source import ImageSource
    from xmodal.model import Matcher
    from xmodal.search.candidates import CandidateEngine
    from xmodal.search.collection import Part
    from xmodal.search.ranking import Ranking

SEGMENT_ITEMS = 8192
"""Items of a segment, at most."""

MOST_ITEMS = 1 << 16
"""What `segment_items` may be; item numbers then take two bytes."""

SAMPLE = 2048
"""Items that the rotation of an index is fitted to."""

RESCORED = 50
"""Candidates that are scored from float vectors."""

TOP = 10
"""Hits of which recall is measured."""

QUERY_SCORES = 1 << 24
"""Approximate scores that are held at a time."""


class Embedded(NamedTuple):
    """Some items of an index and their vectors, for engines that keep a copy of them."""

    ids: list[str]
    vectors: Float[Tensor, "item place dim"]
    mask: Tensor


class Index:
    """Images, or captions, of which the best for a query are found without scoring all of them.

    `Index.build` makes one, `Index.open` opens it. Several processes may search it while one changes it: a reader sees
    it as it was when it was opened, or at its last `refresh`. A change is there or not, whole, whenever a process dies.

    Args:
        path: its folder.
        source: where images come from, for an index that was built with `floats=False`.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged, or of another version.

    Example:
        >>> import torch
        >>> from xmodal.data import RegionStore, RegionStoreWriter
        >>> from xmodal.model import Matcher
        >>> from xmodal.search.index import Index
        >>> with RegionStoreWriter("test.h5", dim=8, extractor="by hand") as writer:
        ...     for name in ("dog", "cat", "cow"):
        ...         writer.write(name, torch.randn(5, 8))
        >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
        >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
        >>> index = Index.build(matcher, RegionStore("test.h5"), "test.index")
        >>> hits = index.search(matcher, "a dog", k=2)
        >>> [hit.certified for hit in hits], hits[0].score >= hits[1].score, len(hits[0].words)
        ([True, True], True, 4)
        >>> index.remove(["dog"])
        >>> len(index), len(Index.open("test.index"))
        (2, 2)
    """

    def __init__(self, path: str | Path, *, source: ImageSource | None = None) -> None:
        self.path, self.source = Path(path), source
        self._matcher: Matcher | None = None
        self.refresh()

    @classmethod
    def open(cls, path: str | Path, *, source: ImageSource | None = None) -> Index:
        """The index of a folder, mapped into memory; arguments and errors are those of the class."""
        return cls(path, source=source)

    @classmethod
    @without_autocast
    def build(
        cls,
        matcher: Matcher,
        items: ImageSource | Sequence[Caption],
        path: str | Path,
        *,
        bits: int = 8,
        floats: bool = True,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
        queries: Sequence[Any] = (),
        cells: int = 0,
        segment_items: int = SEGMENT_ITEMS,
        overwrite: bool = False,
        progress: bool = False,
    ) -> Index:
        """Embed images or captions and index them; the folder appears whole or not at all.

        Args:
            matcher: embeds them; the index answers no other one.
            items: images of a source (a region store, say), or a list of captions.
            path: the folder to make.
            bits: of the certificate: 8, or 4 for none, which makes the index small and only approximate.
            floats: keep the float vectors that scores are computed from; False to have the matcher embed what it scores
                again, from a source that `open` is given.
            metadata: what to keep of items, by id, for `filter`: `{"7": {"license": "CC0"}}`; whatever JSON can hold.
            queries: sentences (for captions: images) to measure the recall of inexact search by.
            cells: parts of the space by which inexact search looks items up instead of scanning all (see
                `xmodal.search.cells`), a thousand for a million images; 0 for none. For heads with cross attention.
            segment_items: items of a segment, at most 65,536: what is held in memory.
            overwrite: replace an index that is there.
            progress: show a bar.

        Raises:
            FileExistsError: `path` exists and `overwrite` is False.
            ValueError: `bits` is neither 4 nor 8, there is nothing to index, an id is there twice, metadata cannot be
                kept, queries cannot be asked or measured by, or the vectors of an item are no finite numbers.
        """
        if bits not in (4, 8):
            raise ValueError(f"bits is {bits}; wanted 8, or 4 for an index without certificate")
        if not floats and (bits == 4 or not isinstance(matcher.head.comparison, CrossAttention)):
            raise ValueError("floats=False needs bits=8 and a head with cross attention, to know the vectors again by")
        check_count("segment_items", segment_items)
        check_count("cells", cells, least=0)
        segment_items = min(segment_items, MOST_ITEMS)
        path, ids, indexed = Path(path), item_ids(items), indexed_side(items)
        check_metadata(metadata or {}, ids, indexed)
        if not overwrite:
            refuse_existing(path)
        asked = embedded_queries(matcher, queries, indexed)  # what cannot be asked is told before the work is done
        if asked and bits == 4 and isinstance(matcher.head.comparison, CrossAttention):
            raise ValueError("queries are to measure inexact search by exact search, which takes bits=8; leave one out")
        manifest = Manifest(indexed=indexed, model=matcher.fingerprint(), data=_data(items), bits=bits, dim=0)
        with folder_written_whole(path) as folder:
            if isinstance(matcher.head.comparison, CrossAttention):
                spread = sorted({number * len(ids) // SAMPLE for number in range(SAMPLE)})
                sample = torch.cat([block.vectors for block in embedded_blocks(matcher, items, places=spread)])
                quantizer = Quantizer.fit(sample)
                arrays = quantizer.arrays()
                if cells:
                    arrays["centers"] = Cells.fit(quantizer.encode(sample, bits=4).scan, cells).centers.numpy()
                save_file(arrays, folder / QUANTIZER)
                manifest = replace(manifest, quantizer=file_hash(folder / QUANTIZER))
            elif cells:
                raise ValueError("cells are for heads with cross attention; this one compares in another way")
            writer = _Writer(folder, matcher, metadata or {}, floats, progress)
            writer.append(manifest, items, segment_items).save(folder)
        index = cls(path, source=None if floats else items)  # type: ignore[arg-type]
        if asked:
            index.measure(matcher, queries)
        return index

    def __len__(self) -> int:
        return int(self.collection.alive.sum())

    def __contains__(self, name: str) -> bool:
        return self.collection.find(name) is not None

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}): {len(self)} {self.manifest.indexed}"

    @property
    def ids(self) -> list[str]:
        """The ids of all items."""
        return [self.collection.id(item) for item in self.collection.alive.nonzero()[:, 0].tolist()]

    def refresh(self) -> None:
        """See what other processes have added and removed since."""
        for attempt in range(5):
            manifest = Manifest.load(self.path)
            try:
                self._adopt(manifest)
            except FileNotFoundError as error:  # compacted between manifest and segment: there is a new manifest
                if attempt == 4:
                    raise ValueError(f"{error.filename} of the index {self.path} is missing. Build it again.") from None
            else:
                return

    def search(
        self,
        matcher: Matcher,
        queries: Any,
        k: int = 10,
        *,
        exact: bool = True,
        filter: Sequence[str] | Mapping[str, Any] | None = None,
        rescored: int = RESCORED,
        engine: CandidateEngine | None = None,
        words: bool = True,
    ) -> list[Any]:
        """The best items of a query, best first: a list of `Hit`; for a list of queries, a list of such lists.

        Args:
            matcher: the one that the index was built with.
            queries: a sentence or a list of sentences; for an index of captions, an image or a list of images as
                `Matcher.score` takes them.
            k: how many hits.
            exact: find the same as scoring everything would, and certify it; False to stop after the best candidates
                are scored.
            filter: which items may be found: a list of ids, or what their metadata must be, `{"license": "CC0"}` or
                `{"license": ["CC0", "CC BY"]}`.
            rescored: candidates to score from float vectors, at least `k`.
            engine: finds the candidates instead of the index; what it names is scored, and nothing is certified.
            words: say of each hit what every word contributes and where it looks.

        Raises:
            ValueError: the matcher is another one, `k` is not positive, the query is empty or holds several images, or
                the score of an item is NaN.
            KeyError: `filter` names what is not in the index.
        """
        one = is_one(queries)
        options = {"exact": exact, "filter": filter, "rescored": rescored, "engine": engine, "words": words}
        found = self.find(matcher, [queries] if one else queries, k, **options)
        return found[0].hits if one else [each.hits for each in found]

    @without_autocast
    def find(
        self,
        matcher: Matcher,
        queries: Sequence[Any],
        k: int = 10,
        *,
        exact: bool = True,
        filter: Sequence[str] | Mapping[str, Any] | None = None,
        rescored: int = RESCORED,
        engine: CandidateEngine | None = None,
        words: bool = True,
    ) -> list[Found]:
        """As `search` of several queries, with what each took: how many items were scored, and the recall to expect."""
        check_count("k", k)
        check_count("rescored", rescored)
        ranking = self.ranking(matcher)
        items = self.collection.admitted(filter)
        asked, found = embedded_queries(matcher, queries, self.manifest.indexed), []
        if not len(items):
            return [Found([], 0, 0, None)] * len(queries)
        recall = self._recall(max(k, rescored)) if engine is None and filter is None else None
        count = max(k + SPARE if ranking.complete else k, rescored)
        at_once = max(1, QUERY_SCORES // len(items))
        for start in range(0, len(asked), at_once):
            some = asked[start : start + at_once]
            if engine is None:
                candidates = ranking.candidates(some, items, count)
            else:
                candidates = [self._named(engine.candidates(query, max(k, rescored)), items) for query in some]
            for query, few in zip(some, candidates, strict=True):
                if len(few):
                    ranked = rank(ranking, query, few, items, k, exact=exact and engine is None)
                else:
                    ranked = Ranked(few, torch.empty(0), False, 0)
                if engine is not None:  # of whatever it did not name nothing is known
                    ranked = ranked._replace(certified=False)
                found.append(self._found(ranked, len(items), recall))
        if words and isinstance(matcher.head.comparison, CrossAttention):
            named = zip(queries, asked, found, strict=True)
            return [
                each._replace(hits=self._with_words(matcher, text, query, each.hits)) for text, query, each in named
            ]
        return found

    @without_autocast
    def add(
        self,
        matcher: Matcher,
        items: ImageSource | Sequence[Caption],
        *,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
        progress: bool = False,
    ) -> None:
        """Add images of a source, or captions: all of them or, should this process die, none.

        Raises:
            ValueError: the matcher is another one, the items are of another kind or come from another extractor than
                those in the index, an id is in it already, metadata cannot be kept, or the vectors of an item are no
                finite numbers.
            BlockingIOError: another process is changing the index.
        """
        with self._changing() as manifest:
            manifest.check_matcher(matcher, self.path)
            ids = item_ids(items)
            if indexed_side(items) != manifest.indexed or _data(items) != manifest.data:
                raise ValueError(
                    f"{self.path} holds {manifest.indexed} of {manifest.data}; what is to be added are "
                    f"{indexed_side(items)} of {_data(items)}, whose vectors would mean something else"
                )
            if known := [name for name in ids if name in self]:
                raise ValueError(f"{known[0]!r} is in {self.path} already; remove it first")
            check_metadata(metadata or {}, ids, manifest.indexed)
            floats = all("floats" in segment.arrays for segment in self.collection.segments)
            if not floats:
                raise ValueError(f"{self.path} keeps no float vectors, so that its source cannot grow; build it again")
            writer = _Writer(self.path, matcher, metadata or {}, True, progress)
            grown = writer.append(replace(manifest, recall=None), items, SEGMENT_ITEMS)
            self._commit(compacted(self.path, grown, SEGMENT_ITEMS, self.cells))

    def remove(self, ids: Sequence[str]) -> None:
        """Remove items by id: all of these or, should this process die, none.

        Raises:
            KeyError: an id is not in the index.
            ValueError: `ids` is a string.
            BlockingIOError: another process is changing the index.
        """
        refuse_string("ids", ids, "ids")
        with self._changing() as manifest:
            gone = {name: self.collection.find(name) for name in ids}
            if lost := [name for name, item in gone.items() if item is None]:
                raise KeyError(f"{lost[0]!r} is not in {self.path}")
            entries = list(manifest.segments)
            for part in self.collection.parts(torch.tensor(sorted(gone.values()), dtype=torch.long)):  # type: ignore[type-var]
                number = self.collection.segments.index(part.segment)
                removed = sorted({*entries[number].removed, *part.items.tolist()})
                entries[number] = replace(entries[number], removed=removed)
            recall = None if gone else manifest.recall
            manifest = replace(manifest, segments=entries, recall=recall)
            self._commit(compacted(self.path, manifest, SEGMENT_ITEMS, self.cells))

    def measure(self, matcher: Matcher, queries: Sequence[Any], *, rescored: int = RESCORED) -> float:
        """Measure the share of the exact top 10 that inexact search finds, in percent, and note it in the index.

        It is what `find` tells of inexact searches that score as many items, until the index is changed.

        Args:
            matcher: the one that the index was built with.
            queries: as for `find`; at least one.
            rescored: items that inexact search scores.

        Raises:
            ValueError: there is no query, nothing to be found, or another process changes the index meanwhile; and as
                for `find`.
        """
        self.refresh()
        measured = self.manifest.segments
        options = {"k": TOP, "words": False, "rescored": rescored}
        exact = self.find(matcher, queries, exact=True, **options)
        short = self.find(matcher, queries, exact=False, **options)
        if not any(each.hits for each in exact):
            lacks = "there is no query" if not len(queries) else f"{self.path} holds nothing to be found"
            raise ValueError(f"{lacks}, so that no recall can be measured")
        pairs = [
            ({hit.image_id for hit in e.hits}, {hit.image_id for hit in s.hits})
            for e, s in zip(exact, short, strict=True)
        ]
        recall = 100 * sum(len(e & s) for e, s in pairs) / sum(len(e) for e, _ in pairs)
        with self._changing() as manifest:
            if manifest.segments != measured:
                raise ValueError(f"{self.path} was changed while its recall was measured; measure it again")
            note = {"percent": recall, "queries": len(queries), "top": TOP, "rescored": max(TOP, rescored)}
            self._commit(replace(manifest, recall=note))
        return recall

    def verify(self, *, progress: bool = False) -> None:
        """Read every file whole and compare it with the hash that was taken when it was written.

        Small files are compared whenever an index is opened; of large ones, the size and the shapes of arrays.

        Raises:
            ValueError: a file is not what was written; it is named.
        """
        files = {self.path / QUANTIZER: self.manifest.quantizer}
        files |= {self.path / entry.file: entry.sha256 for entry in self.manifest.segments}
        for path, wanted in tqdm(files.items(), "verifying", unit="file", **bar_options(progress)):
            check_hash(path, wanted)

    def ranking(self, matcher: Matcher) -> Ranking:
        """How the items are ranked by a matcher, for queries of a kind of their own (`xmodal.search.composed`).

        Raises:
            ValueError: the matcher is another one than that which the index was built with.
        """
        self.manifest.check_matcher(matcher, self.path)
        self._matcher = matcher
        return make_ranking(
            matcher.head, self.collection, self.quantizer, self.cells, self.manifest.indexed, self.manifest.bits
        )

    def embedded(self, size: int = 1024, *, matcher: Matcher | None = None) -> Iterator[Embedded]:
        """All items and their vectors, some at a time: what a `CandidateEngine` of another system is filled with.

        Args:
            size: items at a time.
            matcher: embeds them again in an index that was built with `floats=False`; the one that it was built with.

        Raises:
            ValueError: the matcher is another one, or is missing where vectors are not kept; or the source is.
        """
        check_count("size", size)
        if matcher is not None:
            self.manifest.check_matcher(matcher, self.path)
            self._matcher = matcher
        for some in self.collection.alive.nonzero()[:, 0].split(size):
            if len(some):  # nothing comes in one part, too
                yield Embedded([self.collection.id(item) for item in some.tolist()], *self.collection.vectors(some))

    def bytes_each(self) -> dict[str, float]:
        """Mean bytes of an item, by what they are for: `scan`, `certificate`, `floats`, `other`."""
        kinds: dict[str, str] = {"scan": "scan", "floats": "floats"}
        kinds |= dict.fromkeys(("lead", "rest", "steps", "errors", "tails", "gram", "reach", "norms"), "certificate")
        total: dict[str, float] = {"scan": 0.0, "certificate": 0.0, "floats": 0.0, "other": 0.0}
        for segment in self.collection.segments:
            for name, array in segment.arrays.items():
                total[kinds.get(name, "other")] += array.nbytes / len(self.collection)
        return total

    def describe_bytes(self) -> str:
        """Mean bytes of an item, in words."""
        return ", ".join(f"{each:.0f} bytes {kind}" for kind, each in self.bytes_each().items()) + " each"

    def metadata(self, name: str) -> dict[str, Any]:
        """What was kept of an item besides its vectors.

        Raises:
            KeyError: it is not in the index.
        """
        item = self.collection.find(name)
        if item is None:
            raise KeyError(f"{name!r} is not in {self.path}")
        return self.collection.metadata(item)

    def _adopt(self, manifest: Manifest) -> None:
        segments = []
        for entry in manifest.segments:
            segment = Segment(self.path / entry.file)
            if len(segment.mapped) != entry.bytes or len(segment) != entry.items:
                raise ValueError(f"{segment.path} is damaged: it is not what {MANIFEST} says. Build the index again.")
            if entry.bytes <= SMALL:
                check_hash(segment.path, entry.sha256)
            segments.append(segment)
        self.quantizer, self.cells = _read_quantizer(self.path, manifest.quantizer)
        for segment in segments:
            if not _is_as_told(segment, manifest, compressed=self.quantizer is not None):
                raise ValueError(
                    f"{self.path} is damaged: {segment.path.name} is not what {MANIFEST} says, or {QUANTIZER} "
                    "is missing. Build the index again."
                )
        self.manifest = manifest
        self.collection = Collection(segments, manifest.segments, self._again)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Manifest]:
        """Alone with the index as it is now, without what killed writers left."""
        with locked(self.path / MANIFEST):
            self.refresh()
            remove_strangers(self.path, self.manifest)
            yield self.manifest

    def _commit(self, manifest: Manifest) -> None:
        manifest.save(self.path)
        self._adopt(manifest)
        remove_strangers(self.path, manifest)

    def _named(self, ids: Sequence[str], items: Tensor) -> Tensor:
        """The numbers of what an engine named, as far as it may be found."""
        refuse_string("what the engine names", ids, "ids")
        found = {item for name in ids if (item := self.collection.find(name)) is not None}
        numbers = torch.tensor(sorted(found), dtype=torch.long)
        return numbers[torch.isin(numbers, items)]

    def _recall(self, rescored: int) -> float | None:
        """What was measured of searches that score so many items, or of such that score fewer."""
        note = self.manifest.recall
        return None if note is None or rescored < note["rescored"] else note["percent"]

    def _found(self, ranked: Ranked, searched: int, recall: float | None) -> Found:
        check_scores(ranked.scores, lambda place: repr(self.collection.id(int(ranked.items[place]))))
        pairs = zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True)
        hits = [Hit(self.collection.id(item), score, ranked.certified, []) for item, score in pairs]
        return Found(hits, ranked.rescored, searched, 100.0 if ranked.certified else recall)

    def _with_words(self, matcher: Matcher, query: Any, vectors: Tensor, hits: list[Hit]) -> list[Hit]:
        """The hits with what every word contributes."""
        how, of_images = matcher.head.comparison, self.manifest.indexed == "images"
        words = matcher.token_words(query) if of_images else []
        told = []
        for hit in hits:
            item = self.collection.find(hit.image_id)
            assert item is not None, "what was found is there"
            found, mask = self.collection.vectors(torch.tensor([item]))
            sides = (found[0][mask[0]], vectors) if of_images else (vectors, found[0][mask[0]])
            with evaluating(matcher):
                shares, regions = word_shares(how, *sides)
            boxes = self.collection.boxes(item) if of_images else None
            if not of_images:
                words = matcher.token_words(self.collection.metadata(item)["caption"])
            places = [None if boxes is None else tuple(boxes[region].tolist()) for region in regions.tolist()]
            each = zip(words, places, shares.tolist(), strict=True)
            told.append(hit._replace(words=[WordHit(*one) for one in each]))
        return told

    def _again(self, part: Part) -> tuple[Tensor, Tensor]:
        """The vectors of items that the index does not keep, made sure to be those that it was built of."""
        if self.source is None:
            raise ValueError(
                f"{self.path} keeps no float vectors: open it with the source of its images, "
                "Index.open(path, source=store)"
            )
        if self._matcher is None:
            raise ValueError(f"{self.path} keeps no float vectors: pass the matcher that makes them again, matcher=...")
        places = part.segment.arrays["places"][part.items.numpy()]
        if int(places.max()) >= len(self.source):
            raise ValueError(f"{self.path} was built of more images than the {len(self.source)} of its source")
        blocks = embedded_blocks(self._matcher, self.source, places=places.tolist())
        vectors = torch.cat([block.vectors for block in blocks])
        lengths = part.segment.lengths[part.items]
        known = len(vectors) == int(lengths.sum()) and self._are_those(part, vectors)
        self.collection.let_go(part.segment)
        if not known:
            raise ValueError(f"the source of {self.path} gives other images than those that it was built of")
        return padded(vectors, lengths)

    def _are_those(self, part: Part, vectors: Float[Tensor, "row dim"]) -> bool:
        """Whether vectors are as near to the compressed ones as these say."""
        assert self.quantizer is not None, "vectors that are not kept were compressed"
        rows = part.segment.rows(part.items).numpy()
        arrays = part.segment.arrays
        believed = self.quantizer.decode(*(arrays[name][rows] for name in ("lead", "rest", "steps")))
        missed = (self.quantizer.rotate(vectors) - believed).norm(dim=1)
        return bool((missed <= torch.from_numpy(arrays["errors"][rows]).float() + 1e-4 * vectors.norm(dim=1)).all())


def _is_as_told(segment: Segment, manifest: Manifest, *, compressed: bool) -> bool:
    """Whether a segment has vectors in as many bits and coordinates as the manifest says."""
    arrays, certified = segment.arrays, compressed and manifest.bits == 8
    dim = arrays["floats"].shape[1] if "floats" in arrays else manifest.dim
    return ("scan" in arrays, "lead" in arrays, dim) == (compressed, certified, manifest.dim)


def _data(items: Any) -> dict[str, Any]:
    """What vectors are made of, as far as the source says."""
    if indexed_side(items) == "captions":
        return {}
    return {"sizes": dict(items.sizes), "extractor": items.extractor}


def _read_quantizer(folder: Path, wanted: str) -> tuple[Quantizer | None, Cells | None]:
    path = folder / QUANTIZER
    if not wanted and not path.is_file():
        return None, None
    check_hash(path, wanted)
    try:
        arrays = load_file(path)
        cells = Cells(torch.from_numpy(arrays["centers"])) if "centers" in arrays else None
        return Quantizer.from_arrays(arrays), cells
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}). Build the index again.") from error


class _Writer:
    """Writes items into new segments of a folder."""

    def __init__(
        self,
        folder: Path,
        matcher: Matcher,
        metadata: Mapping[str, Mapping[str, Any]],
        floats: bool,
        progress: bool,
    ) -> None:
        self.folder, self.matcher, self.metadata = folder, matcher, metadata
        self.floats, self.progress = floats, progress
        self.quantizer, self.cells = _read_quantizer(folder, "")

    def append(self, manifest: Manifest, items: Any, size: int) -> Manifest:
        """The manifest that names segments of these items too."""
        how = self.matcher.head.comparison
        gram = isinstance(how, CrossAttention) and (
            how.both or (how.direction == "t2i") == (manifest.indexed == "images")
        )
        ids, entries, number, dim = item_ids(items), [], manifest.next_segment, manifest.dim
        options = {"bits": manifest.bits, "gram": gram, "floats": self.floats}
        starts = range(0, len(ids), size)
        bar = bar_options(self.progress and len(starts) > 1)
        for start in tqdm(starts, "indexing", unit="segment", **bar):
            places = range(start, min(start + size, len(ids)))
            drafts = []
            for block in embedded_blocks(
                self.matcher, items, places=places, metadata=self.metadata, progress=self.progress and len(starts) == 1
            ):
                drafts.append(draft(block, self.quantizer, **options))
                dim = block.vectors.shape[1]
            path = self.folder / SEGMENT.format(number)
            write_segment(path, drafts, self.cells)
            entries.append(SegmentEntry.of(path, len(places)))
            number += 1
        return replace(manifest, segments=[*manifest.segments, *entries], next_segment=number, dim=dim)
