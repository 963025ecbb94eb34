"""Milvus as a server of vectors, over gRPC: one row a vector, found by inner product."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xmodal.search.engines.server import PLACES, Near, Unavailable, vector_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

FLOATS = 1 << 22
"""Of one message: 16 MiB, where Milvus takes 64."""

ROWS = 4096
"""Of one message, where Milvus gives 16,384."""

ASKED = 128
"""Vectors of one search."""

MOST = 16384
"""Vectors that Milvus finds for one, at most."""

PATIENCE = 600.0
"""Seconds that building an index or loading it may take."""


class Milvus:
    """A server of Milvus, or a file of Milvus Lite.

    Args:
        uri: `http://host:19530`, `unix:` and a socket, or a file that ends in `.db` for Milvus Lite. A token is taken
            from the environment, `XMODAL_MILVUS_TOKEN`, so that no file holds it.
        approximate: search a graph (HNSW) instead of all vectors: much faster, and some are missed.
        timeout: seconds that the server may take to answer.

    Raises:
        ImportError: pymilvus is not installed.
        ValueError: the address holds a password.

    Example:
        >>> from xmodal.search.engines.milvus import Milvus
        >>> Milvus("http://127.0.0.1:19530").address
        'Milvus at http://127.0.0.1:19530'
    """

    def __init__(
        self, uri: str = "http://127.0.0.1:19530", *, approximate: bool = False, timeout: float = 10.0
    ) -> None:
        if "@" in uri:
            raise ValueError(
                "the address of a Milvus server holds a name or password, which would be kept in a file; put "
                "name:password into the environment variable XMODAL_MILVUS_TOKEN"
            )
        try:
            import pymilvus
        except ImportError as error:
            raise ImportError(f"Milvus needs pymilvus ({error}): pip install 'xmodal[milvus]'") from error
        # It logs tracebacks of errors that it also raises.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self.uri, self.approximate, self.timeout = uri, approximate, timeout
        self.exact = not approximate
        self.address = f"Milvus at {uri}"
        self._milvus, self._made = pymilvus, None

    def create(self, collection: str, dim: int, id_bytes: int) -> None:  # noqa: D102
        kinds = self._milvus.DataType
        with self._client() as client:
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("key", kinds.INT64, is_primary=True)
            schema.add_field("name", kinds.VARCHAR, max_length=id_bytes)
            schema.add_field("places", kinds.INT32)
            schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dim)
            options = {"consistency_level": "Strong", "timeout": self.timeout}
            client.create_collection(collection, schema=schema, **options)

    def insert(  # noqa: D102
        self,
        collection: str,
        first: int,
        ids: Sequence[str],
        vectors: Float[Tensor, "item place dim"],
        mask: Bool[Tensor, "item place"],
    ) -> None:
        rows = [
            {"key": (first + item) * PLACES + place, "name": ids[item], "places": int(real.sum()), "vector": vector}
            for item, real in enumerate(mask)
            for place, vector in enumerate(vectors[item][real].float().numpy())
        ]
        size = max(1, min(ROWS, FLOATS // vectors.shape[2]))
        with self._client() as client:
            for start in range(0, len(rows), size):
                client.insert(collection, rows[start : start + size], timeout=PATIENCE)

    def finish(self, collection: str) -> None:  # noqa: D102
        kind: dict[str, Any] = {"index_type": "FLAT", "params": {}}
        if self.approximate:
            kind = {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}}
        with self._client() as client:
            client.flush(collection, timeout=PATIENCE)
            index = client.prepare_index_params()
            index.add_index(field_name="vector", index_name="vector", metric_type="IP", **kind)
            client.create_index(collection, index, timeout=PATIENCE)
            client.load_collection(collection, timeout=PATIENCE)

    def count(self, collection: str) -> int:  # noqa: D102
        with self._client() as client:
            options = {"consistency_level": "Strong", "timeout": self.timeout}
            return int(client.query(collection, filter="", output_fields=["count(*)"], **options)[0]["count(*)"])

    def nearest(self, collection: str, asked: Float[Tensor, "asked dim"], count: int) -> list[list[Near]]:  # noqa: D102
        if count > MOST:
            raise ValueError(f"{count} vectors were asked for; Milvus finds {MOST} at most")
        # A graph finds more the more of its nodes are looked at.
        params = {"ef": min(2 * count, 32768)} if self.approximate else {}
        options = {
            "anns_field": "vector",
            "search_params": {"metric_type": "IP", "params": params},
            "output_fields": ["key", "name", "places"],
            "consistency_level": "Strong",
            "timeout": self.timeout,
        }
        found: list[list[Near]] = []
        with self._client() as client:
            for some in asked.split(ASKED):
                for hits in client.search(collection, list(some.float().numpy()), limit=count, **options):
                    rows = [(hit["entity"], hit["distance"]) for hit in hits]
                    found.append([Near(of["name"], of["key"] // PLACES, of["places"], near) for of, near in rows])
        return found

    def vectors(self, collection: str, items: Sequence[Near]) -> list[Float[Tensor, "place dim"]]:  # noqa: D102
        keys, known = vector_keys(items), {}
        options = {"output_fields": ["key", "vector"], "consistency_level": "Strong", "timeout": self.timeout}
        with self._client() as client:
            for start in range(0, len(keys), ROWS):
                for row in client.get(collection, ids=keys[start : start + ROWS], **options):
                    known[row["key"]] = row["vector"]
        if lost := [each for each in items if any(key not in known for key in vector_keys([each]))]:
            raise Unavailable(self.address, f"vectors of {lost[0].id!r} are gone")
        return [torch.from_numpy(np.array([known[key] for key in vector_keys([each])], np.float32)) for each in items]

    def drop(self, collection: str) -> None:  # noqa: D102
        with self._client() as client:
            client.drop_collection(collection, timeout=self.timeout)

    def close(self) -> None:  # noqa: D102
        made, self._made = self._made, None
        if made is not None:
            with contextlib.suppress(Exception):  # it is given up, whatever it says to that
                made.close()

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        """The connection; one that failed is given up, and the next call makes a new one."""
        import grpc

        try:
            if self._made is None:
                token = os.environ.get("XMODAL_MILVUS_TOKEN", "")
                self._made = self._milvus.MilvusClient(self.uri, token=token, timeout=self.timeout, dedicated=True)
            yield self._made
        except (self._milvus.MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
            self.close()
            raise Unavailable(self.address, _told(error)) from error


def _told(error: Any) -> str:
    """What went wrong, without the names of classes: Milvus has messages, gRPC has codes and details."""
    if callable(getattr(error, "details", None)):
        return f"{error.code().name.lower().replace('_', ' ')}: {error.details()}"
    return getattr(error, "message", "") or str(error) or type(error).__name__
