"""The servers of a cluster: asked at the same time, and known for what they hold when they do not answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from xmodal.names import build
from xmodal.search.engines.folder import Folder
from xmodal.search.engines.milvus import Milvus
from xmodal.search.engines.postgres import Postgres
from xmodal.search.engines.server import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xmodal.search.engines.server import VectorServer

SERVERS: dict[str, Callable[..., VectorServer]] = {"folder": Folder, "milvus": Milvus, "postgres": Postgres}
"""Servers of vectors by name; others are `package.module:Class`."""

RETRY_AFTER = 5.0
"""Seconds for which a server that failed is left alone, so that not every query waits for it."""

Answer = TypeVar("Answer")


class Missing(NamedTuple):
    """A server that did not answer, and what was not looked at for that."""

    server: str
    items: int
    reason: str


def make_servers(options: Sequence[Mapping[str, Any]]) -> list[VectorServer]:
    """The servers that options name.

    Raises:
        ValueError: there is none, one is named twice, or an option is wrong.

    >>> [server.address for server in make_servers([{"name": "folder", "path": "a"}, {"name": "folder", "path": "b"}])]
    ['folder a', 'folder b']
    """
    servers = [build("vector server", SERVERS, given) for given in options]
    addresses = [server.address for server in servers]
    if not servers:
        raise ValueError("no server is named; give at least one")
    if twice := [address for place, address in enumerate(addresses) if address in addresses[:place]]:
        raise ValueError(f"{twice[0]} is named twice; every server holds a part of its own")
    return servers


class Roster:
    """Servers, each with a part of a collection.

    Args:
        servers: what speaks to them.
        collection: what it is called on all of them.
        items: how many items each holds.
        vectors: how many vectors each holds, which is checked before it is asked first, and after it failed.
        retry_after: seconds for which a server that failed is not asked again.

    Example:
        >>> import torch
        >>> from xmodal.search.engines.roster import Roster, make_servers
        >>> servers = make_servers([{"name": "folder", "path": "there"}, {"name": "folder", "path": "gone"}])
        >>> servers[0].create("photos", dim=2, id_bytes=8)
        >>> servers[0].insert("photos", 0, ["7"], torch.ones(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))
        >>> roster = Roster(servers, "photos", items=[1, 1], vectors=[1, 1])
        >>> answers, failures = roster.ask({0: servers[0].count, 1: servers[1].count})
        >>> answers, [(each.server, each.items) for each in roster.missing(failures)]
        ({0: 1}, [('folder gone', 1)])
    """

    def __init__(
        self,
        servers: Sequence[VectorServer],
        collection: str,
        items: Sequence[int],
        vectors: Sequence[int],
        *,
        retry_after: float = RETRY_AFTER,
    ) -> None:
        self.servers, self.collection = list(servers), collection
        self.items, self.vectors, self.retry_after = list(items), list(vectors), retry_after
        self._locks = [Lock() for _ in servers]
        self._checked = [False] * len(servers)
        self._failed: list[tuple[float, str] | None] = [None] * len(servers)

    def ask(self, tasks: Mapping[int, Callable[[str], Answer]]) -> tuple[dict[int, Answer], dict[int, str]]:
        """Call something of several servers at the same time, with the name of the collection.

        Returns:
            what those answered that did, and why the others did not.
        """
        with ThreadPoolExecutor(max(1, len(tasks))) as pool:
            asked = {number: pool.submit(self._call, number, task) for number, task in tasks.items()}
        errors = {number: future.exception() for number, future in asked.items()}
        failures = {number: error.reason for number, error in errors.items() if isinstance(error, Unavailable)}
        return {number: future.result() for number, future in asked.items() if number not in failures}, failures

    def missing(self, failures: Mapping[int, str]) -> list[Missing]:
        """What was not looked at because of some failures."""
        return [Missing(self.servers[n].address, self.items[n], why) for n, why in sorted(failures.items())]

    def _call(self, number: int, task: Callable[[str], Answer]) -> Answer:
        with self._locks[number]:
            failed, address = self._failed[number], self.servers[number].address
            if failed is not None and time.monotonic() - failed[0] < self.retry_after:
                raise Unavailable(address, failed[1])
            try:
                if not self._checked[number]:
                    self._check(number)
                answer = task(self.collection)
            except Unavailable as error:
                self._failed[number], self._checked[number] = (time.monotonic(), error.reason), False
                self.servers[number].close()
                raise
            self._failed[number] = None
            return answer

    def _check(self, number: int) -> None:
        held, wanted = self.servers[number].count(self.collection), self.vectors[number]
        if held != wanted:
            why = f"holds {held:,} of the {wanted:,} vectors of {self.collection}; build the cluster again"
            raise Unavailable(self.servers[number].address, why)
        self._checked[number] = True
