"""Questions that come at about the same time, answered together: their vectors make one product with the index."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

Q = TypeVar("Q")
A = TypeVar("A")

WAIT = 0.004
"""Seconds that the first question of a batch waits for others."""

MOST = 32
"""Questions of a batch."""

WAITING = 256
"""Questions that may wait for their turn."""


class TooManyError(RuntimeError):
    """As many questions wait as may.

    >>> raise TooManyError("256 questions wait already")
    Traceback (most recent call last):
    ...
    xmodal.search.serve.batches.TooManyError: 256 questions wait already
    """


class Batches(Generic[Q, A]):
    """Collects questions for a few milliseconds, or while the last batch is answered, and has them answered at once.

    Args:
        answer: answers a batch, in its order; an exception in the place of an answer is raised where it was asked.
        wait: seconds that the first question of a batch waits for others.
        most: questions of a batch, at most.
        waiting: questions that may wait, at most.

    Example:
        >>> import asyncio
        >>> from xmodal.search.serve.batches import Batches
        >>> async def lengths(words):
        ...     return [f"{len(word)} of {len(words)}" for word in words]
        >>> async def main():
        ...     batches = Batches(lengths)
        ...     async with batches.running():
        ...         return await asyncio.gather(batches.ask("a"), batches.ask("dog"))
        >>> asyncio.run(main())
        ['1 of 2', '3 of 2']
    """

    def __init__(
        self,
        answer: Callable[[list[Q]], Awaitable[Sequence[A | Exception]]],
        *,
        wait: float = WAIT,
        most: int = MOST,
        waiting: int = WAITING,
    ) -> None:
        self.answer, self.wait, self.most, self.waiting = answer, wait, most, waiting
        self._queue: asyncio.Queue[tuple[Q, asyncio.Future[A]]] = asyncio.Queue()

    def __len__(self) -> int:
        return self._queue.qsize()

    async def ask(self, question: Q) -> A:
        """The answer to a question.

        Raises:
            TooManyError: too many wait already.
        """
        if len(self) >= self.waiting:
            raise TooManyError(f"{len(self)} questions wait already")
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((question, future))
        return await future

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers what is asked inside; afterwards nothing is answered any more."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            await asyncio.sleep(self.wait)
            while len(batch) < self.most and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            asked = [(question, future) for question, future in batch if not future.done()]  # who left is not answered
            if not asked:
                continue
            try:
                answers: Sequence[Any] = await self.answer([question for question, _ in asked])
            except Exception as error:
                answers = [error] * len(asked)
            for (_, future), answer in zip(asked, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
