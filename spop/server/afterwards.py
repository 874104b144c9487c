"""Handlers with ``ack_first=True``: the message is acknowledged at once and handled afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from spop.context import current, set_running
from spop.handlers import HandlerInfo
from spop.logs import RateLimitedLog, SafeLogger
from spop.parameters import described

logger = SafeLogger("spop.agent")


class Afterwards:
    """The calls of one loop whose messages are acknowledged already, each in a task.

    Args:
        limit: number of calls that may be in hand. A message beyond it is dropped.
        threads: number of threads for blocking handlers.
        failed: called with the name and the exception of each message that failed.
        dropped: called for each message that was dropped.
    """

    def __init__(
        self,
        limit: int,
        threads: int,
        failed: Callable[[str, BaseException], object],
        dropped: Callable[[], object],
    ) -> None:
        self._limit = limit
        self._failed = failed
        self._dropped = dropped
        self._drops = RateLimitedLog(logger, per_second=1)
        self._pool = ThreadPoolExecutor(threads, "spop-afterwards")
        self._tasks: set[asyncio.Task[None]] = set()
        self._answered: set[str] = set()

    def around(self, info: HandlerInfo, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, the handler of `info`, as one that returns at once."""
        line = asyncio.Semaphore(info.concurrency) if info.concurrency else None

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> None:
            if len(self._tasks) >= self._limit:
                self._dropped()
                self._drops.warning(
                    "message %r is dropped: %d are handled already", info.name, self._limit
                )
                return
            run = self._run(info, functools.partial(function, *args, **kwargs), line)
            context = copy_context()
            context.run(set_running, tuple(running) if (running := current()) else lambda: None)
            task = asyncio.get_running_loop().create_task(run, context=context)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return call

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

    def _in_thread(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        run = functools.partial(copy_context().run, call)
        return asyncio.get_running_loop().run_in_executor(self._pool, run)

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
        self._pool.shutdown(wait=False, cancel_futures=True)
