"""Connections to a server, frame by frame, for the tests."""

from __future__ import annotations

import socket
from typing import Any

from spop.connection import EngineConnection


def connect(server: Any) -> socket.socket:
    """A connection to a server that listens on TCP."""
    sock = socket.create_connection((server.address.host, server.address.port), 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def hello(server: Any, **options: Any) -> tuple[socket.socket, EngineConnection]:
    """A connection that said HELLO."""
    sock, protocol = connect(server), EngineConnection(**options)
    sock.sendall(protocol.data_to_send())
    while protocol.peer is None:
        protocol.receive_data(sock.recv(4096))
    return sock, protocol
