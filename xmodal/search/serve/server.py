"""Starting the server: everything is opened and checked before the first request, and the address is told."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import uvicorn

from xmodal.evaluation.calibration import calibration_of
from xmodal.model import Matcher
from xmodal.search.index import Index
from xmodal.search.queries import Query
from xmodal.search.serve.app import make_app
from xmodal.search.serve.guard import LOOPBACK, Limits
from xmodal.search.serve.photographs import Photographs
from xmodal.search.serve.searcher import Question, Searcher

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastapi import FastAPI

CONNECTIONS = 512
"""At once; more are refused before anything of them is read."""

HEADER_BYTES = 32 << 10
"""Of the first line and the headers of a request."""


def open_app(
    index: Path,
    model: Path,
    images: Path | None,
    *,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = LOOPBACK,
) -> FastAPI:
    """The application of an index in a folder, its model in another and its photographs in a third.

    Args:
        index: the folder that `xmodal index` made.
        model: of its model or the run.
        images: of the photographs; None to serve none.
        limits: what a request may ask for.
        hosts: names by which the server may be called; None for any.

    Raises:
        FileNotFoundError: there is no index, model or folder, or an image of the index has no file there.
        ValueError: the index is damaged, of another model, or of captions.

    >>> from pathlib import Path
    >>> open_app(Path("nowhere.index"), Path("run"), None)
    Traceback (most recent call last):
    ...
    FileNotFoundError: nowhere.index holds no index: manifest.json is missing. `xmodal index` makes one.
    """
    opened = Index.open(index)  # a missing index is told before the model is loaded
    searcher = Searcher(opened, Matcher.from_pretrained(model), calibration_of(model))
    searcher.answer([Question(Query.parse("a"), k=1)])  # the first question loads what all others need
    photographs = None if images is None else Photographs(images, opened.ids)
    return make_app(searcher, photographs, limits=limits, hosts=hosts)


def listen(host: str, port: int) -> socket.socket:
    """A socket on which a server can listen.

    Raises:
        OSError: the address is taken, or not one of this machine.

    >>> with listen("127.0.0.1", 0) as listening:
    ...     listening.getsockname()[0]
    '127.0.0.1'
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}. Choose another --port"
        ) from None
    return listening


def allowed_hosts(host: str) -> Sequence[str] | None:
    """The names by which a server on a host may be called; None for any, where it listens to other machines.

    >>> allowed_hosts("127.0.0.1"), allowed_hosts("0.0.0.0")
    (('localhost', '127.0.0.1', '[::1]'), None)
    """
    return LOOPBACK if host in (*LOOPBACK, "::1") else None


def run(app: FastAPI, listening: socket.socket) -> None:
    """Serve an application until Ctrl-C.

    >>> import threading
    >>> from fastapi import FastAPI
    >>> threading.Thread(target=run, args=(FastAPI(), listen("127.0.0.1", 0)), daemon=True).start()
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listening])
