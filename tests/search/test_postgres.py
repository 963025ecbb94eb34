"""A real PostgreSQL with pgvector: one, two, and two of which one is killed."""

from __future__ import annotations

import contextlib
import signal

import pytest
import torch

from tests.search.servers import (
    check_server,
    check_two_answer_as_one,
    children,
    kill,
    matcher_of,
    postgres_server,
    scored,
)
from tests.tiny_data import make_data
from xmodal.data import RegionStore
from xmodal.search.engines.cluster import Cluster
from xmodal.search.engines.postgres import Postgres
from xmodal.search.engines.server import Near, Unavailable
from xmodal.search.index import Index

QUERIES = ["a dog", "a cat and a boat", "a lamp and a bird and a car"]


@pytest.fixture(scope="module")
def servers():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(postgres_server()) for _ in range(2)]


@pytest.mark.parametrize("approximate", [False, True])  # of so few vectors a graph finds all
def test_postgres_is_a_server(servers, approximate):
    check_server(Postgres(servers[0][0], approximate=approximate))


def test_what_the_database_says_is_told(servers):
    server = Postgres(servers[0][0])
    with pytest.raises(Unavailable, match='relation "nothing_vectors" does not exist'):
        server.count("nothing")
    server.create("few", 4, 8)
    server.insert("few", 0, ["7"], torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.bool))
    for lost in (Near("7", 0, 3, 0.0), Near("8", 1, 1, 0.0)):
        with pytest.raises(Unavailable, match="are gone"):
            server.vectors("few", [lost])
    slow = Postgres(servers[0][0], timeout=0.001)
    with pytest.raises(Unavailable, match="statement timeout"), slow._cursor() as cursor:
        cursor.execute("SELECT pg_sleep(5)")
    large = Postgres(servers[0][0], approximate=True)
    large.create("large", 2001, 8)
    with pytest.raises(Unavailable, match="2000 dimensions"):
        large.finish("large")


def test_two_servers_answer_as_one_does_and_one_that_is_killed_is_missed(servers, tmp_path):
    matcher, store = matcher_of({"name": "bfan"}), RegionStore(make_data(tmp_path, train=60) / "train.h5")
    index = Index.build(matcher, store, tmp_path / "index")
    options = [{"name": "postgres", "dsn": dsn} for dsn, _ in servers]
    one = Cluster.build(index, tmp_path / "one.json", options[:1])
    two = Cluster.build(index, tmp_path / "two.json", options)
    check_two_answer_as_one(index, matcher, one, two, QUERIES)

    hurried = [{**each, "timeout": 1.0} for each in options]
    brief = Cluster.build(index, tmp_path / "hurried.json", hurried)
    assert brief.search(matcher, QUERIES[0]).whole
    stopped = [servers[1][1], *children(servers[1][1])]
    for process in stopped:
        kill(process, signal.SIGSTOP)
    (missing,) = brief.search(matcher, QUERIES[0]).missing
    assert missing.reason == "no answer within 2 seconds"
    for process in stopped:
        kill(process, signal.SIGCONT)

    kill(servers[1][1], signal.SIGQUIT)  # at which it ends without finishing anything
    wanted = index.search(matcher, QUERIES, words=False, filter=index.ids[::2])
    for answer, hits in zip(two.find(matcher, QUERIES), wanted, strict=True):
        assert answer.describe().startswith("degraded: 30 of 60 items were not looked at, those of PostgreSQL at ")
        assert answer.searched == 30
        assert scored(answer.hits) == scored(hits)
