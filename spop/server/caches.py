"""Calls of handlers whose answers are cached: each is made once for all that ask the same."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from contextvars import copy_context
from time import monotonic_ns
from typing import Any

from spop import codec
from spop.cache import Answers, Cache
from spop.constants import ENTRY_SIZE, VALUE_SIZE
from spop.context import current, set_running
from spop.errors import HandlerError
from spop.frames import Message
from spop.handlers import HandlerInfo
from spop.headers import Headers
from spop.parameters import check_answer

RunInThread = Callable[[Callable[[], Any]], Awaitable[Any]]


OF_CACHE = "key_of_cache"
"""The keyword by which calls get the key of their answer."""


class Keeper:
    """Has the answers of one handler kept, in one loop.

    Args:
        answers: where they are kept. A dispatcher finds them there and calls the handler only
            when the answer to a message is not there.
        failure: the encoded actions that answer for a failure.
        take: called with the bytes of memory that each answer takes.
        count: called with the number of answers that are kept.
    """

    def __init__(
        self,
        answers: Answers,
        info: HandlerInfo,
        cache: Cache,
        take: Callable[[int], object],
        count: Callable[[int], object],
    ) -> None:
        self.answers = answers
        self._function = info.function
        self._ttl = int(cache.ttl * 1e9)
        self._error_ttl = int(cache.error_ttl * 1e9)
        self._failure = info.on_error
        self._take = take
        self._count = count

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """An inline handler that has its answers kept."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            key = kwargs.pop(OF_CACHE)
            with self.keeping(key) as keep:
                answer = function(*args, **kwargs)
                keep(answer)
            return answer

        return call

    @contextlib.contextmanager
    def keeping(self, key: bytes | None) -> Iterator[Callable[[Any], None]]:
        """Keep the answer that is given in this context, or the one to a failure."""
        generation = self.answers.generation

        def keep(answer: Any) -> None:
            # An answer that can't be encoded is a failure, as it is for the dispatcher.
            check_answer(self._function, {} if answer is None else answer)
            encoded = bytes(codec.encode_answer({} if answer is None else answer))
            self._keep(key, encoded, self._ttl, generation)

        try:
            yield keep
        except Exception:
            if self._error_ttl:
                self._keep(key, self._failure, self._error_ttl, generation)
            raise

    def _keep(self, key: bytes | None, encoded: bytes, ttl: int, generation: int) -> None:
        if key is not None:
            self.answers.keep(key, encoded, monotonic_ns() + ttl, generation)
            self._take(ENTRY_SIZE + len(key) + len(encoded))
            self._count(len(self.answers))

    def forget(self) -> int:
        """Forget all answers. Returns the bytes of memory that they took."""
        taken = self.answers.memory
        self.answers.forget()
        self._count(0)
        return taken


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
        self.memory = 0
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
