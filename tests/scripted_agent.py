"""An agent over `AgentConnection` whose moves a test decides, or chance."""

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
from typing import Any

from spop import LocalProtocolError
from spop.connection import ALL_CAPABILITIES, AgentConnection, Disconnect, Hello
from spop.frames import Notify


class ScriptedAgent:
    """An agent over `AgentConnection` whose every move a test decides, for a ``with`` statement.

    Args:
        chaos: answers in random order, on any connection of the engine, and drops connections.
    """

    def __init__(
        self,
        *,
        chaos: random.Random | None = None,
        capabilities: frozenset[str] = ALL_CAPABILITIES,
        max_frame_size: int = 16380,
        tls: ssl.SSLContext | None = None,
        path: Path | None = None,
    ) -> None:
        self._chaos = chaos
        self._options: dict[str, Any] = {
            "capabilities": capabilities,
            "max_frame_size": max_frame_size,
        }
        self.hold = threading.Event()
        self.received: list[Notify] = []
        self.remembers = True
        self.accepted = 0
        self.hellos: list[float] = []
        self._held: list[tuple[socket.socket, Notify]] = []
        self._connections: dict[socket.socket, AgentConnection] = {}
        self._selector = selectors.DefaultSelector()
        self._ended = False
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
            self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen()
            self.address = f"unix:{path}"
        self._tls = tls
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ScriptedAgent:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended = True
        self._thread.join(10)
        for sock in self._connections:
            sock.close()
        self._listener.close()
        self._selector.close()

    @property
    def open(self) -> int:
        return len(self._connections)

    def wait_until(self, condition: Callable[[ScriptedAgent], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition(self):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(0.01):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.fileobj)  # type: ignore[arg-type]
            if not self.hold.is_set():
                self._answer()

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        if self._tls is not None:
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                return
        self.accepted += 1
        self._connections[sock] = AgentConnection(**self._options)
        self._selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: socket.socket) -> None:
        protocol = self._connections.get(sock)
        if protocol is None:
            return
        try:
            data = sock.recv(65536)
            if not data:
                self.drop(sock)
                return
            events = protocol.receive_data(data)
            sock.sendall(protocol.data_to_send())
        except OSError:
            self.drop(sock)
            return
        for event in events:
            if isinstance(event, Hello):
                self.hellos.append(time.monotonic())
            elif isinstance(event, Notify):
                self._remember(event)
                self._held.append((sock, event))
            elif isinstance(event, Disconnect):
                self.drop(sock)
                return

    def _remember(self, notify: Notify) -> None:
        if self.remembers:
            self.received.append(notify)

    def drop(self, sock: socket.socket) -> None:
        if sock in self._connections:
            del self._connections[sock]
            self._selector.unregister(sock)
            sock.close()

    def _answer(self) -> None:
        held, self._held = self._held, []
        if self._chaos is not None:
            self._chaos.shuffle(held)
            late = self._chaos.randrange(len(held) + 1) if len(held) > 20 else 0
            self._held, held = held[:late], held[late:]
        for sock, notify in held:
            self._answer_one(sock, notify)

    def _answer_one(self, sock: socket.socket, notify: Notify) -> None:
        chaos = self._chaos
        if chaos is not None and self._connections:
            if chaos.random() < 0.0005:
                self.drop(chaos.choice(list(self._connections)))
            if self._connections and chaos.random() < 0.5:
                sock = chaos.choice(list(self._connections))
        protocol = self._connections.get(sock)
        if protocol is None or protocol.peer is None:
            return
        (message,) = notify.messages
        with contextlib.suppress(OSError, LocalProtocolError):
            protocol.acknowledge(
                notify.stream_id,
                notify.frame_id,
                {"sess.n": message.get("n"), "sess.size": len(message.get("body", b""))},
            )
            sock.sendall(protocol.data_to_send())
            for event in protocol.resume():
                if isinstance(event, Notify):
                    self._remember(event)
                    self._held.append((sock, event))
