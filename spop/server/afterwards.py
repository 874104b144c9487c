"""Handlers with ``ack_first=True``: the message is acknowledged at once and handled afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from spop.context import current, set_running
from spop.handlers import HandlerInfo
from spop.logs import RateLimitedLog, SafeLogger
from spop.parameters import described
from spop.server.caches import RunInThread, memory_of_call

logger: SafeLogger = SafeLogger("spop.agent")


class Afterwards:
    """The calls of one loop whose messages are acknowledged already, each in a task.

    Args:
        limit: number of calls that may be in hand. A message beyond it is dropped.
        max_memory: bytes that their arguments may take. A message beyond it is dropped, too.
        in_thread: runs a blocking handler.
        failed: called with the name and the exception of each message that failed.
        dropped: called for each message that was dropped.
        take: called with the bytes of each call's arguments.

    Attributes:
        memory: bytes that the arguments of the calls in hand take, roughly.
    """

    def __init__(
        self,
        limit: int,
        max_memory: int,
        in_thread: RunInThread,
        failed: Callable[[str, BaseException], object],
        dropped: Callable[[], object],
        take: Callable[[int], object],
    ) -> None:
        self._limit = limit
        self._max_memory = max_memory
        self._take = take
        self.memory: int = 0
        self._failed = failed
        self._dropped = dropped
        self._drops = RateLimitedLog(logger, per_second=1)
        self._in_thread = in_thread
        self._tasks: set[asyncio.Task[None]] = set()
        self._answered: set[str] = set()

    def around(self, info: HandlerInfo, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, the handler of `info`, as one that returns at once."""
        line = asyncio.Semaphore(info.concurrency) if info.concurrency else None

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> None:
            made = functools.partial(function, *args, **kwargs)
            size = memory_of_call(made)
            if len(self._tasks) >= self._limit or self.memory + size > self._max_memory:
                self._dropped()
                self._drops.warning(
                    "message %r is dropped: %d are handled already, of %d bytes",
                    info.name, len(self._tasks), self.memory,
                )  # fmt: skip
                return
            run = self._run(info, made, line)
            context = copy_context()
            context.run(set_running, tuple(running) if (running := current()) else lambda: None)
            task = asyncio.get_running_loop().create_task(run, context=context)
            self._tasks.add(task)
            self.memory += size
            self._take(size)
            task.add_done_callback(functools.partial(self._ended, size))

        return call

    def _ended(self, size: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.memory -= size

    async def _run(
        self, info: HandlerInfo, call: Callable[[], Any], line: asyncio.Semaphore | None
    ) -> None:
        try:
            async with line or contextlib.nullcontext(), asyncio.timeout(info.timeout):
                returned = await (call() if info.asynchronous else self._in_thread(call))
        except Exception as error:
            self._failed(info.name, error)
            return
        if returned is not None and info.name not in self._answered:
            self._answered.add(info.name)
            logger.warning(
                "message %r is acknowledged first: what %s returns is not used",
                info.name, described(info.function),
            )  # fmt: skip

    async def finish(self, timeout: float) -> None:
        """Wait until all calls have ended, for `timeout` seconds at most, and cancel the rest."""
        self._limit = 0
        if self._tasks:
            _, left = await asyncio.wait(set(self._tasks), timeout=timeout)
            for task in left:
                task.cancel()
            if left:
                logger.warning(
                    "%d messages that were acknowledged first did not end in %g s",
                    len(left), timeout,
                )  # fmt: skip
