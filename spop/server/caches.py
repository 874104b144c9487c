"""Calls of handlers whose answers are cached: each is made once for all that ask the same."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from spop import codec
from spop.cache import Answers, Cache
from spop.context import current, set_running
from spop.handlers import HandlerInfo

if TYPE_CHECKING:
    import asyncio

RunInThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class Keeper:
    """Has the answers of one handler kept, in one loop.

    A dispatcher calls the handler only when the answer to the message is not there. It leaves the
    key in `Answers.missed`.

    Args:
        failure: the encoded actions that answer for a failure.
    """

    def __init__(self, answers: Answers, cache: Cache, failure: bytes) -> None:
        self._answers = answers
        self._ttl = int(cache.ttl * 1e9)
        self._error_ttl = int(cache.error_ttl * 1e9)
        self._failure = failure

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """An inline handler that has its answers kept."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            key, generation = self.missed()
            with self.failures(key, generation):
                answer = function(*args, **kwargs)
            self.keep(key, answer, generation)
            return answer

        return call

    def missed(self) -> tuple[bytes | None, int]:
        """The key of the message whose call begins, and which generation of answers it is for."""
        key, self._answers.missed = self._answers.missed, None
        return key, self._answers.generation

    def keep(self, key: bytes | None, answer: Any, generation: int) -> None:
        """Keep what a handler has returned, if that can be encoded."""
        if key is None:
            return
        with contextlib.suppress(Exception):  # The dispatcher finds the same error.
            encoded = bytes(codec.encode_answer(answer or {}))
            self._answers.keep(key, encoded, monotonic_ns() + self._ttl, generation)

    @contextlib.contextmanager
    def failures(self, key: bytes | None, generation: int) -> Any:
        """Keep the answer to a failure, if that is wanted."""
        try:
            yield
        except Exception:
            if self._error_ttl and key is not None:
                expires = monotonic_ns() + self._error_ttl
                self._answers.keep(key, self._failure, expires, generation)
            raise


class Flights:
    """Calls of one handler on the event loop of one loop, each in a task of its own.

    The task belongs to the cache: a caller that is lost or times out leaves it running.

    Args:
        in_thread: runs a blocking handler.
    """

    def __init__(self, keeper: Keeper, info: HandlerInfo, in_thread: RunInThread) -> None:
        import asyncio  # Not for the caches of inline handlers.

        self._keeper = keeper
        self._asynchronous = info.asynchronous
        self._in_thread = in_thread
        self._line = asyncio.Semaphore(info.concurrency) if info.concurrency else None
        self._flights: dict[bytes, asyncio.Task[Any]] = {}

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A handler that waits for the call of another that asks the same."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            key, generation = self._keeper.missed()
            flight = self._flights.get(key) if key is not None else None
            if flight is None:
                flight = self._begin(key, generation, functools.partial(function, *args, **kwargs))
            return _wait_for(flight)

        return call

    def _begin(
        self, key: bytes | None, generation: int, call: Callable[[], Any]
    ) -> asyncio.Task[Any]:
        import asyncio

        context = copy_context()
        running = current()
        context.run(set_running, tuple(running) if running else lambda: None)
        run = self._run(key, generation, call)
        flight = asyncio.get_running_loop().create_task(run, context=context)
        flight.add_done_callback(functools.partial(self._ended, key))
        if key is not None:
            self._flights[key] = flight
        return flight

    async def _run(self, key: bytes | None, generation: int, call: Callable[[], Any]) -> Any:
        with self._keeper.failures(key, generation):
            async with self._line or contextlib.nullcontext():
                answer = await (call() if self._asynchronous else self._in_thread(call))
        self._keeper.keep(key, answer, generation)
        return answer

    def _ended(self, key: bytes | None, flight: asyncio.Task[Any]) -> None:
        if key is not None and self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # Whoever still waits has it; else nobody does.


async def _wait_for(flight: asyncio.Task[Any]) -> Any:
    import asyncio

    return await asyncio.shield(flight)
