"""Connecting: where to, over TLS or not, the exchange of HELLO and of DISCONNECT, for those who
may block."""

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
"""Told of all bytes of a connection: whether they are sent, and which."""


class Endpoint(NamedTuple):
    """Where to connect, and how.

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
    """A connected socket; its operations have the timeout, in seconds, too.

    Raises:
        OSError: there is no connection to be had.
        ValueError: the name in the certificate is none.
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
) -> socket.socket:
    """`dial` and `greet`. Raises what they do; there is no socket then."""
    sock = dial(endpoint, timeout)
    try:
        greet(sock, protocol, hello_timeout, trace)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(address: Address, timeout: float) -> socket.socket:
    if address.path is None:
        address = address.reachable
        sock = socket.create_connection((address.host, address.port), timeout)
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


def greet(
    sock: socket.socket, protocol: EngineConnection, timeout: float, trace: Trace | None = None
) -> None:
    """Exchange HELLO.

    Raises:
        OSError: the connection broke.
        SpopTimeoutError: the agent did not answer in time.
        DisconnectedError: the agent refuses.
    """
    deadline = monotonic() + timeout
    try:
        send_before(deadline, sock, protocol, trace)
        while not hear_hello(protocol, receive_before(deadline, sock, protocol, trace)):
            pass
    except TimeoutError:
        raise SpopTimeoutError(f"no AGENT-HELLO in {timeout:g} s") from None


def hear_hello(protocol: EngineConnection, events: Sequence[EngineEvent]) -> bool:
    """Whether the handshake is over. Raises DisconnectedError where the agent refuses."""
    for event in events:
        if isinstance(event, Disconnect):
            raise DisconnectedError(event.message, event.code)
    return protocol.peer is not None


def say_goodbye(
    sock: socket.socket,
    protocol: EngineConnection,
    timeout: float,
    trace: Trace | None = None,
    unsent: Buffer = b"",
) -> Disconnect | None:
    """Send the last words, behind what is `unsent`, and hear the agent's. Never raises OSError.

    Returns:
        The agent's last words; None: there were none in time, or they were heard before.
    """
    deadline = monotonic() + timeout
    protocol.disconnect()
    with contextlib.suppress(OSError):
        send_before(deadline, sock, protocol, trace, unsent)
        while not protocol.should_close:
            for event in receive_before(deadline, sock, protocol, trace):
                if isinstance(event, Disconnect):
                    return event
    return None


def send_before(
    deadline: float,
    sock: socket.socket,
    protocol: EngineConnection,
    trace: Trace | None = None,
    unsent: Buffer = b"",
) -> None:
    """Send `unsent` and what the protocol has. Raises TimeoutError when it is too late."""
    sock.settimeout(_until(deadline))
    data = b"".join((unsent, protocol.data_to_send()))
    if trace is not None:
        trace(True, data)
    sock.sendall(data)


def receive_before(
    deadline: float, sock: socket.socket, protocol: EngineConnection, trace: Trace | None = None
) -> list[EngineEvent]:
    """What one recv brings. Raises TimeoutError when it is too late."""
    sock.settimeout(_until(deadline))
    data = sock.recv(RECV_SIZE)
    if trace is not None:
        trace(False, data)
    return protocol.receive_data(data) if data else protocol.receive_eof()


def _until(deadline: float) -> float:
    remaining = deadline - monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
