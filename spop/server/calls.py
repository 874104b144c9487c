"""What the handlers of one loop need besides a dispatcher: caches, batches, and calls
after the ACK."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from spop.cache import HandlerCache
from spop.counters import Cell, Cells
from spop.dispatch import Route
from spop.frames import Message
from spop.handlers import HandlerInfo
from spop.options import Options
from spop.parameters import ASYNC, INLINE, MESSAGE, Parameter
from spop.server.afterwards import Afterwards
from spop.server.batches import Batcher
from spop.server.caches import Flights, Keeper


class Calls:
    """Makes the routes of one loop.

    Args:
        cells: the row in which it counts messages that are dropped.
        failed: called with name and exception of a message that fails after its ACK.
        take: called with the bytes of memory that such a message takes.
    """

    def __init__(
        self,
        options: Options,
        cells: Cells,
        failed: Callable[[str, BaseException], object],
        take: Callable[[int], object],
    ) -> None:
        self._options = options
        self._cells = cells
        self._failed = failed
        self._take = take
        self._afterwards: Afterwards | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._batchers: list[Batcher] = []

    def route(self, info: HandlerInfo) -> Route:
        """What a dispatcher calls for a handler."""
        if info.batch is not None:
            return self._batched(info)
        if info.ack_first:
            return info.route(INLINE, functools.partial(self._after_ack().around, info))
        if info.cache is not None:
            return self._cached(info, info.cache)
        return info.route()

    def _after_ack(self) -> Afterwards:
        if self._afterwards is None:
            self._afterwards = Afterwards(
                self._options.max_queue,
                self._options.max_memory // self._options.threads // 2,
                self._in_thread,
                self._failed,
                self._count_drop,
                self._take,
            )
        return self._afterwards

    @property
    def memory(self) -> int:
        """Bytes of memory that messages whose ACK is sent take, roughly."""
        return self._afterwards.memory if self._afterwards else 0

    def _cached(self, info: HandlerInfo, cache: HandlerCache) -> Route:
        answers = cache.answers()
        keeper = Keeper(answers, cache.settings, info.on_error)
        if info.needs_event_loop:
            flights = Flights(keeper, info, self._in_thread)
            route = info.route(ASYNC, flights.around)
        else:
            route = info.route(INLINE, keeper.around)
        route.answers = answers
        return route

    def _in_thread(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._options.pool_size, "spop-calls")
        run = functools.partial(copy_context().run, call)
        return asyncio.get_running_loop().run_in_executor(self._pool, run)

    def _count_drop(self) -> None:
        self._cells[Cell.REJECTED] += 1

    def _batched(self, info: HandlerInfo) -> Route:
        assert info.batch is not None
        batcher = Batcher(info.function, info.batch)
        self._batchers.append(batcher)

        @functools.wraps(info.function)
        async def answer(message: Message) -> Any:
            return await batcher.answer(message)

        one = info._replace(
            function=answer, parameters=(Parameter("message", MESSAGE),), asynchronous=True
        )
        return one.route(ASYNC if info.concurrency is None else None)

    async def begin(self) -> None:
        """Wait until the processes of batches are ready.

        Raises:
            Exception: a process can't import its handler.
        """
        for batcher in self._batchers:
            await batcher.ready()

    async def finish(self, timeout: float) -> None:
        """End, after calls whose messages are acknowledged, or `timeout` seconds."""
        if self._afterwards is not None:
            await self._afterwards.finish(timeout)
        for batcher in self._batchers:
            batcher.close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
