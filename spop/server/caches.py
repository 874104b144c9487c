"""Calls of handlers whose answers are cached: each is made once for all that ask the same.

`keeping` keeps the answers. This module has what needs an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

from spop.constants import VALUE_SIZE
from spop.context import current, set_running
from spop.errors import HandlerError
from spop.frames import Message
from spop.handlers import HandlerInfo
from spop.headers import Headers
from spop.server.keeping import OF_CACHE, Keeper

RunInThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class Flights:
    """Calls of one handler on the event loop of one loop, each in a task of its own.

    The task belongs to the cache: a caller that is lost or times out leaves it running.

    Args:
        limit: number of calls that may be in hand. A message beyond it fails.
        in_thread: runs a blocking handler.
        take: called with the bytes of memory that each call takes.

    Attributes:
        memory: bytes that the arguments of the calls in hand take, roughly.
    """

    def __init__(
        self,
        keeper: Keeper,
        info: HandlerInfo,
        limit: int,
        in_thread: RunInThread,
        take: Callable[[int], object],
    ) -> None:
        self._keeper = keeper
        self._limit = limit
        self._asynchronous = info.asynchronous
        self._in_thread = in_thread
        self._take = take
        self.memory: int = 0
        self._line = asyncio.Semaphore(info.concurrency) if info.concurrency else None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flights: dict[bytes, tuple[asyncio.Task[Any], int]] = {}

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A handler that waits for the call of another that asks the same."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            key = kwargs.pop(OF_CACHE)
            flight, generation = self._flights.get(key, (None, 0))
            if flight is None or generation != self._keeper.answers.generation:
                flight = self._begin(key, functools.partial(function, *args, **kwargs))
            return _wait_for(flight)

        return call

    def _begin(self, key: bytes | None, call: functools.partial[Any]) -> asyncio.Task[Any]:
        if len(self._tasks) >= self._limit:
            raise HandlerError(
                f"{self._limit} calls are in hand already, whose callers may be gone"
            )
        context = copy_context()
        running = current()
        context.run(set_running, tuple(running) if running else lambda: None)
        run = self._run(key, call)
        flight = asyncio.get_running_loop().create_task(run, context=context)
        size = memory_of_call(call)
        self._tasks.add(flight)
        self.memory += size
        self._take(size)
        if key is not None:
            self._flights[key] = flight, self._keeper.answers.generation
        flight.add_done_callback(functools.partial(self._ended, key, size))
        return flight

    async def _run(self, key: bytes | None, call: Callable[[], Any]) -> Any:
        with self._keeper.keeping(key) as keep:
            async with self._line or contextlib.nullcontext():
                answer = await (call() if self._asynchronous else self._in_thread(call))
            keep(answer)
        return answer

    def _ended(self, key: bytes | None, size: int, flight: asyncio.Task[Any]) -> None:
        self._tasks.discard(flight)
        self.memory -= size
        if key is not None and self._flights.get(key, (None, 0))[0] is flight:
            del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # Whoever still waits has it; else nobody does.

    async def end(self) -> None:
        """Cancel the calls that nobody waits for any more."""
        for flight in self._tasks:
            flight.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _wait_for(flight: asyncio.Task[Any]) -> Any:
    return await asyncio.shield(flight)


def memory_of_call(call: functools.partial[Any]) -> int:
    """Bytes that the arguments of a call take, roughly."""
    return sum(map(_memory_of, (*call.args, *call.keywords.values())))


def _memory_of(value: Any) -> int:
    if isinstance(value, Message):
        return sum(map(_memory_of, value.values))
    if isinstance(value, Headers):
        return sum(len(name) + len(text) for name, text in value.raw)
    return VALUE_SIZE + (len(value) if isinstance(value, (str, bytes)) else 0)
