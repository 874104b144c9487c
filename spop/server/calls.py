"""What the handlers of one loop need besides a dispatcher: batches, and calls after the ACK."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from spop.counters import Cell, Cells
from spop.dispatch import Route
from spop.frames import Message
from spop.handlers import HandlerInfo
from spop.parameters import ASYNC, INLINE, MESSAGE, Parameter
from spop.server.afterwards import Afterwards
from spop.server.batches import Batcher
from spop.server.options import Options


class Calls:
    """Makes the routes of one loop.

    Args:
        cells: the row in which it counts messages that are dropped.
        failed: called with name and exception of a message that fails after its ACK.
    """

    def __init__(
        self, options: Options, cells: Cells, failed: Callable[[str, BaseException], object]
    ) -> None:
        self._options = options
        self._cells = cells
        self._failed = failed
        self._afterwards: Afterwards | None = None
        self._batchers: list[Batcher] = []

    def route(self, info: HandlerInfo) -> Route:
        """What a dispatcher calls for a handler."""
        if info.batch is not None:
            return self._batched(info)
        if info.ack_first:
            return info.route(INLINE, functools.partial(self._after_ack().around, info))
        return info.route()

    def _after_ack(self) -> Afterwards:
        if self._afterwards is None:
            options = self._options
            self._afterwards = Afterwards(
                options.max_queue, options.pool_size, self._failed, self._count_drop
            )
        return self._afterwards

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
