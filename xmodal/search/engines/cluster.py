"""A collection on several servers, whose answers are those of one, or say what they lack.

Items are dealt to the servers in turn. A query's vectors are sent to all of them at once; what is near to each vector
is merged, and cut where one server with everything would have cut it. The best items' vectors are fetched and scored
by the head. As merging depends on nothing but the vectors, the answer is the same on however many servers they are.

A server that does not answer is named in every answer, with the number of items that nobody looked at.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from xmodal.data.atomic import refuse_existing, written_whole
from xmodal.heads.comparison import CrossAttention, InnerProduct
from xmodal.numerics import check_count
from xmodal.schema import CountOrNone, check_fields
from xmodal.search.bound import MARGIN
from xmodal.search.embed import embedded_queries, is_one
from xmodal.search.engines.nomination import Nominee, merged, nominated
from xmodal.search.engines.roster import RETRY_AFTER, Missing, Roster, make_servers
from xmodal.search.engines.server import PLACES, Unavailable
from xmodal.search.hits import Hit
from xmodal.search.manifest import Indexed  # noqa: TC001  # read at run time, when a file is checked
from xmodal.search.ranking import Declared, score_vectors
from xmodal.search.segment import padded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from xmodal.model import Matcher
    from xmodal.search.engines.server import VectorServer
    from xmodal.search.index import Index

FORMAT = "xmodal cluster"
VERSION = 1

NEAR = 512
"""Vectors that are found for each vector of a query."""

RESCORED = 200
"""Items that are scored by the head."""

_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """The hits of a query, best first, and whether anything is missing."""

    hits: list[Hit]
    rescored: int
    """Items that the head scored."""
    searched: int
    """Items that could have been found: those of the servers that answered."""
    missing: list[Missing]
    """Servers that did not answer; empty for a whole answer."""

    @property
    def whole(self) -> bool:
        """Whether every server answered."""
        return not self.missing

    def describe(self) -> str:
        """Of how much the answer is, in a line.

        >>> Answer([], 0, 825, [Missing("Milvus at unix:/a", 825, "connection refused")]).describe()
        'degraded: 825 of 1,650 items were not looked at, those of Milvus at unix:/a (825: connection refused)'
        >>> Answer([], 0, 1650, []).describe()
        'whole: all 1,650 items were searched'
        """
        if self.whole:
            return f"whole: all {self.searched:,} items were searched"
        lost = sum(each.items for each in self.missing)
        which = ", ".join(f"{each.server} ({each.items:,}: {each.reason})" for each in self.missing)
        return f"degraded: {lost:,} of {self.searched + lost:,} items were not looked at, those of {which}"


@dataclass(frozen=True)
class Plan:
    """What is kept of a cluster on this side: a small file."""

    indexed: Indexed
    model: str
    """Hash of the matcher that embedded the items; only its queries are comparable."""
    collection: str
    """Its name on all servers; every build takes a new one, so that nothing is there half."""
    servers: list[dict[str, Any]]
    """The options of each."""
    items: list[CountOrNone]
    """How many items each holds."""
    vectors: list[CountOrNone]
    """How many vectors each holds."""
    format: str = FORMAT
    version: int = VERSION

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a file.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged, or of a version that this one does not know.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no cluster {path}; Cluster.build makes one")
        try:
            plan = cls(**json.loads(path.read_bytes()))
            check_fields(plan)
            if (plan.format, plan.version) != (FORMAT, VERSION):
                raise ValueError(f"it is {plan.format!r} {plan.version!r}, wanted {FORMAT!r} {VERSION}")
            if not len(plan.servers) == len(plan.items) == len(plan.vectors) > 0:
                raise ValueError("servers, items and vectors differ in number")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged or foreign ({error}). Build the cluster again.") from error
        return plan


class Cluster:
    """A collection on several servers; `Cluster.build` fills them from an index, a small file says where it is.

    Args:
        path: the file.
        retry_after: seconds for which a server that failed is not asked again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.

    Example:
        >>> import torch
        >>> from xmodal.data import RegionStore, RegionStoreWriter
        >>> from xmodal.model import Matcher
        >>> from xmodal.search.engines.cluster import Cluster
        >>> from xmodal.search.index import Index
        >>> with RegionStoreWriter("test.h5", dim=8, extractor="by hand") as writer:
        ...     for name in ("dog", "cat", "cow"):
        ...         writer.write(name, torch.randn(5, 8))
        >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
        >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
        >>> index = Index.build(matcher, RegionStore("test.h5"), "test.index")
        >>> disks = [{"name": "folder", "path": path} for path in ("disk1", "disk2")]
        >>> cluster = Cluster.build(index, "test.cluster.json", disks)
        >>> answer = cluster.search(matcher, "a dog", k=2)
        >>> [hit.image_id for hit in answer.hits] == [hit.image_id for hit in index.search(matcher, "a dog", k=2)]
        True
        >>> answer.describe()
        'whole: all 3 items were searched'
    """

    def __init__(self, path: str | Path, *, retry_after: float = RETRY_AFTER) -> None:
        self.path = Path(path)
        self.plan = Plan.load(self.path)
        servers = make_servers(self.plan.servers)
        self.roster = Roster(servers, self.plan.collection, self.plan.items, self.plan.vectors, retry_after=retry_after)

    @classmethod
    def open(cls, path: str | Path, *, retry_after: float = RETRY_AFTER) -> Cluster:
        """The cluster of a file; arguments and errors are those of the class."""
        return cls(path, retry_after=retry_after)

    @classmethod
    def build(
        cls,
        index: Index,
        path: str | Path,
        servers: Sequence[Mapping[str, Any]],
        *,
        matcher: Matcher | None = None,
        overwrite: bool = False,
    ) -> Cluster:
        """Deal the items of an index to servers; the file appears when all are there, or not at all.

        Args:
            index: what they are filled from; it changes, they are built again.
            path: the file to write.
            servers: the options of each, `{"name": "milvus", "uri": "http://10.0.0.7:19530"}`; names are those of
                `SERVERS`.
            matcher: the one that the index was built with, for an index that was built with `floats=False`.
            overwrite: replace a cluster that is there, on its servers too, once the new one is whole.

        Raises:
            FileExistsError: `path` exists and `overwrite` is False.
            ValueError: the index is empty, an id cannot be kept, or vectors are not kept and nothing makes them again.
            Unavailable: a server does not answer; nothing is left on the others.
        """
        path = Path(path)
        if not overwrite:
            refuse_existing(path)
        old = None
        with contextlib.suppress(FileNotFoundError, ValueError):  # what is damaged is replaced, too
            old = cls(path)
        makers, collection = make_servers(servers), f"xmodal_{secrets.token_hex(8)}"
        try:
            items, vectors = _fill(index, makers, collection, matcher)
            plan = Plan(
                index.manifest.indexed,
                index.manifest.model,
                collection,
                [dict(each) for each in servers],
                items,
                vectors,
            )
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(asdict(plan), ensure_ascii=False), encoding="utf-8")
        except BaseException:
            _drop(makers, collection)
            raise
        finally:
            for maker in makers:
                maker.close()
        if old is not None:
            _drop(old.roster.servers, old.plan.collection)
        return cls(path)

    def __len__(self) -> int:
        return sum(self.plan.items)

    def __repr__(self) -> str:
        return f"Cluster({str(self.path)!r}): {len(self)} {self.plan.indexed} on {len(self.plan.servers)} servers"

    def search(self, matcher: Matcher, queries: Any, k: int = 10, *, near: int = NEAR, rescored: int = RESCORED) -> Any:
        """The best items of a query, an `Answer`; for a list of queries, a list of answers.

        Args:
            matcher: the one that the index was built with.
            queries: as for `Index.search`.
            k: how many hits.
            near: vectors to find for each vector of a query, at least `rescored`; more where they are of fewer than `k`
                items.
            rescored: items to score by the head, at least `k`.

        Raises:
            ValueError: the matcher is another one, its head compares in another way than by attention or inner
                product, or `k` is not positive.
            Unavailable: no server answers.
        """
        one = is_one(queries)
        answers = self.find(matcher, [queries] if one else queries, k, near=near, rescored=rescored)
        return answers[0] if one else answers

    def find(
        self, matcher: Matcher, queries: Sequence[Any], k: int = 10, *, near: int = NEAR, rescored: int = RESCORED
    ) -> list[Answer]:
        """As `search`, of several queries."""
        for name, value in (("k", k), ("near", near), ("rescored", rescored)):
            check_count(name, value)
        found = matcher.fingerprint(trusting=True)
        if found != self.plan.model:
            raise ValueError(
                f"{self.path} was built with another model ({self.plan.model[:12]}...) than this one "
                f"({found[:12]}...): its scores would mean nothing. Build it again from an index of this model."
            )
        how = matcher.head.comparison
        if not isinstance(how, (CrossAttention, InnerProduct)):
            raise ValueError(
                "the head compares in a way of its own, of which the products of vectors say nothing; search an index, "
                "which scores everything"
            )
        asked = embedded_queries(matcher, queries, self.plan.indexed)
        rescored = max(k, rescored)
        return self._answers(how, asked, k, max(near, rescored), rescored) if asked else []

    def candidates(self, query_words: Float[Tensor, "word dim"], k: int) -> list[str]:
        """The ids of items that may match best: this is a `CandidateEngine` for `Index.search`.

        Raises:
            Unavailable: a server does not answer: what is not looked at could not be told.
        """
        chosen, _, failures = self._chosen([query_words], max(NEAR, k), k, k)
        if failures:
            server, items, reason = self.roster.missing(failures)[0]
            raise Unavailable(server, f"{reason}; its {items:,} items were not looked at")
        return [nominee.near.id for nominee in chosen[0]]

    def _answers(
        self, how: CrossAttention | InnerProduct, asked: Sequence[Tensor], k: int, near: int, rescored: int
    ) -> list[Answer]:
        chosen, vectors, failures = self._chosen(asked, near, rescored, k)
        missing = self.roster.missing(failures)
        if len(missing) == len(self.roster.servers):
            raise Unavailable(missing[0].server, f"{missing[0].reason}; no server of {self.path} answers")
        searched = len(self) - sum(each.items for each in missing)
        answers = []
        for query, nominees in zip(asked, chosen, strict=True):
            rows = [vectors[nominee.number] for nominee in nominees]
            items, mask = padded(torch.cat(rows), torch.tensor([len(each) for each in rows]))
            scores = self._scores(how, query, items, mask).tolist()
            best = sorted(zip(scores, nominees, strict=True), key=lambda pair: (-pair[0], pair[1].number))[:k]
            certified = len(nominees) == len(self) or (not missing and self._sure(how, query, nominees, best[-1][0]))
            hits = [Hit(nominee.near.id, score, certified) for score, nominee in best]
            answers.append(Answer(hits, len(nominees), searched, missing))
        if missing:
            _log.warning("%s: %s", self.path, answers[0].describe())
        return answers

    def _sure(
        self, how: CrossAttention | InnerProduct, query: Tensor, nominees: Sequence[Nominee], least: float
    ) -> bool:
        """Whether no item that was left out can score more than the least of the hits.

        Of attention that is not known. Where a score is a product, whoever was left out has a smaller one than the last
        of those that were nominated.
        """
        if not isinstance(how, InnerProduct) or not all(server.exact for server in self.roster.servers):
            return False
        left_out = nominees[-1].near.product * float(query.norm())
        return left_out <= least - MARGIN * max(1.0, abs(least))

    def _scores(
        self, how: CrossAttention | InnerProduct, query: Tensor, items: Tensor, mask: Tensor
    ) -> Float[Tensor, " item"]:
        if isinstance(how, InnerProduct):
            return items[:, 0] @ query[0]
        return score_vectors(Declared(how), self.plan.indexed, query, items, mask)

    def _chosen(
        self, asked: Sequence[Tensor], near: int, count: int, least: int
    ) -> tuple[list[list[Nominee]], dict[int, Tensor], dict[int, str]]:
        """As `_nearest`, but more vectors are looked for where these are of fewer items than `least`."""
        while True:
            chosen, vectors, failures = self._nearest(asked, near, count)
            there = len(self) - sum(self.plan.items[number] for number in failures)
            most = sum(self.plan.vectors)
            if near >= most or min(map(len, chosen)) >= min(least, there):
                return chosen, vectors, failures
            near = min(4 * near, most)

    def _nearest(
        self, asked: Sequence[Tensor], near: int, count: int
    ) -> tuple[list[list[Nominee]], dict[int, Tensor], dict[int, str]]:
        """The items to score for every query, their vectors by number, and which servers failed, for what reason.

        A server that fails when it is to give vectors is taken as if it had never answered.
        """
        unit = F.normalize(torch.cat(list(asked)), dim=1)  # no vector of a query counts for its length
        tasks = {
            n: lambda collection, server=server: server.nearest(collection, unit, near)
            for n, server in enumerate(self.roster.servers)
        }
        lists, failures = self.roster.ask(tasks)
        while True:
            by_row = [
                merged({n: found[row] for n, found in lists.items()}, len(self.roster.servers), near)
                for row in range(len(unit))
            ]
            starts = torch.tensor([0, *(len(query) for query in asked)]).cumsum(0).tolist()
            chosen = [
                nominated(by_row[start:stop], count) if lists else [] for start, stop in itertools.pairwise(starts)
            ]
            vectors, failed = self._vectors([nominee for nominees in chosen for nominee in nominees])
            if not failed:
                return chosen, vectors, failures
            failures |= failed
            lists = {n: found for n, found in lists.items() if n not in failed}

    def _vectors(self, nominees: Sequence[Nominee]) -> tuple[dict[int, Tensor], dict[int, str]]:
        """The vectors of items by number, and which servers failed to give them."""
        wanted: dict[int, dict[int, Nominee]] = {}
        for nominee in nominees:
            wanted.setdefault(nominee.server, {})[nominee.number] = nominee
        tasks = {
            n: lambda collection, server=self.roster.servers[n], some=some: server.vectors(
                collection, [nominee.near for nominee in some.values()]
            )
            for n, some in wanted.items()
        }
        given, failures = self.roster.ask(tasks)
        vectors = {number: rows for n, some in given.items() for number, rows in zip(wanted[n], some, strict=True)}
        return vectors, failures


def _fill(
    index: Index, servers: Sequence[VectorServer], collection: str, matcher: Matcher | None
) -> tuple[list[int], list[int]]:
    """Deal the items of an index in turn; how many items and vectors each server has then."""
    ids = index.ids
    if len(ids) < len(servers):
        raise ValueError(f"{index.path} holds {len(ids)} items, fewer than there are servers ({len(servers)})")
    if strangers := [name for name in ids if name.encode("utf-8", "replace").decode() != name]:
        raise ValueError(f"id {strangers[0]!r} is no valid UTF-8, which servers cannot keep")
    longest = max(len(name.encode()) for name in ids)
    items, vectors, start = [0] * len(servers), [0] * len(servers), 0
    for block in index.embedded(matcher=matcher):
        if block.mask.shape[1] >= PLACES:
            raise ValueError(f"an item has {block.mask.shape[1]} vectors; wanted fewer than {PLACES}")
        for number, server in enumerate(servers):
            if not start:
                server.create(collection, block.vectors.shape[2], longest)
            some = slice((number - start) % len(servers), None, len(servers))
            mask = block.mask[some]
            if len(mask):
                server.insert(collection, items[number], block.ids[some], block.vectors[some], mask)
            items[number] += len(mask)
            vectors[number] += int(mask.sum())
        start += len(block.ids)
    for server in servers:
        server.finish(collection)
    return items, vectors


def _drop(servers: Sequence[VectorServer], collection: str) -> None:
    """Remove a collection wherever that is possible."""
    for server in servers:
        try:
            server.drop(collection)
        except Unavailable as error:
            _log.warning("%s may still hold the collection %s, which nobody needs", error, collection)
        server.close()
