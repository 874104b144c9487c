"""Calls of handlers that nobody may wait for: each runs in a task of its own."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import Any

from spop.constants import VALUE_SIZE
from spop.context import current, set_running
from spop.frames import Message
from spop.headers import Headers

RunInThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class InHand:
    """The calls of one kind, in one loop.

    Args:
        take: called with the bytes of memory that the arguments of each call take.

    Attributes:
        tasks: those of the calls that have not ended.
        memory: bytes that the arguments of these calls take, roughly.
    """

    def __init__(self, take: Callable[[int], object]) -> None:
        self._take = take
        self.tasks: set[asyncio.Task[Any]] = set()
        self.memory: int = 0

    def begin(self, run: Coroutine[Any, Any, Any], size: int) -> asyncio.Task[Any]:
        """Make a call in a task that knows which message it handles.

        Args:
            size: what `memory_of_call` says of the call.
        """
        context = copy_context()
        running = current()
        context.run(set_running, tuple(running) if running else lambda: None)
        task = asyncio.get_running_loop().create_task(run, context=context)
        self.tasks.add(task)
        self.memory += size
        self._take(size)
        task.add_done_callback(functools.partial(self._ended, size))
        return task

    def _ended(self, size: int, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        self.memory -= size


def memory_of_call(call: functools.partial[Any]) -> int:
    """Bytes that the arguments of a call take, roughly."""
    return sum(map(_memory_of, (*call.args, *call.keywords.values())))


def _memory_of(value: Any) -> int:
    if isinstance(value, Message):
        return sum(map(_memory_of, value.values))
    if isinstance(value, Headers):
        return sum(len(name) + len(text) for name, text in value.raw)
    return VALUE_SIZE + (len(value) if isinstance(value, (str, bytes)) else 0)
