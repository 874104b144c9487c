"""A blocking client on one connection, for one thread."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterable
from typing import Self

from spop.address import Address
from spop.connection import ALL_CAPABILITIES, Disconnect, EngineConnection, EngineEvent, Peer
from spop.constants import HAPROXY_FRAME_SIZE, Status
from spop.errors import DisconnectedError, LocalProtocolError, SpopTimeoutError
from spop.frames import Ack, Message
from spop.values import Value

RECV_SIZE = 64 * 1024


class Client:
    """A connection to an agent, open inside of a ``with`` statement.

    Args:
        address: ``HOST:PORT`` or ``unix:PATH``.
        timeout: seconds to wait for a connection, a HELLO or an ACK.
        max_frame_size: the largest frame in bytes that is offered to the agent.
        capabilities: what to announce.
        engine_id: names the engine that the connection belongs to.
        healthcheck: only ask whether the agent lives, as HAProxy's ``spop-check`` does.

    Attributes:
        peer: what the HELLO agreed on.
    """

    peer: Peer

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 5.0,
        max_frame_size: int = HAPROXY_FRAME_SIZE,
        capabilities: frozenset[str] = ALL_CAPABILITIES,
        engine_id: str | None = None,
        healthcheck: bool = False,
    ) -> None:
        self._address = Address.parse(address)
        self._timeout = timeout
        self._protocol = EngineConnection(
            max_frame_size=max_frame_size,
            capabilities=capabilities,
            engine_id=engine_id,
            healthcheck=healthcheck,
        )
        self._stream_ids = itertools.count(1)
        self._socket: socket.socket | None = None
        self._acks: dict[tuple[int, int], Ack] = {}

    def connect(self) -> Peer:
        """Connect and exchange HELLO. Returns what was agreed on.

        Raises:
            OSError: there is no connection to be had.
            SpopTimeoutError: no HELLO came in time.
            DisconnectedError: the agent refused, with its status and message.
        """
        self._socket = self._open()
        self._send()
        deadline = time.monotonic() + self._timeout
        while self._protocol.peer is None:
            self._receive(deadline, "AGENT-HELLO")
        self.peer = self._protocol.peer
        return self.peer

    def _open(self) -> socket.socket:
        if self._address.path is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(self._timeout)
            try:
                sock.connect(self._address.path)
            except BaseException:
                sock.close()
                raise
            return sock
        sock = socket.create_connection(
            (self._address.host or "127.0.0.1", self._address.port), self._timeout
        )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def notify(self, message: str | Iterable[Message], /, **args: Value) -> Ack:
        """Send one message with arguments by name, or several in one NOTIFY; wait for the ACK.

        Raises:
            SpopTimeoutError: no ACK came in time.
            DisconnectedError: the agent ended the connection.
            FrameTooBigError: the messages fit no frame and the agent takes no fragments.
            TypeError, OverflowError, ValueError: an argument can't be encoded.
        """
        messages = [Message(message, args)] if isinstance(message, str) else message
        return self.wait(self.send(messages))

    def send(self, messages: Iterable[Message]) -> int:
        """Send a NOTIFY without waiting. Returns the stream-id to `wait` for."""
        self._connected()
        stream_id = next(self._stream_ids)
        self._protocol.notify(stream_id, 1, messages)
        self._send()
        return stream_id

    def wait(self, stream_id: int) -> Ack:
        """Wait for the ACK of a NOTIFY that was sent. Raises as `notify` does."""
        deadline = time.monotonic() + self._timeout
        while (stream_id, 1) not in self._acks:
            self._receive(deadline, "ACK")
        return self._acks.pop((stream_id, 1))

    def close(self) -> None:
        """Say DISCONNECT, wait for the agent's, and close. Does nothing when it is closed."""
        if self._socket is None:
            return
        try:
            self._protocol.disconnect()
            self._send()
            deadline = time.monotonic() + self._timeout
            while not self._protocol.should_close:
                self._receive(deadline, "AGENT-DISCONNECT")
        except (OSError, DisconnectedError, SpopTimeoutError):
            pass
        finally:
            self._socket.close()
            self._socket = None

    def _send(self) -> None:
        self._connected().sendall(self._protocol.data_to_send())

    def _receive(self, deadline: float, awaited: str) -> None:
        sock = self._connected()
        remaining = deadline - time.monotonic()
        try:
            if remaining <= 0:
                raise TimeoutError
            sock.settimeout(remaining)
            data = sock.recv(RECV_SIZE)
        except TimeoutError:
            raise SpopTimeoutError(f"no {awaited} in {self._timeout} s") from None
        finally:
            sock.settimeout(self._timeout)
        self._handle(self._protocol.receive_data(data) if data else self._protocol.receive_eof())

    def _handle(self, events: list[EngineEvent]) -> None:
        for event in events:
            if isinstance(event, Ack):
                self._acks[event.stream_id, event.frame_id] = event
            elif isinstance(event, Disconnect):
                raise DisconnectedError(event.message, event.code)
        if self._protocol.should_close and not events:
            raise DisconnectedError("the connection is closed", Status.IO)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise LocalProtocolError("the client is not connected")
        return self._socket

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
