"""One connection to an agent, for commands that show what goes over it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from spop.address import Address
from spop.client.dial import Endpoint, dial
from spop.connection import Disconnect, EngineConnection, Hello
from spop.errors import DisconnectedError, SpopTimeoutError
from spop.frames import Ack, Message, Peer

Trace = Callable[[bool, bytes], object]
"""Told of bytes: whether they were sent, and which."""


class Wire:
    """Inside of a ``with`` statement: connected, and HELLO exchanged.

    Args:
        options: those of `EngineConnection`.

    Raises:
        OSError: there is no connection to be had.
        SpopTimeoutError: no HELLO came in time.
        DisconnectedError: the agent refused.
    """

    peer: Peer

    def __init__(
        self, address: Address, timeout: float, trace: Trace | None = None, **options: Any
    ) -> None:
        self._address = address
        self._timeout = timeout
        self._trace = trace or (lambda sent, data: None)
        self._protocol = EngineConnection(**options)
        self._sock: socket.socket

    def __enter__(self) -> Self:
        self._sock = dial(Endpoint(self._address), self._timeout)
        try:
            self._send()
            self.peer = self._wait_for(Hello).peer
        except BaseException:
            self._sock.close()
            raise
        return self

    def notify(self, messages: Sequence[Message]) -> Ack:
        """Send a NOTIFY and wait for its ACK.

        Raises:
            FrameTooBigError: it is too long for a frame and the agent takes no fragments.
            SpopTimeoutError: no ACK came in time.
            DisconnectedError: the agent ended the connection.
        """
        self._protocol.notify(1, 1, messages)
        self._send()
        ack: Ack = self._wait_for(Ack)
        return ack

    def _send(self) -> None:
        data = bytes(self._protocol.data_to_send())
        self._trace(True, data)
        self._sock.sendall(data)

    def _wait_for(self, wanted: type) -> Any:
        deadline = time.monotonic() + self._timeout
        while True:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                awaited = "AGENT-HELLO" if wanted is Hello else "ACK"
                raise SpopTimeoutError(f"no {awaited} in {self._timeout:g} s") from None
            self._trace(False, data)
            protocol = self._protocol
            for event in protocol.receive_data(data) if data else protocol.receive_eof():
                if isinstance(event, wanted):
                    return event
                if isinstance(event, Disconnect):
                    raise DisconnectedError(event.message, event.code)

    def __exit__(self, *exc_info: object) -> None:
        with self._sock:
            try:
                self._protocol.disconnect()
                self._send()
                self._wait_for(type(None))
            except (OSError, DisconnectedError):
                return
