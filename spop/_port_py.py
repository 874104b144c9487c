"""The fast path between a socket and the dispatcher, in pure Python.

`_port.pyx` is the compiled twin, `spop.port` chooses. A poller calls it when a socket is ready.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from spop._dispatch_py import Deferred, Dispatcher
from spop._intake_py import Intake
from spop.agreement import Agreement
from spop.constants import LENGTH_SIZE, MAX_CONTROL_SIZE
from spop.counters import Cell
from spop.frames import Frame

READ = 1

GoOn = Callable[[Any, list[Frame | Deferred], bytes, Exception | None], object]
Greeted = Callable[[Any, Agreement, bytes], object]


class Sleeper:
    """What a thread sleeps on.

    ``sleep()`` waits for a ``wake()``, or returns at once if that has come already.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self) -> None:
        self._lock.acquire()

    def wake(self) -> None:
        self._lock.release()


class FastPaths:
    """The parts that the fast paths of a loop share.

    Args:
        dispatcher: answers NOTIFY frames.
        buffer: receives the bytes.
        ready: called when the fast path can't be used, with the connection and the events of its
            socket.
        go_on: called when the fast path can't finish, with the connection, the frames that
            `Dispatcher.receive` left, the bytes that could not be sent, and the error. The error
            is an `EOFError` if the peer has closed its side.
        flush: called with a connection that `send_acks` can't send all ACKs of, or that has more
            to do than that.
        greeted: called with a connection that has said a HELLO of `hellos`, the agreement, and the
            bytes of the answer that could not be sent.

    Attributes:
        hellos: HELLOs that are answered at once, by their bytes, and what is agreed on.
    """

    __slots__ = ("_buffer", "_dispatcher", "_flush", "_go_on", "_greeted", "_ready", "hellos")

    def __init__(
        self,
        dispatcher: Dispatcher,
        buffer: bytearray,
        ready: Callable[[Any, int], object],
        go_on: GoOn,
        flush: Callable[[Any], object],
        greeted: Greeted = lambda *_: None,
    ) -> None:
        self._dispatcher = dispatcher
        self._buffer = buffer
        self._ready = ready
        self._go_on = go_on
        self._flush = flush
        self._greeted = greeted
        self.hellos: dict[bytes, Agreement] = {}

    def send_acks(self) -> None:
        """Send the ACKs that `Dispatcher.settled` tells of, with one send for each connection."""
        settled = self._dispatcher.settled
        while settled:
            path = settled.pop()
            if path.connection is not None and not path._send_acks():
                self._flush(path.connection)


class FastPath:
    """Answers the NOTIFY frames of a socket, and HELLO: one recv, one pass, one send.

    The poller calls it with the events of the socket. It works while the connection's intake is
    neither closed nor paused.

    Attributes:
        enabled: the loop allows it.
        active: set to true when bytes are sent. The loop sets it to false.
        events: what the poller waits for.
        hello: the first bytes, if no more followed and `FastPaths.hellos` does not have them.
    """

    __slots__ = (
        "_intake", "_shared", "active", "connection", "enabled", "events", "fd", "hello",
    )  # fmt: skip

    def __init__(self, shared: FastPaths, intake: Intake, fd: int, connection: Any) -> None:
        self._shared = shared
        self._intake = intake
        self.fd: int = fd
        self.connection: Any = connection
        self.enabled: bool = False
        self.active: bool = False
        self.events: int = READ
        self.hello: bytes | None = None

    def close(self) -> None:
        """Release the connection."""
        self.enabled = False
        self.connection = None

    def fail(self, error: Exception) -> None:
        """End the connection, unless it has ended, after an unexpected error."""
        if self.connection is not None:
            self._shared._go_on(self.connection, [], b"", error)

    def __call__(self, events: int) -> None:
        """The socket is ready to be read or written."""
        if events == READ and self.enabled and not self._intake.closed and not self._intake.paused:
            self._exchange()
        else:
            self._shared._ready(self.connection, events)

    def _exchange(self) -> None:
        try:
            frames, unsent = self._receive()
        except Exception as error:  # No other name has it: its traceback has this frame.
            self._shared._go_on(self.connection, [], b"", error)
            return
        intake = self._intake
        if frames or unsent or (intake.paused and intake.unread):
            self._shared._go_on(self.connection, frames, unsent, None)

    def _send_acks(self) -> bool:
        """Send the ACKs of calls that have ended. False: there is more to do."""
        intake = self._intake
        if not self.enabled or self.events != READ or intake.unread:
            return False
        acks = self._send(intake.take_acks())
        intake._acks += acks
        return not acks

    def _receive(self) -> tuple[list[Frame | Deferred], bytes]:
        """The frames that are left to the loop, and the ACKs that could not be sent."""
        dispatcher, buffer = self._shared._dispatcher, self._shared._buffer
        intake = self._intake
        # A peer has to wait for our HELLO. What it sends behind its own is not copied yet.
        room = buffer if intake.is_open else memoryview(buffer)[: LENGTH_SIZE + MAX_CONTROL_SIZE]
        try:
            size = os.readv(self.fd, [room])
        except (BlockingIOError, InterruptedError):
            return [], b""
        if size == 0:
            raise EOFError
        dispatcher.cells[Cell.BYTES_RECEIVED] += size
        if not intake.is_open and self._greet(bytes(room[:size])):
            return [], b""
        dispatcher.new_pass()
        dispatcher.path = self
        try:
            frames, acks = dispatcher.receive(intake, buffer, size)
        finally:
            dispatcher.path = None
        while acks or frames:
            acks = self._send(acks)
            if acks or frames:
                break
            if not intake.unread:
                break
            # Unread bytes are a partial frame, a malformed one, or frames beyond
            # `max_answer_size`.
            frames, acks = dispatcher.receive(intake, b"")
        return frames, acks

    def _greet(self, hello: bytes) -> bool:
        """Answer a HELLO that came before with the same bytes. False: it is another."""
        self.hello = None
        if self._intake.unread:
            return False
        agreed = self._shared.hellos.get(hello)
        if agreed is None:
            self.hello = hello
            return False
        self._shared._greeted(self.connection, agreed, self._send(agreed.answer))
        return True

    def _send(self, acks: bytes) -> bytes:
        """Send ACKs. Returns the unsent bytes. An error shows again when the loop sends them."""
        if not acks:
            return acks
        try:
            sent = os.write(self.fd, acks)
        except OSError:
            return acks
        self._shared._dispatcher.cells[Cell.BYTES_SENT] += sent
        self.active = True
        return acks[sent:]
