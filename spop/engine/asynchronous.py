"""`AsyncEngine`: its events are awaited, by any number of tasks of one event loop."""

from __future__ import annotations

import asyncio
from typing import Self, Unpack

from spop.client import AsyncClient
from spop.constants import EngineStatus
from spop.engine.balance import BackendServer
from spop.engine.core import EngineCore, stream_of
from spop.engine.filter import StreamContext
from spop.engine.processing import Processing
from spop.engine.stream import Stream, StreamFields
from spop.errors import SpopTimeoutError


class AsyncStream(StreamContext):
    """A stream of an `AsyncEngine`, for ``async with``. One task at a time may use it."""

    __slots__ = ()

    _engine: AsyncEngine

    async def event(self, event: str) -> Processing | None:
        """Process an event, as `BlockingStream.event` does. It begins when it is awaited.

        Cancelling the task interrupts the processing. That is an error: without
        ``option continue-on-error``, the engine is disabled for the stream.
        """
        processing = self.begin_event(event)
        return None if processing is None else await self.exchange(processing)

    async def send_group(self, name: str) -> Processing | None:
        """Send the messages of a group, as `BlockingStream.send_group` does."""
        processing = self.begin_group(name)
        return None if processing is None else await self.exchange(processing)

    async def exchange(self, processing: Processing) -> Processing:
        """Exchange what `begin_event` or `begin_group` began. Raises what `event` raises."""
        try:
            await self.send(processing)
        except BaseException as error:
            self.give_up(processing, error)
        else:
            self.end(processing)
        return processing

    def send(self, processing: Processing) -> asyncio.Future[None]:
        """The first step of an exchange. `end` must follow what it returns, or `give_up` where
        this or the wait raises."""
        calls = self._engine._calls
        waiter = calls.waiter(processing, processing.started_at + self._filter.timeout)
        calls.pool.call(processing, processing.queued_at)
        return waiter

    def give_up(self, processing: Processing, error: BaseException) -> None:
        """End an exchange that an error has ended. Raises the error, unless it is a timeout."""
        self._engine._calls.pool.abandon(processing)
        if isinstance(error, SpopTimeoutError):
            self.end(processing, EngineStatus.TIMEOUT)
        else:
            self.end(processing, EngineStatus.INTERRUPTED)
            raise error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End the stream."""


class AsyncEngine(EngineCore[AsyncStream]):
    """HAProxy's SPOE filter for asyncio. `EngineCore` documents the arguments.

    All streams of an engine are used in one event loop. Once that is closed, another one may use
    the engine, with new connections.
    """

    _client_class = AsyncClient
    _stream_class = AsyncStream
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
