"""A connection on the caller's event loop: bytes in, frames to the drop-in of a package, bytes out.

The servers of both packages ignore the flags of a frame, answer one connection's frames in turn
up to a limit, and stop reading at it. This has what they share. It uses asyncio's transports, so
that handlers run on the event loop, and in the process, that the agent was written for.
"""

from __future__ import annotations

import asyncio
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

from spop.codec import decode_frames, encode_control, encode_raw_frame
from spop.compat.sockets import Sockets
from spop.constants import LENGTH_SIZE, FrameFlag, FrameType
from spop.errors import FrameTooBigError, ProtocolError
from spop.frames import Control, Frame, Notify

_ACK, _FIN = int(FrameType.ACK), int(FrameFlag.FIN)


def starting(
    loop: asyncio.AbstractEventLoop,
) -> Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]:
    """Makes a task. From Python 3.12 on this also runs its first step."""
    if sys.version_info >= (3, 12) and loop.get_task_factory() is None:
        return partial(asyncio.Task, loop=loop, eager_start=True)
    return loop.create_task


class Connection(asyncio.Protocol):
    """One connection of HAProxy.

    Args:
        connections: those of the server. It is in it from its begin to its end.
        max_frame_size: bytes above which a frame is an error.

    Attributes:
        ack_limit: bytes above which an ACK is an error.
        limit: number of NOTIFY frames that may wait for their handlers.
        in_flight: number of those that do.
        closing: nothing more is read or sent.
        greeted: HAPROXY-HELLO has come.
    """

    def __init__(self, connections: set[Connection], max_frame_size: int) -> None:
        self._connections = connections
        self.max_frame_size: int = max_frame_size
        self.ack_limit: int = max_frame_size
        self.limit: int = 1
        self.in_flight: int = 0
        self.closing: bool = False
        self.greeted: bool = False
        self._ended = False  # The peer has closed its side.
        self._writable = True
        self._reading = True
        self._inside = False
        self._ordered = False
        self._unread = b""
        self._waiting: deque[Frame | ProtocolError] = deque()
        self._out: list[bytes | bytearray] = []

    def allow(
        self, *, frame_size: int | None = None, ack: int | None = None, calls: int = 1
    ) -> None:
        """Set `max_frame_size`, `ack_limit` and `limit`; None leaves the first two as they are."""
        self.max_frame_size = self.max_frame_size if frame_size is None else frame_size
        self.ack_limit = self.ack_limit if ack is None else ack
        self.limit = calls

    def begin_call(self) -> None:
        """A NOTIFY waits for its handlers."""
        self.in_flight += 1

    @abstractmethod
    def hello(self, items: Mapping[str, Any]) -> None:
        """Answer HAPROXY-HELLO."""

    @abstractmethod
    def goodbye(self, items: Mapping[str, Any]) -> None:
        """Answer HAPROXY-DISCONNECT."""

    @abstractmethod
    def notify(self, frame: Notify) -> None:
        """Begin to answer a NOTIFY. `in_flight` counts it until its ACK is sent."""

    @abstractmethod
    def unexpected(self, type_: int) -> None:
        """A frame came that may not come now."""

    @abstractmethod
    def malformed(self, error: ProtocolError) -> None:
        """Bytes came that are no frame."""

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.start: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]] = starting(self.loop)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._unread:
            data = self._unread + data
        offset, waiting = 0, self._waiting
        try:
            while True:
                frames, end = decode_frames(
                    data, offset, max_frame_size=self.max_frame_size, whole=True
                )
                waiting.extend(frames)
                if end == offset or end == len(data):
                    break
                offset = end
        except ProtocolError as error:
            waiting.append(error)
            end = offset
        self._unread = data[end:] if end < len(data) else b""
        self.go_on()

    def eof_received(self) -> bool:
        self._ended = True
        return self.in_flight > 0 or bool(self._waiting)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self.go_on()

    def connection_lost(self, error: Exception | None) -> None:
        self.closing = True
        self._waiting.clear()
        self._connections.discard(self)

    # --- frames in, bytes out ---

    def go_on(self) -> None:
        """Answer frames that wait, as far as the limit allows, with one write."""
        waiting = self._waiting
        self._inside = True
        try:
            while waiting and self.in_flight < self.limit and self._writable and not self.closing:
                frame = waiting.popleft()
                if type(frame) is Notify and self.greeted:
                    self.notify(frame)
                else:
                    self._see_to(frame)
        finally:
            self._inside = False
        self._flush()
        if waiting if self._reading else not waiting:
            self._watch(not waiting)
        if self._ended and not waiting and not self.in_flight:
            self.close()

    def _see_to(self, frame: Frame | ProtocolError) -> None:
        if isinstance(frame, ProtocolError):
            self.malformed(frame)
        elif not isinstance(frame, Control):
            self.unexpected(frame.type)
        elif frame.type is FrameType.HAPROXY_HELLO and not self.greeted:
            self.greeted = True
            self.hello(frame.items)
        elif frame.type is FrameType.HAPROXY_DISCONNECT and self.greeted:
            self.goodbye(frame.items)
        else:
            self.unexpected(frame.type)

    def _watch(self, reading: bool) -> None:
        """Read from the socket, or leave what comes in the kernel's buffers."""
        if not self.transport.is_closing():
            self._reading = reading
            self.transport.resume_reading() if reading else self.transport.pause_reading()

    def acknowledge(self, frame: Notify, actions: bytes | bytearray) -> None:
        """Send the ACK of a NOTIFY, with others of this turn of the event loop.

        Raises:
            FrameTooBigError: it is longer than the peer takes.
        """
        ack = encode_raw_frame(_ACK, _FIN, frame.stream_id, frame.frame_id, actions)
        length = len(ack) - LENGTH_SIZE
        if length > self.ack_limit:
            raise FrameTooBigError(f"ACK of {length} bytes, {self.ack_limit} at most")
        self.in_flight -= 1
        self._out.append(ack)
        if not self._inside and not self._ordered and not self.closing:
            self._ordered = True
            self.loop.call_soon(self._answer_ordered)

    def _answer_ordered(self) -> None:
        self._ordered = False
        if not self.closing:
            self.go_on()

    def send_control(self, type_: FrameType, items: Mapping[str, Any]) -> None:
        """Send HELLO or DISCONNECT."""
        self._out.append(encode_control(type_, dict(items)))

    def _flush(self) -> None:
        out = self._out
        if out:
            self._out = []
            if not self.transport.is_closing():
                self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def close(self) -> None:
        """Send what there is to send, and close."""
        self._flush()
        self.closing = True
        self.transport.close()

    def fail(self, error: BaseException) -> None:
        """Close without an answer, after an error of the agent, as both packages do."""
        self.loop.call_exception_handler(
            {
                "message": "Unhandled exception in client_connected_cb",
                "exception": error,
                "transport": self.transport,
            }
        )
        self.close()


class NewConnection(Protocol):
    """Makes the connections of a server."""

    def __call__(self, connections: set[Connection], /) -> Connection: ...


async def serve(
    new: NewConnection,
    host: Any,
    port: Any,
    listening: Callable[[], object],
    ssl: Any = None,
) -> None:
    """Serve on the running event loop until cancelled, where ``asyncio.start_server`` would.

    Args:
        listening: called once it listens.
    """
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    sockets = None if ssl is not None else _new_sockets(loop)

    def accept() -> asyncio.Protocol:
        connection = new(connections)
        return connection if sockets is None else sockets.take(connection)

    server = await loop.create_server(accept, host, port, ssl=ssl)
    try:
        listening()
        await loop.create_future()
    finally:
        server.close()
        for connection in list(connections):
            connection.close()
            connection.transport.abort()
        if sockets is not None:
            sockets.close()


def _new_sockets(loop: asyncio.AbstractEventLoop) -> Sockets | None:
    try:
        return Sockets(loop)
    except NotImplementedError:  # Of the poller, or of the event loop, as that of Windows.
        return None
