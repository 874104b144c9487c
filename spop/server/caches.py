"""Calls of handlers whose answers are cached: each is made once for all that ask the same.

`keeping` keeps the answers. This module has what needs an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from spop.errors import HandlerError
from spop.handlers import HandlerInfo
from spop.outcome import Outcome, outcome_of, result_of
from spop.server.in_hand import InHand, RunInThread, memory_of_call
from spop.server.keeping import OF_CACHE, Keeper


class Flights:
    """Calls of one handler on the event loop of one loop, each in a task of its own.

    The task belongs to the cache: a caller that is lost or times out leaves it running.

    Args:
        limit: number of calls that may be in hand. A message beyond it fails.
        in_thread: runs a blocking handler.
        take: called with the bytes of memory that each call takes.

    Attributes:
        calls: those in hand.
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
        self.calls: InHand = InHand(take)
        self._line = asyncio.Semaphore(info.concurrency) if info.concurrency else None
        self._flights: dict[bytes, tuple[asyncio.Task[Outcome], int]] = {}

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

    def _begin(self, key: bytes | None, call: functools.partial[Any]) -> asyncio.Task[Outcome]:
        if len(self.calls.tasks) >= self._limit:
            raise HandlerError(
                f"{self._limit} calls are in hand already, whose callers may be gone"
            )
        flight = self.calls.begin(outcome_of(self._run(key, call)), memory_of_call(call))
        if key is not None:
            self._flights[key] = flight, self._keeper.answers.generation
            flight.add_done_callback(functools.partial(self._ended, key))
        return flight

    async def _run(self, key: bytes | None, call: Callable[[], Any]) -> Any:
        with self._keeper.keeping(key) as keep:
            async with self._line or contextlib.nullcontext():
                answer = await (call() if self._asynchronous else self._in_thread(call))
            keep(answer)
        return answer

    def _ended(self, key: bytes, flight: asyncio.Task[Outcome]) -> None:
        if self._flights.get(key, (None, 0))[0] is flight:
            del self._flights[key]

    async def end(self) -> None:
        """Cancel the calls that nobody waits for any more."""
        for flight in self.calls.tasks:
            flight.cancel()
        await asyncio.gather(*self.calls.tasks, return_exceptions=True)


async def _wait_for(flight: asyncio.Task[Outcome]) -> Any:
    return result_of(await asyncio.shield(flight))
