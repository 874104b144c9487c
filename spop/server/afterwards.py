"""Handlers with ``ack_first=True``: the message is acknowledged at once and handled afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from typing import Any

from spop.handlers import HandlerInfo
from spop.logs import RateLimitedLog, SafeLogger, fields
from spop.outcome import outcome_of
from spop.parameters import described
from spop.server.in_hand import InHand, RunInThread, memory_of_call

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
        calls: those in hand.
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
        self.calls: InHand = InHand(take)
        self._failed = failed
        self._dropped = dropped
        self._drops = RateLimitedLog(logger, per_second=1)
        self._in_thread = in_thread
        self._answered: set[str] = set()

    def around(self, info: HandlerInfo, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, the handler of `info`, as one that returns at once."""
        line = asyncio.Semaphore(info.concurrency) if info.concurrency else None

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> None:
            made = functools.partial(function, *args, **kwargs)
            size = memory_of_call(made)
            in_hand, memory = len(self.calls.tasks), self.calls.memory
            if in_hand >= self._limit or memory + size > self._max_memory:
                self._dropped()
                self._drops.warning(
                    "message %r is dropped: %d are handled already, of %d bytes",
                    info.name, in_hand, memory,
                )  # fmt: skip
                return
            self.calls.begin(self._run(info, made, line), size)

        return call

    async def _run(
        self, info: HandlerInfo, call: Callable[[], Any], line: asyncio.Semaphore | None
    ) -> None:
        returned: Any = None
        error: BaseException | None
        try:
            returned, error = await outcome_of(self._call(info, call, line))
        except asyncio.CancelledError as cancelled:
            if not self._limit:  # `finish` tells of it.
                raise
            error = cancelled
        if error is not None:
            self._failed(info.name, error)
        elif returned is not None and info.name not in self._answered:
            self._answered.add(info.name)
            logger.warning(
                "message %r is acknowledged first: what %s returns is not used",
                info.name, described(info.function),
                extra=fields("answer not used", message=info.name),
            )  # fmt: skip

    async def _call(
        self, info: HandlerInfo, call: Callable[[], Any], line: asyncio.Semaphore | None
    ) -> Any:
        async with line or contextlib.nullcontext(), asyncio.timeout(info.timeout):
            return await (call() if info.asynchronous else self._in_thread(call))

    async def finish(self, timeout: float) -> None:
        """Wait until all calls have ended, for `timeout` seconds at most, and cancel the rest."""
        self._limit = 0
        if self.calls.tasks:
            _, left = await asyncio.wait(set(self.calls.tasks), timeout=timeout)
            for task in left:
                task.cancel()
            if left:
                logger.warning(
                    "%d messages that were acknowledged first did not end in %g s",
                    len(left), timeout,
                    extra=fields("messages cancelled", count=len(left), duration=timeout),
                )  # fmt: skip
