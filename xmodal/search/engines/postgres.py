"""PostgreSQL with pgvector as a server of vectors: one row a vector, found by inner product."""

from __future__ import annotations

import contextlib
import io
import math
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xmodal.search.engines.server import PLACES, Near, Unavailable, vector_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
"""Of PostgreSQL's binary COPY (its manual, "COPY", Binary Format)."""

PLAIN_BYTES = 7900
"""A vector of so many bytes fits into a page of a table; a larger one lies outside of it."""

PATIENCE = 3600.0
"""Seconds that filling a table or building an index may take."""

NEAREST = """
SELECT asked.number, items.id, items.number, items.places, near.product
FROM unnest(%s::vector[]) WITH ORDINALITY AS asked (vector, number)
CROSS JOIN LATERAL (
    SELECT key, -(held.vector <#> asked.vector) AS product FROM {vectors} AS held
    ORDER BY held.vector <#> asked.vector LIMIT %s
) AS near
JOIN {items} AS items ON items.number = near.key / %s
ORDER BY asked.number, near.product DESC
"""


class Postgres:
    """A database of PostgreSQL that has the extension pgvector.

    Args:
        dsn: how libpq connects: `host=10.0.0.7 dbname=photos user=me`, or `postgresql://me@10.0.0.7/photos`. A password
            is taken from where libpq looks for it, `~/.pgpass` or the environment, so that no file of ours holds it.
        approximate: search a graph (HNSW) instead of all vectors: much faster, and some are missed. For vectors of at
            most 2,000 dimensions.
        timeout: seconds that the server may take to answer.

    Raises:
        ImportError: psycopg2 is not installed.
        ValueError: the address holds a password, or is none.

    Example:
        >>> from xmodal.search.engines.postgres import Postgres
        >>> Postgres("host=127.0.0.1 dbname=photos").address
        'PostgreSQL at host=127.0.0.1 dbname=photos'
    """

    def __init__(self, dsn: str, *, approximate: bool = False, timeout: float = 10.0) -> None:
        try:
            import psycopg2
            import psycopg2.extensions
            import psycopg2.sql
        except ImportError as error:
            raise ImportError(f"PostgreSQL needs psycopg2 ({error}): pip install 'xmodal[postgres]'") from error
        try:
            parts = psycopg2.extensions.parse_dsn(dsn)
        except psycopg2.ProgrammingError as error:
            raise ValueError(f"{dsn!r} is no address of PostgreSQL: {error}") from error
        if "password" in parts:
            raise ValueError(
                "the address of a PostgreSQL server holds a password, which would be kept in a file; put it into "
                "~/.pgpass or the environment variable PGPASSWORD"
            )
        self.dsn, self.approximate, self.timeout = dsn, approximate, timeout
        self.exact = not approximate
        self.address = f"PostgreSQL at {dsn}"
        self._psycopg2, self._made = psycopg2, None

    def create(self, collection: str, dim: int, id_bytes: int) -> None:  # noqa: D102
        storage = "PLAIN" if 4 * dim <= PLAIN_BYTES else "EXTERNAL"
        self._run("CREATE EXTENSION IF NOT EXISTS vector")
        self._run("CREATE TABLE {items} (number bigint PRIMARY KEY, id text, places integer)", collection)
        self._run(f"CREATE TABLE {{vectors}} (key bigint PRIMARY KEY, vector vector({int(dim)}))", collection)
        self._run(f"ALTER TABLE {{vectors}} ALTER COLUMN vector SET STORAGE {storage}", collection)

    def insert(  # noqa: D102
        self,
        collection: str,
        first: int,
        ids: Sequence[str],
        vectors: Float[Tensor, "item place dim"],
        mask: Bool[Tensor, "item place"],
    ) -> None:
        numbers = first + torch.arange(len(ids))
        keys = (numbers[:, None] * PLACES + torch.arange(mask.shape[1]))[mask]
        lengths = mask.sum(dim=1)
        rows = np.zeros(len(keys), _row(vectors.shape[2]))
        rows["fields"], rows["key_bytes"], rows["key"] = 2, 8, keys.numpy()
        rows["vector_bytes"], rows["dim"] = 4 + 4 * vectors.shape[2], vectors.shape[2]
        rows["vector"] = vectors[mask].float().numpy()
        with self._cursor(patient=True) as cursor:
            copy = self._sql("COPY {vectors} FROM STDIN WITH (FORMAT binary)", collection)
            cursor.copy_expert(copy, io.BytesIO(HEADER + rows.tobytes() + TRAILER))
        values = (numbers.tolist(), list(ids), lengths.tolist())
        self._run("INSERT INTO {items} SELECT * FROM unnest(%s::bigint[], %s::text[], %s::int[])", collection, values)

    def finish(self, collection: str) -> None:  # noqa: D102
        if self.approximate:
            self._run("CREATE INDEX ON {vectors} USING hnsw (vector vector_ip_ops)", collection)
        self._run("ANALYZE {vectors}", collection)

    def count(self, collection: str) -> int:  # noqa: D102
        with self._cursor() as cursor:
            cursor.execute(self._sql("SELECT count(*) FROM {vectors}", collection))
            return cursor.fetchone()[0]

    def nearest(self, collection: str, asked: Float[Tensor, "asked dim"], count: int) -> list[list[Near]]:  # noqa: D102
        found: list[list[Near]] = [[] for _ in asked]
        written = ["[" + ",".join(map(repr, vector)) + "]" for vector in asked.float().tolist()]
        with self._cursor() as cursor:
            if self.approximate:  # looks on until it has found as many as are wanted
                cursor.execute("SET hnsw.ef_search = %s", (min(1000, max(40, count)),))
                cursor.execute("SET hnsw.iterative_scan = relaxed_order")
            cursor.execute(self._sql(NEAREST, collection), (written, count, PLACES))
            for number, name, item, places, product in cursor.fetchall():
                found[number - 1].append(Near(name, item, places, product))
        return found

    def vectors(self, collection: str, items: Sequence[Near]) -> list[Float[Tensor, "place dim"]]:  # noqa: D102
        keys, answer = vector_keys(items), io.BytesIO()
        with self._cursor() as cursor:
            wanted = "SELECT key, vector FROM {vectors} WHERE key = ANY(%s) ORDER BY key"
            wanted = cursor.mogrify(self._sql(wanted, collection), (keys,)).decode()
            cursor.copy_expert(f"COPY ({wanted}) TO STDOUT WITH (FORMAT binary)", answer)
        body = answer.getvalue()[len(HEADER) : -len(TRAILER)]
        held = np.unique(np.array(keys))
        if len(body) % max(1, len(held)) or not body:
            raise Unavailable(self.address, f"vectors of {items[0].id!r} or others are gone")
        rows = np.frombuffer(body, _row((len(body) // len(held) - _row(0).itemsize) // 4))
        if not np.array_equal(rows["key"], held):
            raise Unavailable(self.address, f"vectors of {items[0].id!r} or others are gone")
        starts = np.searchsorted(held, [each.item * PLACES for each in items])
        vectors = torch.from_numpy(rows["vector"].astype(np.float32))
        return [vectors[start : start + each.places] for start, each in zip(starts, items, strict=True)]

    def drop(self, collection: str) -> None:  # noqa: D102
        self._run("DROP TABLE IF EXISTS {vectors}, {items}", collection)

    def close(self) -> None:  # noqa: D102
        made, self._made = self._made, None
        if made is not None:
            with contextlib.suppress(Exception):  # it is given up, whatever it says to that
                made.close()

    def _run(self, statement: str, collection: str = "", values: Any = None) -> None:
        with self._cursor(patient=True) as cursor:
            cursor.execute(self._sql(statement, collection), values)

    def _sql(self, statement: str, collection: str) -> Any:
        sql = self._psycopg2.sql
        tables = {kind: sql.Identifier(f"{collection}_{kind}") for kind in ("items", "vectors")}
        return sql.SQL(statement).format(**tables)

    @contextlib.contextmanager
    def _cursor(self, *, patient: bool = False) -> Iterator[Any]:
        """A cursor of the connection; one that failed is given up, and the next call makes a new one."""
        limit = PATIENCE if patient else self.timeout + 1
        late: list[str] = []
        try:
            if self._made is None:
                self._made = self._psycopg2.connect(self.dsn, connect_timeout=max(2, math.ceil(self.timeout)))
                self._made.autocommit = True
            with _cut_after(limit, self._made.fileno()) as late, self._made.cursor() as cursor:
                cursor.execute("SET statement_timeout = %s", (0 if patient else math.ceil(1000 * self.timeout),))
                yield cursor
        except self._psycopg2.Error as error:
            self.close()
            said = f"no answer within {limit:g} seconds" if late else str(error) or type(error).__name__
            raise Unavailable(self.address, said) from error


@contextlib.contextmanager
def _cut_after(seconds: float, descriptor: int) -> Iterator[list[str]]:
    """Cut a connection that takes longer, as whoever waits for a machine that stands still waits forever.

    Gives a list that is empty unless that happened.
    """
    cut: list[str] = []

    def shut() -> None:
        cut.append("cut")
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        yield cut
    finally:
        timer.cancel()
        timer.join()  # before the descriptor may become another's


def _row(dim: int) -> np.dtype:
    """A row of binary COPY: a key and a vector, each after its size."""
    return np.dtype(
        [
            ("fields", ">i2"),
            ("key_bytes", ">i4"),
            ("key", ">i8"),
            ("vector_bytes", ">i4"),
            ("dim", ">i2"),
            ("unused", ">i2"),
            ("vector", ">f4", (dim,)),
        ]
    )
