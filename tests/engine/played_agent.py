"""An agent whose every word a test decides, and that keeps the bytes it was told."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

from haproxy import wait_until

from spop.connection import ALL_CAPABILITIES, AgentConnection, Hello
from spop.constants import FrameFlag, FrameType, Status
from spop.frames import Actions, Notify


class Told(NamedTuple):
    """A NOTIFY: its messages, and the bytes that they came as, put together from fragments."""

    notify: Notify
    payload: bytes

    @property
    def names(self) -> list[str]:
        return [message.name for message in self.notify.messages]


class Wire:
    """One connection of the agent: what it may say."""

    def __init__(self, sock: socket.socket, protocol: AgentConnection) -> None:
        self.sock = sock
        self.protocol = protocol

    def answer(self, notify: Notify, actions: Actions = ()) -> None:
        self.protocol.acknowledge(notify.stream_id, notify.frame_id, actions)
        self.sock.sendall(self.protocol.data_to_send())

    def answer_and_disconnect(self, notify: Notify, actions: Actions = ()) -> None:
        """Both in one send."""
        self.protocol.acknowledge(notify.stream_id, notify.frame_id, actions)
        self.disconnect(Status.NORMAL)

    def forget(self, notify: Notify) -> None:
        """Be ready for the next, as if it was answered."""
        self.protocol.acknowledge(notify.stream_id, notify.frame_id)
        self.protocol.data_to_send()

    def disconnect(self, code: int, message: str = "so be it") -> None:
        self.protocol.disconnect(code, message)
        self.sock.sendall(self.protocol.data_to_send())
        self.hang_up()

    def hang_up(self) -> None:
        """No word more; what the other end still says is heard to the end."""
        self.sock.shutdown(socket.SHUT_WR)


Move = Callable[[Wire, Told], object]


def answers(wire: Wire, told: Told) -> None:
    """The move of an agent that does what it should."""
    wire.answer(told.notify)


class PlayedAgent:
    """An agent in threads, for a ``with`` statement.

    Args:
        move: called with each NOTIFY, and before the next one of its connection.
        greet: instead of the HELLO that is right: what to do with the socket of a connection.
        protocol: of `AgentConnection`.
    """

    def __init__(
        self,
        move: Move = answers,
        *,
        greet: Callable[[socket.socket], object] | None = None,
        port: int = 0,
        path: Path | None = None,
        tls: ssl.SSLContext | None = None,
        **protocol: Any,
    ) -> None:
        self.move = move
        self.told: list[Told] = []
        self.hellos: list[Hello] = []
        self.connections: list[Wire] = []
        self._greet = greet
        self._tls = tls
        self._protocol = {"capabilities": ALL_CAPABILITIES, "max_frame_size": 16380} | protocol
        self._listener = _listener(port, path)
        self._ended = False
        self._sockets: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        if path is None:
            self.port = self._listener.getsockname()[1]
            self.address = f"127.0.0.1:{self.port}"
        else:
            self.address = f"unix:{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def take(self) -> list[Told]:
        """What it was told since the last time."""
        told, self.told = self.told, []
        return told

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.told) >= count, f"NOTIFY number {count}")

    def _accept(self) -> None:
        while not self._ended:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._run, args=(sock,), daemon=True).start()

    def _run(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self._sockets.add(sock)
            if self._greet is None:
                self._converse(sock)
            else:
                self._greet(sock)
        sock.close()
        self._sockets.discard(sock)

    def _converse(self, sock: socket.socket) -> None:
        protocol = AgentConnection(**self._protocol)
        wire, payloads = Wire(sock, protocol), Payloads()
        while data := sock.recv(65536):
            payloads.feed(data)
            events = protocol.receive_data(data)
            sock.sendall(protocol.data_to_send())
            while events:
                for event in events:
                    if isinstance(event, Hello):
                        self.hellos.append(event)
                        self.connections.append(wire)
                    elif isinstance(event, Notify):
                        ids = event.stream_id, event.frame_id
                        told = Told(event, payloads.complete.pop(ids))
                        self.told.append(told)
                        self.move(wire, told)
                events = protocol.resume()
            if protocol.should_close:
                return


class Payloads:
    """The payloads of NOTIFY frames, byte for byte, by stream-id and frame-id."""

    def __init__(self) -> None:
        self.complete: dict[tuple[int, int], bytes] = {}
        self._partial: dict[tuple[int, int], bytes] = {}
        self._data = b""

    def feed(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= 4:
            end = 4 + int.from_bytes(self._data[:4], "big")
            if len(self._data) < end:
                return
            self._frame(self._data[4:end])
            self._data = self._data[end:]

    def _frame(self, frame: bytes) -> None:
        if frame[0] not in (FrameType.NOTIFY, FrameType.UNSET):
            return
        flags = frame[1] | frame[4]  # SPOP 1.0 and 2.0 have them in different order.
        stream_id, begin = _varint(frame, 5)
        frame_id, begin = _varint(frame, begin)
        ids = stream_id, frame_id
        payload = self._partial.pop(ids, b"") + frame[begin:]
        if flags & FrameFlag.FIN:
            self.complete[ids] = payload
        else:
            self._partial[ids] = payload


def _varint(data: bytes, begin: int) -> tuple[int, int]:
    value, shift = data[begin], 4
    if value >= 240:
        while True:
            begin += 1
            value += data[begin] << shift
            shift += 7
            if data[begin] < 128:
                break
    return value, begin + 1


def _listener(port: int, path: Path | None) -> socket.socket:
    if path is None:
        return socket.create_server(("127.0.0.1", port), backlog=128)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(128)
    return listener
