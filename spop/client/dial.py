"""Connections for callers that may block: TCP, unix and TLS, and the exchange of HELLO and
DISCONNECT."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from spop.address import Address
from spop.connection import Disconnect, EngineConnection, EngineEvent
from spop.errors import DisconnectedError, SpopTimeoutError
from spop.values import Buffer

RECV_SIZE = 64 * 1024

Trace = Callable[[bool, bytes], object]
"""Called with all bytes of a connection: whether they are sent, and the bytes."""


class Endpoint(NamedTuple):
    """The address and TLS settings of a server.

    Attributes:
        tls: speak TLS, with this context.
        server_name: the name in the certificate; by default, the address's host.
    """

    address: Address
    tls: ssl.SSLContext | None = None
    server_name: str | None = None

    @property
    def name_in_certificate(self) -> str | None:
        return self.server_name or self.address.host or None


def dial(endpoint: Endpoint, timeout: float) -> socket.socket:
    """A connected socket. The timeout, in seconds, is for its later operations too.

    Raises:
        OSError: the server can't be reached.
        ValueError: the name in the certificate is invalid.
    """
    sock = _connect(endpoint.address, timeout)
    if endpoint.tls is None:
        return sock
    try:
        return endpoint.tls.wrap_socket(sock, server_hostname=endpoint.name_in_certificate)
    except BaseException:
        sock.close()
        raise


def connect(
    endpoint: Endpoint,
    protocol: EngineConnection,
    timeout: float,
    hello_timeout: float,
    trace: Trace | None = None,
) -> Dialogue:
    """`dial` and `Dialogue.greet`. Raises what they do, with the socket closed."""
    dialogue = Dialogue(dial(endpoint, timeout), protocol, trace)
    try:
        dialogue.greet(hello_timeout)
    except BaseException:
        dialogue.sock.close()
        raise
    return dialogue


def _connect(address: Address, timeout: float) -> socket.socket:
    if address.path is None:
        address = address.reachable
        host = address.host
        if address.family:
            found = socket.getaddrinfo(host, None, address.family, socket.SOCK_STREAM)
            host = str(found[0][4][0])
        sock = socket.create_connection((host, address.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(address.path)
    except BaseException:
        sock.close()
        raise
    return sock


def hear_hello(protocol: EngineConnection, events: Sequence[EngineEvent]) -> bool:
    """Whether the handshake is done. Raises DisconnectedError if the agent refuses."""
    for event in events:
        if isinstance(event, Disconnect):
            raise DisconnectedError(event.message, event.code)
    return protocol.peer is not None


class Dialogue(NamedTuple):
    """A socket and the protocol that is spoken over it, by a caller that may block.

    A deadline is a time as `time.monotonic` gives it.
    """

    sock: socket.socket
    protocol: EngineConnection
    trace: Trace | None = None

    def greet(self, timeout: float) -> None:
        """Exchange HELLO (section 3.2.3).

        Raises:
            OSError: the connection broke.
            SpopTimeoutError: the agent did not answer in time.
            DisconnectedError: the agent refuses.
        """
        deadline = monotonic() + timeout
        try:
            self.send(deadline)
            while not hear_hello(self.protocol, self.receive(deadline)):
                pass
        except TimeoutError:
            raise SpopTimeoutError(f"no AGENT-HELLO in {timeout:g} s") from None

    def say_goodbye(self, timeout: float, unsent: Buffer = b"") -> Disconnect | None:
        """Send `unsent` and a DISCONNECT, and wait for the agent's. Never raises OSError.

        Returns:
            The agent's DISCONNECT; None if it did not come in time, or came before.
        """
        deadline = monotonic() + timeout
        self.protocol.disconnect()
        with contextlib.suppress(OSError):
            self.send(deadline, unsent)
            while not self.protocol.should_close:
                for event in self.receive(deadline):
                    if isinstance(event, Disconnect):
                        return event
        return None

    def send(self, deadline: float, unsent: Buffer = b"") -> None:
        """Send `unsent` and what the protocol has. Raises TimeoutError after the deadline."""
        self.sock.settimeout(_until(deadline))
        data = b"".join((unsent, self.protocol.data_to_send()))
        if self.trace is not None:
            self.trace(True, data)
        self.sock.sendall(data)

    def receive(self, deadline: float) -> list[EngineEvent]:
        """The events of one recv. Raises TimeoutError after the deadline."""
        self.sock.settimeout(_until(deadline))
        data = self.sock.recv(RECV_SIZE)
        if self.trace is not None:
            self.trace(False, data)
        return self.protocol.receive_data(data) if data else self.protocol.receive_eof()


def _until(deadline: float) -> float:
    remaining = deadline - monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
