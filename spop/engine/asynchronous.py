"""`AsyncEngine`: its events are awaited, by any number of tasks of one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar, Unpack

from spop.client import AsyncClient
from spop.constants import EngineStatus
from spop.engine.balance import BackendServer
from spop.engine.core import EngineCore, stream_of
from spop.engine.filter import Processing, StreamContext
from spop.engine.stream import Stream, StreamFields
from spop.errors import SpopTimeoutError

T = TypeVar("T")


class AsyncStream(StreamContext):
    """A stream of an `AsyncEngine`, for ``async with``. One task at a time may use it."""

    __slots__ = ()
    _engine: AsyncEngine

    def event(self, event: str) -> Coroutine[Any, Any, Processing | None]:
        """Process an event, as `BlockingStream.event` does. It begins when it is awaited.

        Cancelling the task interrupts the processing. That is an error: without
        ``option continue-on-error``, the engine is disabled for the stream.
        """
        return self._exchange(self.begin_event, event)

    def send_group(self, name: str) -> Coroutine[Any, Any, Processing | None]:
        """Send the messages of a group, as `BlockingStream.send_group` does."""
        return self._exchange(self.begin_group, name)

    def exchange(self, processing: Processing) -> Coroutine[Any, Any, Processing | None]:
        """Exchange what `begin_event` or `begin_group` began. Raises what `event` raises."""
        return self._exchange(_begun, processing)

    async def _exchange(self, begin: Callable[[T], Processing | None], of: T) -> Processing | None:
        processing = begin(of)
        if processing is None:
            return None
        calls = self._engine._calls
        try:
            calls.pool.call(processing, processing.queued_at)
            if not processing.done:
                await calls.waiter(processing, processing.started_at + self._filter.timeout)
        except SpopTimeoutError:
            calls.pool.abandon(processing)
            self._end(processing, EngineStatus.TIMEOUT)
        except BaseException:
            calls.pool.abandon(processing)
            self._end(processing, EngineStatus.INTERRUPTED)
            raise
        else:
            self._end(processing)
        return processing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End the stream."""


def _begun(processing: Processing) -> Processing:
    return processing


class AsyncEngine(EngineCore):
    """HAProxy's SPOE filter for asyncio. `EngineCore` documents the arguments.

    All streams of an engine are used in one event loop. Once that is closed, another one may use
    the engine, with new connections.
    """

    _client_class = AsyncClient
    _calls: AsyncClient
    _loop: asyncio.AbstractEventLoop | None = None

    def stream(
        self, stream: Stream | None = None, /, **fields: Unpack[StreamFields]
    ) -> AsyncStream:
        """Begin a stream, as `Engine.stream` does.

        Raises:
            RuntimeError: the engine belongs to another event loop.
        """
        if asyncio.get_running_loop() is not self._loop:
            self.bind()
        return self.begin(stream_of(stream, fields))

    def begin(self, stream: Stream) -> AsyncStream:
        """Begin a stream, in the event loop that the engine is bound to."""
        return AsyncStream(self, self._filter, stream, next(self._filter.stream_ids))

    def bind(self) -> None:
        """Belong to the running event loop, with new connections if the last one is closed.

        Raises:
            RuntimeError: the engine belongs to another event loop.
        """
        self._calls.bind()
        self._loop = asyncio.get_running_loop()
        self._start()

    def begin_anew(self) -> None:
        super().begin_anew()
        self._loop = None

    async def close(self) -> None:
        """Send DISCONNECT on all connections, and interrupt all processings."""
        self._close()
        await self._calls.close()

    def _server_changed(self, server: BackendServer) -> None:
        # Called by a thread of the checks.
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._calls.pump)

    async def __aenter__(self) -> Self:
        self.bind()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
