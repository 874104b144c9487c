"""`Engine`: its events block, in any number of threads."""

from __future__ import annotations

from typing import Self, Unpack

from spop.client import Client
from spop.constants import EngineStatus
from spop.engine.balance import BackendServer
from spop.engine.core import EngineCore, stream_of
from spop.engine.filter import StreamContext
from spop.engine.processing import Processing
from spop.engine.stream import Stream, StreamFields
from spop.errors import SpopTimeoutError


class BlockingStream(StreamContext):
    """A stream of an `Engine`, for a ``with`` statement. One thread at a time may use it."""

    __slots__ = ()

    _engine: Engine

    def event(self, event: str) -> Processing | None:
        """Process an event: send its messages, wait for the ACK, set variables.

        Returns:
            The processing. Errors of agents are in its status. None if nothing was sent: no message
            of the event applies, the event happened before, the engine is disabled for the
            stream, or ``maxerrrate`` is reached.

        Raises:
            ValueError: there is no such event.
            LocalProtocolError: a later event of the stream has happened, or the engine is closed.
        """
        processing = self.begin_event(event)
        return None if processing is None else self.exchange(processing)

    def send_group(self, name: str) -> Processing | None:
        """Send the messages of a group, as ``send-spoe-group`` does. Returns what `event` returns.

        Raises:
            ValueError: the configuration has no such group.
            LocalProtocolError: the engine is closed.
        """
        processing = self.begin_group(name)
        return None if processing is None else self.exchange(processing)

    def exchange(self, processing: Processing) -> Processing:
        """Exchange what `begin_event` or `begin_group` began. Raises what `event` raises."""
        calls = self._engine._calls
        deadline = processing.started_at + self._filter.timeout
        try:
            calls.submit(processing, deadline)
            calls.wait_for(processing, deadline)
        except SpopTimeoutError:
            self.end(processing, EngineStatus.TIMEOUT)
        except BaseException:
            self.end(processing, EngineStatus.INTERRUPTED)
            raise
        else:
            self.end(processing)
        return processing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the stream."""


class Engine(EngineCore[BlockingStream]):
    """HAProxy's SPOE filter for threads. `EngineCore` documents the arguments.

    An engine connects to agents when it needs a connection. Health checks start with the first
    stream or a ``with`` statement, which also closes the engine.
    """

    _client_class = Client
    _stream_class = BlockingStream
    _calls: Client

    def stream(
        self, stream: Stream | None = None, /, **fields: Unpack[StreamFields]
    ) -> BlockingStream:
        """Begin a stream, from a `Stream` or from its fields.

        Raises:
            TypeError: both are given, or there is no such field.
        """
        if not self._started:
            self._start()
        return self.begin(stream_of(stream, fields))

    def close(self) -> None:
        """Send DISCONNECT on all connections, and interrupt all processings."""
        self._close()
        self._calls.close()

    def _server_changed(self, server: BackendServer) -> None:
        self._calls.pump()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
