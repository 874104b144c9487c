"""`Engine`: streams whose events block, from any number of threads."""

from __future__ import annotations

from typing import Any, Self

from spop.client import Client
from spop.constants import EngineStatus
from spop.engine.balance import BackendServer
from spop.engine.core import EngineCore
from spop.engine.filter import Processing, StreamContext
from spop.engine.stream import Stream
from spop.errors import SpopTimeoutError


class BlockingStream(StreamContext):
    """A stream of an `Engine`, for a ``with`` statement; one thread uses it at a time."""

    __slots__ = ()
    _engine: Engine

    def event(self, event: str) -> Processing | None:
        """Have an event happen: send its messages, wait for the ACK, set variables.

        Returns:
            What became of it, errors of agents included; None where nothing was sent: it has
            no messages that apply, happened before, or the engine is disabled or held back.

        Raises:
            ValueError: there is no such event.
            LocalProtocolError: the stream is beyond it, or the engine is closed.
        """
        processing = self._begin_event(event)
        return None if processing is None else self._exchange(processing)

    def send_group(self, name: str) -> Processing | None:
        """Send a group's messages now, as ``send-spoe-group`` does. Returns as `event` does.

        Raises:
            ValueError: the configuration has no such group.
            LocalProtocolError: the engine is closed.
        """
        processing = self._begin_group(name)
        return None if processing is None else self._exchange(processing)

    def _exchange(self, processing: Processing) -> Processing:
        calls = self._engine._calls
        try:
            calls.submit(processing)
            calls.wait_for(processing, self._filter.deadline(processing))
        except SpopTimeoutError:
            self._fail(processing, EngineStatus.TIMEOUT)
        except BaseException:
            self._fail(processing, EngineStatus.INTERRUPTED)
            raise
        else:
            self._end(processing)
        return processing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """The stream is over."""


class Engine(EngineCore):
    """HAProxy's SPOE filter for threads; see `EngineCore` for the arguments.

    It connects to agents when it must. Health checks begin with the first stream, or with a
    ``with`` statement, which also closes the engine.
    """

    _face = Client
    _calls: Client

    def stream(self, stream: Stream | None = None, /, **fields: Any) -> BlockingStream:
        """Begin a stream: with its data, or with what a `Stream` is made of.

        Raises:
            TypeError: both were given, or there is no such field.
        """
        if not self._started:
            self._start()
        if stream is None:
            stream = Stream(**fields)
        elif fields:
            raise TypeError("a Stream has its own fields: give either it or them")
        return BlockingStream(self, self._filter, stream)

    def close(self) -> None:
        """Say DISCONNECT on all connections; what waits for an answer is interrupted."""
        self._close()
        self._calls.close()

    def _server_changed(self, server: BackendServer) -> None:
        self._calls.pump()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
