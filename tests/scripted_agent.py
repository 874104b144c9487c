"""An agent whose every answer a test decides, or chance.

It knows no pytest, so that benchmarks can use it.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

from spop import LocalProtocolError, codec
from spop.connection import ALL_CAPABILITIES, AgentConnection, Disconnect, Hello
from spop.constants import FLAGS_END, LENGTH_SIZE, FrameFlag, FrameType, Status
from spop.frames import Actions, Notify
from spop.values import Buffer

TIMEOUT = 15.0
"""Seconds within which what a test waits for must happen."""


class Told(NamedTuple):
    """A NOTIFY: its messages, and their bytes as received, put together from fragments."""

    notify: Notify
    payload: bytes

    @property
    def names(self) -> list[str]:
        return [message.name for message in self.notify.messages]


class Wire:
    """One connection of the agent, and what it may send.

    Attributes:
        greeted_at: the time of its HELLO, as `time.monotonic` gives it; 0 before.
    """

    def __init__(self, sock: socket.socket, protocol: AgentConnection) -> None:
        self.sock = sock
        self.protocol = protocol
        self.payloads = Payloads()
        self.greeted_at = 0.0

    def answer(self, notify: Notify, actions: Actions = ()) -> None:
        self.protocol.acknowledge(notify.stream_id, notify.frame_id, actions)
        self.sock.sendall(self.protocol.data_to_send())

    def answer_and_disconnect(self, notify: Notify, actions: Actions = ()) -> None:
        """Both in one send."""
        self.protocol.acknowledge(notify.stream_id, notify.frame_id, actions)
        self.disconnect(Status.NORMAL)

    def forget(self, notify: Notify) -> None:
        """Be ready for the next NOTIFY, as if this one was answered."""
        self.protocol.acknowledge(notify.stream_id, notify.frame_id)
        self.protocol.data_to_send()

    def disconnect(self, code: int, message: str = "so be it") -> None:
        self.protocol.disconnect(code, message)
        self.sock.sendall(self.protocol.data_to_send())
        self.hang_up()

    def hang_up(self) -> None:
        """Send nothing more. The agent still reads what the other end sends."""
        self.sock.shutdown(socket.SHUT_WR)

    def receive(self) -> bytes:
        """The bytes that are there; none at the end of the connection."""
        data = self.sock.recv(65536)
        # A selector does not see what TLS has decrypted and kept.
        while data and isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            data += self.sock.recv(65536)
        return data


Move = Callable[[Wire, Told], object]


def answers(wire: Wire, told: Told) -> None:
    """The move of an agent that sets no variable."""
    wire.answer(told.notify)


def echoes(wire: Wire, told: Told) -> None:
    """The move of an agent that answers with the number in the message and the size of its body."""
    (message,) = told.notify.messages
    size = len(message.get("body", b""))
    wire.answer(told.notify, {"sess.n": message.get("n"), "sess.size": size})


class ScriptedAgent:
    """An agent over `AgentConnection`, in a thread, for a ``with`` statement.

    Args:
        move: called with each NOTIFY. It must not block.
        greet: called with the socket of each connection, in a thread of its own, instead of all
            that an agent does.
        remembers: whether `told` grows.
        protocol: arguments of `AgentConnection`.

    Attributes:
        hold: while it is set, no move is called.
        told: what each NOTIFY said.
        connections: all that said HELLO, in order.
        accepted: number of connections that were accepted.
    """

    def __init__(
        self,
        move: Move = answers,
        *,
        greet: Callable[[socket.socket], object] | None = None,
        port: int = 0,
        path: Path | None = None,
        tls: ssl.SSLContext | None = None,
        remembers: bool = True,
        **protocol: Any,
    ) -> None:
        self.move = move
        self.hold = threading.Event()
        self.told: list[Told] = []
        self.hellos: list[Hello] = []
        self.connections: list[Wire] = []
        self.accepted = 0
        self._greet = greet
        self._tls = tls
        self._remembers = remembers
        self._protocol = {"capabilities": ALL_CAPABILITIES, "max_frame_size": 16380} | protocol
        self._wires: list[Wire] = []
        self._waiting: list[tuple[Wire, Told]] = []
        self._greeted: list[socket.socket] = []
        self._listener = _listener(port, path)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
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
        self._thread.join(10)
        self._listener.close()
        self._selector.close()
        for wire in self._wires:
            wire.sock.close()
        for sock in self._greeted:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def open(self) -> int:
        """Number of open connections."""
        return len(self._wires)

    def take(self) -> list[Told]:
        """What it was told since the last call."""
        told, self.told = self.told, []
        return told

    def wait_for(self, count: int) -> None:
        """Wait until so many NOTIFY frames have come."""
        self.wait_until(lambda agent: len(agent.told) >= count)

    def wait_until(self, condition: Callable[[ScriptedAgent], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition(self):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(0.01):
                if key.data is None:
                    self._accept()
                elif key.data in self._wires:  # Another move of this round may have dropped it.
                    self._read(key.data)
            if not self.hold.is_set():
                waiting, self._waiting = self._waiting, []
                self._answer(waiting)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        self.accepted += 1
        if self._greet is not None:
            self._greeted.append(sock)
            threading.Thread(target=self._greet_one, args=(sock,), daemon=True).start()
            return
        if self._tls is not None:
            sock.settimeout(10)
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                return
        wire = Wire(sock, AgentConnection(**self._protocol))
        self._wires.append(wire)
        self._selector.register(sock, selectors.EVENT_READ, wire)

    def _greet_one(self, sock: socket.socket) -> None:
        assert self._greet is not None
        with contextlib.suppress(OSError), sock:
            self._greet(sock)

    def _read(self, wire: Wire) -> None:
        try:
            data = wire.receive()
            if data:
                if self._remembers:
                    wire.payloads.feed(data)
                self._take(wire, wire.protocol.receive_data(data))
                wire.sock.sendall(wire.protocol.data_to_send())
        except OSError:
            data = b""
        if not data:
            self.drop(wire)

    def _take(self, wire: Wire, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Hello):
                wire.greeted_at = time.monotonic()
                self.hellos.append(event)
                self.connections.append(wire)
            elif isinstance(event, Notify):
                self._waiting.append((wire, self._remember(wire, event)))
        if any(isinstance(event, Disconnect) for event in events):
            # HAProxy reads the answer to its DISCONNECT before the end of the connection.
            with contextlib.suppress(OSError):
                wire.sock.sendall(wire.protocol.data_to_send())
            self.drop(wire)

    def _remember(self, wire: Wire, notify: Notify) -> Told:
        if not self._remembers:
            return Told(notify, b"")
        told = Told(notify, wire.payloads.take(notify.stream_id, notify.frame_id))
        self.told.append(told)
        return told

    def drop(self, wire: Wire) -> None:
        """Close a connection without a word."""
        if wire in self._wires:
            self._wires.remove(wire)
            self._selector.unregister(wire.sock)
            wire.sock.close()

    def _answer(self, waiting: list[tuple[Wire, Told]]) -> None:
        for wire, told in waiting:
            self._answer_one(wire, told)

    def _answer_one(self, wire: Wire, told: Told) -> None:
        if wire not in self._wires:
            return
        try:
            self.move(wire, told)
            self._take(wire, wire.protocol.resume())
        except (OSError, ValueError):
            self.drop(wire)
        else:
            if wire.protocol.should_close:
                self.drop(wire)


class ChaoticAgent(ScriptedAgent):
    """It answers in random order, on any connection of the engine, and drops connections."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(echoes, **options)
        self._chance = random.Random(seed)

    def _answer(self, waiting: list[tuple[Wire, Told]]) -> None:
        self._chance.shuffle(waiting)
        late = self._chance.randrange(len(waiting) + 1) if len(waiting) > 20 else 0
        self._waiting = waiting[:late]
        super()._answer(waiting[late:])

    def _answer_one(self, wire: Wire, told: Told) -> None:
        chance = self._chance
        if self._wires and chance.random() < 0.0005:
            self.drop(chance.choice(self._wires))
        if self._wires and chance.random() < 0.5:
            wire = chance.choice(self._wires)
        with contextlib.suppress(LocalProtocolError):  # Its HELLO has not come.
            super()._answer_one(wire, told)


class Payloads:
    """The payloads of NOTIFY frames, byte for byte, by stream-id and frame-id.

    HAProxy 2.6 uses the ids of a NOTIFY again if its time was up before it was sent.
    """

    def __init__(self) -> None:
        self._complete: dict[tuple[int, int], list[bytes]] = {}
        self._partial: dict[tuple[int, int], bytes] = {}
        self._data = b""

    def feed(self, data: Buffer) -> None:
        self._data += data
        while len(self._data) >= LENGTH_SIZE:
            end = LENGTH_SIZE + int.from_bytes(self._data[:LENGTH_SIZE], "big")
            if len(self._data) < end:
                return
            self._frame(self._data[:end])
            self._data = self._data[end:]

    def _frame(self, frame: bytes) -> None:
        if frame[LENGTH_SIZE] not in (FrameType.NOTIFY, FrameType.UNSET):
            return
        # SPOP 1.0 and 2.0 have the flags in different order.
        flags = frame[LENGTH_SIZE + 1] | frame[FLAGS_END - 1]
        stream_id, begin = codec.decode_varint(frame, FLAGS_END)
        frame_id, begin = codec.decode_varint(frame, begin)
        ids = stream_id, frame_id
        payload = self._partial.pop(ids, b"") + frame[begin:]
        if flags & FrameFlag.FIN and not flags & FrameFlag.ABORT:
            self._complete.setdefault(ids, []).append(payload)
        elif not flags & FrameFlag.ABORT:
            self._partial[ids] = payload

    def take(self, stream_id: int, frame_id: int) -> bytes:
        """The first of these ids that was not taken."""
        found = self._complete[stream_id, frame_id]
        payload = found.pop(0)
        if not found:
            del self._complete[stream_id, frame_id]
        return payload


def _listener(port: int, path: Path | None) -> socket.socket:
    if path is None:
        return socket.create_server(("127.0.0.1", port), backlog=128)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(128)
    return listener
