"""The application: what is asked by which address, and what is answered."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import StringConstraints
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

import xmodal
from xmodal.search.queries import Query as Asked
from xmodal.search.serve.batches import Batches, TooManyError
from xmodal.search.serve.guard import LOOPBACK, Guard, Limits, problem, tell_failure, tell_refusal
from xmodal.search.serve.metrics import Metrics
from xmodal.search.serve.schemas import About, Answer, Explained, Health, Problem, SentImage
from xmodal.search.serve.searcher import BrokenIndexError, Question, Searcher, UnknownImageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from xmodal.search.serve.photographs import Photographs

LETTERS, ID_LETTERS = 500, 1000
"""Of a text and of an id."""

HITS, PARTS, EXCLUDED, EXPLAINED = 100, 8, 200, 50
"""Images of an answer; sentences and images of a query; images not to show; images to explain at once."""

SENDING = 4
"""Photographs that may be on their way at once: each is held in memory."""

EXACT = 8
"""Questions of a batch that is answered exactly."""

LOOK = 0.1
"""Seconds after which it is looked whether somebody still waits for an answer."""

SIZES = {"small": 320, "large": 1280}
"""Pixels of the longer side of a photograph."""

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}

Text = Annotated[str, Query(max_length=LETTERS, description='A sentence; "a dog NOT red car" wants no red car.')]
Id = Annotated[str, StringConstraints(min_length=1, max_length=ID_LETTERS)]
Ids = Annotated[list[Id], Query(max_length=PARTS)]
Hidden = Annotated[list[Id], Query(max_length=EXCLUDED)]
Explainable = Annotated[list[Id], Query(min_length=1, max_length=EXPLAINED)]

REASONS = {
    400: "Not a request that the server understands",
    404: "An image is not there",
    408: "Sending took too long",
    413: "Too much was sent",
    422: "It cannot be answered",
    429: "Too many ask",
    503: "Answering took too long, too many ask, or the index is not as it must be",
}


def make_app(
    searcher: Searcher,
    photographs: Photographs | None = None,
    *,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = LOOPBACK,
) -> FastAPI:
    """The web application of a searcher.

    Args:
        searcher: answers.
        photographs: to look at; None for ids alone.
        limits: what a request may ask for.
        hosts: names by which the server may be called; None for any.

    Example:
        >>> import torch
        >>> from starlette.testclient import TestClient
        >>> from xmodal.data import RegionStore, RegionStoreWriter
        >>> from xmodal.model import Matcher
        >>> from xmodal.search.index import Index
        >>> from xmodal.search.serve.app import make_app
        >>> from xmodal.search.serve.searcher import Searcher
        >>> with RegionStoreWriter("test.h5", dim=8, extractor="by hand") as writer:
        ...     for name in ("dog", "cat", "cow"):
        ...         writer.write(name, torch.randn(5, 8))
        >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
        >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
        >>> index = Index.build(matcher, RegionStore("test.h5"), "test.index")
        >>> with TestClient(make_app(Searcher(index, matcher)), base_url="http://localhost") as client:
        ...     answer = client.get("/api/search", params={"text": "a dog", "k": 2}).json()
        >>> len(answer["hits"]), answer["certified"]
        (2, True)
    """
    limits = limits or Limits()
    api = _Api(searcher, photographs, limits)
    app = FastAPI(
        title="xmodal",
        description="Images by sentences, and by what they are like.",
        version=xmodal.__version__,
        lifespan=api.running,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        responses={status: {"model": Problem, "description": why} for status, why in REASONS.items()},
    )
    app.add_exception_handler(StarletteHTTPException, tell_refusal)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(Exception, tell_failure)
    app.add_middleware(Guard, limits=limits, metrics=api.metrics, hosts=hosts)
    for path, endpoint in api.endpoints().items():
        app.add_api_route(path, endpoint, methods=["GET"])
    photograph: Any = {200: {"content": {"image/jpeg": {}}, "description": "The photograph"}}
    app.add_api_route("/api/photograph", api.photograph, methods=["GET"], response_class=Response, responses=photograph)
    image = {"schema": {"type": "string", "format": "binary"}}
    body = {"requestBody": {"required": True, "content": {"image/*": image, "application/octet-stream": image}}}
    app.add_api_route("/api/photograph", api.send, methods=["POST"], openapi_extra=body)
    app.add_api_route("/metrics", api.count, methods=["GET"], include_in_schema=False)
    for path, (file, kind) in PAGE.items():
        app.add_api_route(path, _page(file, kind), methods=["GET"], include_in_schema=False)
    return app


class _Api:
    """The endpoints. Whatever computes runs in one thread, whatever decodes photographs in two others."""

    def __init__(self, searcher: Searcher, photographs: Photographs | None, limits: Limits) -> None:
        self.searcher, self.photographs, self.limits = searcher, photographs, limits
        self.quick: Batches[Question, Answer] = Batches(self._answer)
        # Exact answers take longer: a few at a time, so that the quick ones do not wait for many.
        self.exact: Batches[Question, Answer] = Batches(self._answer, most=EXACT)
        self.metrics = Metrics(lambda: len(searcher.index), lambda: len(self.quick) + len(self.exact))
        self.computing = ThreadPoolExecutor(1, "computing")
        self.decoding = ThreadPoolExecutor(2, "decoding")
        self.sending = 0

    def endpoints(self) -> dict[str, Callable[..., Any]]:
        """Those that answer in JSON, by their addresses."""
        return {
            "/api/about": self.about,
            "/api/search": self.search,
            "/api/explain": self.explain,
            "/health": self.health,
        }

    @contextlib.asynccontextmanager
    async def running(self, _app: FastAPI) -> AsyncIterator[None]:
        """While the server runs, questions are answered."""
        async with self.quick.running(), self.exact.running():
            yield
        self.computing.shutdown(cancel_futures=True)
        self.decoding.shutdown(cancel_futures=True)

    async def health(self) -> Health:
        """That the server answers, and that its index is one that it can search."""
        with _answering():
            if not self.searcher.is_current:
                await self._computed(self.searcher.refresh)
        return Health(images=len(self.searcher.index))

    async def about(self) -> About:
        """What is served, and what may be asked."""
        return About(
            images=len(self.searcher.index),
            photographs=self.photographs is not None,
            why_not_like=self.searcher.why_not_like,
            why_not_sent=self.searcher.why_not_sent,
            why_not_explained=self.searcher.why_not_explained,
            calibrated=self.searcher.calibration is not None,
            body_bytes=self.limits.body_bytes,
            pixels=self.limits.pixels,
        )

    async def search(
        self,
        request: Request,
        text: Text = "",
        like: Ids = [],  # noqa: B006  # FastAPI copies it
        exclude: Hidden = [],  # noqa: B006
        k: Annotated[int, Query(ge=1, le=HITS)] = 24,
        exact: bool = True,
    ) -> Answer:
        """The images that fit a sentence, that are like others, or both."""
        with _refusing():
            query = Asked.parse(text, like)
            if len(query.wanted) + len(query.unwanted) + len(query.like) > PARTS:
                raise ValueError(f"the query has more than {PARTS} sentences and images; ask for fewer")
            self.searcher.check(query)
        batches = self.exact if exact and query.is_plain else self.quick
        with _answering():
            return await _while_connected(request, batches.ask(Question(query, k, exact, frozenset(exclude))))

    async def explain(self, text: Text, id: Explainable) -> Explained:
        """Where the words of a sentence look in some images."""
        with _refusing():
            query = Asked.parse(text)
            self.searcher.check(query)
            if self.searcher.why_not_explained:
                raise ValueError(self.searcher.why_not_explained)
        with _answering():
            return await self._computed(self.searcher.explain, query.wanted[0], id)

    async def photograph(self, id: Annotated[Id, Query()], size: Literal["small", "large"] = "small") -> Response:
        """A photograph of the index, shrunk."""
        if self.photographs is None:
            raise HTTPException(404, "the server was started without photographs (--images)")
        loop = asyncio.get_running_loop()
        with _refusing(unreadable=404):
            content = await loop.run_in_executor(self.decoding, self.photographs.jpeg, id, SIZES[size])
        return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    async def send(self, request: Request) -> SentImage:
        """Send a photograph, to ask for images like it by the id in the answer."""
        if self.sending >= SENDING:
            raise HTTPException(429, f"{SENDING} photographs are being sent already; try again", {"retry-after": "1"})
        self.sending += 1
        try:
            content = await request.body()
            with _refusing():
                return await self._computed(self.searcher.take, content, self.limits.pixels)
        except ClientDisconnect:
            raise HTTPException(400, "the connection ended before all was sent") from None
        finally:
            self.sending -= 1

    async def count(self) -> Response:
        """The metrics, for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _answer(self, questions: list[Question]) -> list[Answer | UnknownImageError]:
        self.metrics.batch.observe(len(questions))
        return await self._computed(self.searcher.answer, questions)

    async def _computed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.computing, partial(function, *arguments))


async def _while_connected(request: Request, asked: Coroutine[Any, Any, Answer]) -> Answer:
    """An answer, as long as somebody waits for it: who types on asks anew, and leaves."""
    task = asyncio.ensure_future(asked)
    try:
        while not (await asyncio.wait({task}, timeout=LOOK))[0]:
            if await request.is_disconnected():
                raise HTTPException(400, "the connection ended before the answer")
        return task.result()
    finally:
        task.cancel()


@contextlib.contextmanager
def _refusing(unreadable: int = 422) -> Any:
    """Turns what is wrong with a request into the answer that says so."""
    try:
        yield
    except KeyError as error:
        raise HTTPException(404, str(error.args[0])) from None
    except ValueError as error:
        raise HTTPException(unreadable, str(error)) from None


@contextlib.contextmanager
def _answering() -> Any:
    """Turns what keeps a request from its answer, although nothing is wrong with it, into what says so.

    What else goes wrong is an error of our own, even a `ValueError`: it may name files, and is for the log.
    """
    try:
        yield
    except UnknownImageError as error:  # it was there when the request was looked at, or nobody looked
        raise HTTPException(404, str(error.args[0])) from None
    except BrokenIndexError:
        reason = "the index cannot be searched at present; the server's log says why"
        raise HTTPException(503, reason, {"retry-after": "1"}) from None
    except TooManyError as error:
        raise HTTPException(503, f"{error}; try again", {"retry-after": "1"}) from None


async def _tell_invalid(_request: Request, error: Exception) -> Response:
    """Which argument of a request is not as it must be, and why."""
    assert isinstance(error, RequestValidationError)
    told = [f"{'.'.join(str(part) for part in each['loc'][1:])}: {each['msg']}" for each in error.errors()]
    return problem(422, "; ".join(told))


def _page(file: str, kind: str) -> Callable[[], Any]:
    content = (Path(__file__).parent / "page" / file).read_bytes()

    async def page() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return page
