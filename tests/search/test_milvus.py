"""Real servers of Milvus, spoken to over gRPC: one, two, and two of which one is killed."""

from __future__ import annotations

import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from tests.search.servers import check_server, check_two_answer_as_one, kill, matcher_of, milvus_server, scored
from tests.tiny_data import make_data
from xmodal.data import RegionStore
from xmodal.search.engines.cluster import Cluster
from xmodal.search.engines.milvus import Milvus
from xmodal.search.engines.server import Unavailable
from xmodal.search.index import Index

QUERIES = ["a dog", "a cat and a boat", "a lamp and a bird and a car"]


@pytest.fixture(scope="module")
def servers():
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(2) as pool:  # as starting one takes a while
            started = [pool.submit(stack.enter_context, milvus_server()) for _ in range(2)]
        yield [each.result() for each in started]


def test_milvus_is_a_server(servers):
    check_server(Milvus(servers[0][0]))


@pytest.mark.parametrize("approximate", [False, True])
def test_milvus_lite_is_a_server(approximate, tmp_path):
    if not all(find_spec(name) for name in ("pymilvus", "milvus_lite", "pyarrow")):
        pytest.skip("needs Milvus Lite: pip install 'xmodal[milvus]', pip install --no-deps milvus-lite pyarrow")
    server = Milvus(str(tmp_path / "vectors.db"), approximate=approximate)
    check_server(server)
    server.close()


def test_a_graph_finds_nearly_everything(servers):
    check_server(Milvus(servers[1][0], approximate=True))  # of so few vectors


def test_two_servers_answer_as_one_does_and_one_that_is_killed_is_missed(servers, tmp_path):
    matcher, store = matcher_of({"name": "scan"}), RegionStore(make_data(tmp_path, train=60) / "train.h5")
    index = Index.build(matcher, store, tmp_path / "index")
    options = [{"name": "milvus", "uri": uri, "timeout": 8.0} for uri, _ in servers]
    one = Cluster.build(index, tmp_path / "one.json", options[:1])
    two = Cluster.build(index, tmp_path / "two.json", options)
    check_two_answer_as_one(index, matcher, one, two, QUERIES)

    brief = Cluster.open(tmp_path / "two.json", retry_after=0)
    whole = brief.search(matcher, QUERIES[0])
    brief.roster.servers[1].timeout = 2.0
    kill(servers[1][1], signal.SIGSTOP)
    (missing,) = brief.search(matcher, QUERIES[0]).missing
    assert missing.items == 30
    assert "deadline" in missing.reason.lower()
    kill(servers[1][1], signal.SIGCONT)
    brief.roster.servers[1].timeout = 10.0
    assert brief.search(matcher, QUERIES[0]) == whole

    kill(servers[1][1])
    left = index.ids[::2]
    wanted = index.search(matcher, QUERIES, words=False, filter=left)
    for answer, hits in zip(two.find(matcher, QUERIES), wanted, strict=True):
        assert answer.describe().startswith("degraded: 30 of 60 items were not looked at, those of Milvus at unix:")
        assert [each.items for each in answer.missing] == [30]
        assert answer.searched == 30
        assert scored(answer.hits) == scored(hits)
    with pytest.raises(Unavailable, match="its 30 items were not looked at"):
        index.search(matcher, QUERIES[0], engine=two)
