"""What the handlers of one loop need besides a dispatcher: caches, batches, and calls
after the ACK.

What needs asyncio is imported for the handlers that need it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from spop.cache import HandlerCache
from spop.counters import Cell, Cells, RouteCell
from spop.dispatch import Route
from spop.frames import Message
from spop.handlers import HandlerInfo
from spop.options import Options
from spop.parameters import ASYNC, INLINE, KEY, MESSAGE, Parameter
from spop.server.keeping import OF_CACHE, Keeper

if TYPE_CHECKING:
    import asyncio

    from spop.server.afterwards import Afterwards
    from spop.server.batches import Batcher
    from spop.server.caches import Flights

KEY_OF_CACHE = Parameter(OF_CACHE, KEY, keyword_only=True)


class Calls:
    """Makes the routes of one loop.

    Args:
        cells: the row in which it counts messages that are dropped.
        failed: called with name and exception of a message that fails after its ACK.
        take: called with the bytes of memory that such a message, or a cached answer, takes.
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
        self._keepers: list[Keeper] = []
        self._flights: list[Flights] = []
        self._pool: ThreadPoolExecutor | None = None
        self._free_threads: asyncio.Semaphore | None = None
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
            from spop.server.afterwards import Afterwards

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
        """Bytes of memory that messages whose ACK is sent, and caches, take, roughly."""
        taken = self._afterwards.calls.memory if self._afterwards else 0
        taken += sum(keeper.answers.memory for keeper in self._keepers)
        return taken + sum(flights.calls.memory for flights in self._flights)

    def forget_answers(self) -> int:
        """Forget all cached answers. Returns the bytes of memory that they took."""
        return sum(keeper.forget() for keeper in self._keepers)

    def _cached(self, info: HandlerInfo, cache: HandlerCache) -> Route:
        answers = cache.answers()

        def count(number: int) -> None:
            self._cells[route.base + RouteCell.KEPT] = number

        keeper = Keeper(answers, info, cache.settings, self._take, count)
        self._keepers.append(keeper)
        if info.needs_event_loop:
            from spop.server.caches import Flights

            flights = Flights(keeper, info, self._options.max_queue, self._in_thread, self._take)
            self._flights.append(flights)
            route = info.route(ASYNC, flights.around, [KEY_OF_CACHE])
        else:
            route = info.route(INLINE, keeper.around, [KEY_OF_CACHE])
        route.answers = answers
        return route

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        # Calls wait here, and not in the queue of the pool, which would keep their arguments
        # after a timeout.
        import asyncio

        from spop.outcome import outcome, result_of

        if self._free_threads is None:
            self._free_threads = asyncio.Semaphore(self._options.pool_size)
        free, loop = self._free_threads, asyncio.get_running_loop()
        await free.acquire()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._options.pool_size, "spop-calls")

        def ended(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # The event loop is closed.
                loop.call_soon_threadsafe(free.release)

        try:
            future = self._pool.submit(copy_context().run, outcome, call)
        except RuntimeError:  # The system has no thread for it. The pool keeps the call.
            self._end_pool()
            free.release()
            raise
        future.add_done_callback(ended)
        return result_of(await asyncio.wrap_future(future))

    def _count_drop(self) -> None:
        self._cells[Cell.REJECTED] += 1

    def _batched(self, info: HandlerInfo) -> Route:
        from spop.server.batches import Batcher

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
        for flights in self._flights:
            await flights.end()
        for batcher in self._batchers:
            await batcher.end()
        self._end_pool()

    def _end_pool(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
