"""What stands before every request: who may ask, how much may be sent, how long it may take, how many may ask at once.

Errors are JSON with a reason, whoever finds them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from xmodal.search.serve.metrics import Metrics

logger = logging.getLogger("xmodal")

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Names that a browser on this machine has for it; a page of a stranger reaches it by another one only."""

DISCARDED = 4
"""Times the limit: bytes of what is too much that are taken, and thrown away, before it is told."""

SECONDS = 5.0
"""Of that taking."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


@dataclass(frozen=True)
class Limits:
    """How much a request may ask for."""

    body_bytes: int = 10_000_000
    """Bytes that may be sent."""
    pixels: int = 16_000_000
    """Pixels of a photograph that is sent."""
    seconds: float = 30.0
    """What a request may take, sending included."""
    requests: int = 256
    """Requests at once."""


def problem(status: int, reason: str, headers: Any = None) -> JSONResponse:
    """An error as the API tells it.

    >>> problem(404, "there is no image '7'").body
    b'{"reason":"there is no image \\'7\\'"}'
    """
    # Letters that are no UTF-8 would make an error of an error.
    readable = reason.encode("utf-8", "replace").decode()
    return JSONResponse({"reason": readable}, status, dict(headers or {}))


async def tell_refusal(_request: Request, error: Exception) -> JSONResponse:
    """A refusal in JSON, wherever it comes from.

    >>> import asyncio
    >>> asyncio.run(tell_refusal(None, HTTPException(404, "nothing is here"))).status_code
    404
    """
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), error.headers)


async def tell_failure(request: Request, error: Exception) -> JSONResponse:
    """An error of our own: the log has all of it, the answer nothing.

    >>> import asyncio
    >>> from starlette.requests import Request
    >>> request = Request({"type": "http", "path": "/", "method": "GET", "headers": []})
    >>> logger.disabled = True
    >>> asyncio.run(tell_failure(request, ValueError("secret"))).body
    b'{"reason":"the server failed; its log says why"}'
    >>> logger.disabled = False
    """
    logger.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    return problem(500, "the server failed; its log says why")


class Guard:
    """An ASGI application with limits around another one.

    Args:
        app: what it guards.
        limits: what a request may ask for.
        metrics: counts requests.
        hosts: names by which the server may be called; None for any.

    Example:
        >>> from starlette.testclient import TestClient
        >>> from xmodal.search.serve.guard import Guard, Limits, problem
        >>> from xmodal.search.serve.metrics import Metrics
        >>> guard = Guard(problem(404, "nothing"), Limits(body_bytes=10), Metrics(lambda: 0, lambda: 0), ["localhost"])
        >>> client = TestClient(guard, base_url="http://localhost")
        >>> client.get("/").status_code, client.post("/", content=b"0" * 11).status_code
        (404, 413)
        >>> client.get("/", headers={"host": "elsewhere"}).json()["reason"][:40]
        "this server is not called 'elsewhere'; a"
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, hosts: Sequence[str] | None = LOOPBACK) -> None:
        self.app, self.limits, self.metrics, self.hosts = app, limits, metrics, hosts
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, told = time.perf_counter(), _Told(send)
        self.active += 1
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                if refusal.status_code == 413:
                    await _discard(receive, DISCARDED * self.limits.body_bytes, self.limits.seconds)
                await refusal(scope, receive, told)
            else:
                await self._within_limits(scope, receive, told)
        finally:
            self.active -= 1
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(told.status or 499)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """Why a request is refused before anything of it is read."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.hosts is not None and name.lower() not in self.hosts:
            return problem(400, f"this server is not called {name!r}; ask {' or '.join(self.hosts)}")
        length = headers.get(b"content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return problem(400, f"content-length is {length!r}; wanted a number")
        if int(length) > self.limits.body_bytes:
            return problem(413, self._too_large(), {"connection": "close"})
        if self.active > self.limits.requests:
            return problem(503, f"{self.active - 1} requests are being answered; try again", {"retry-after": "1"})
        return None

    def _too_large(self) -> str:
        return f"more is sent than {self.limits.body_bytes} bytes; shrink it"

    async def _within_limits(self, scope: Scope, receive: Receive, told: _Told) -> None:
        names = {name for name, _ in scope["headers"]}
        sent = _Sent(receive, self.limits.body_bytes, self._too_large)
        sent.whole = not names & {b"content-length", b"transfer-encoding"}  # then nothing is sent
        try:
            await asyncio.wait_for(self.app(scope, sent, told), self.limits.seconds)
        except (TimeoutError, asyncio.TimeoutError):
            if told.status is not None:
                return  # what was begun cannot be taken back; the connection ends
            late = f"took longer than {self.limits.seconds:g} seconds"
            answer = problem(503, f"the answer {late}") if sent.whole else problem(408, f"sending the request {late}")
            await answer(scope, receive, told)


async def _discard(receive: Receive, most: int, seconds: float) -> None:
    """Take what is still sent, up to a limit: who is cut off while sending does not see why."""
    until = time.perf_counter() + seconds
    while most > 0 and time.perf_counter() < until:
        try:
            message = await asyncio.wait_for(receive(), until - time.perf_counter())
        except (TimeoutError, asyncio.TimeoutError):
            return
        most -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return


class _Told:
    """Passes answers on, with our headers, and knows their status."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await self.send(message)


class _Sent:
    """Passes on what is sent until it is too much."""

    def __init__(self, receive: Receive, most: int, reason: Callable[[], str]) -> None:
        self.receive, self.most, self.left, self.reason, self.whole = receive, most, most, reason, False

    async def __call__(self) -> Message:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            if message.get("more_body", False):
                await _discard(self.receive, DISCARDED * self.most, SECONDS)
            raise HTTPException(413, self.reason(), {"connection": "close"})
        self.whole = self.whole or not message.get("more_body", False)
        return message
