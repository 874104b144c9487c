"""Connections to a server, frame by frame, for the tests."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from haproxy import wait_until

from spop import Message
from spop.connection import EngineConnection
from spop.constants import Capability
from spop.counters import Cell

ASYNC = frozenset({Capability.ASYNC, Capability.PIPELINING})


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
        data = sock.recv(4096)
        assert data, "the server has ended the connection"
        protocol.receive_data(data)
    return sock, protocol


def end_of(sock: socket.socket, protocol: EngineConnection) -> list[Any]:
    """What comes until the end of the connection."""
    events: list[Any] = []
    with sock:
        while data := sock.recv(4096):
            events += protocol.receive_data(data)
    return events


def count(server: Any, cell: Cell) -> int:
    """What all loops of a server have counted."""
    found: int = server.totals().cells[cell]
    return found


def assert_acks_leave_on_another_connection(
    server: Any, message: str, release: Callable[[], None]
) -> None:
    """Of the same engine with async, when their own is lost before handlers are released."""
    first, protocol = hello(server, engine_id="e", capabilities=ASYNC)
    without, _ = hello(server, engine_id="e", capabilities=ASYNC - {Capability.ASYNC})
    second, other = hello(server, engine_id="e", capabilities=ASYNC)
    stranger, _ = hello(server, engine_id="another", capabilities=ASYNC)
    for number in range(3):
        protocol.notify(number, 7, [Message(message, n=number)])
    first.sendall(protocol.data_to_send())
    wait_until(lambda: count(server, Cell.NOTIFIES) == 3, "the frames")
    first.close()
    wait_until(lambda: server.admission.connections == 3, "the loss")
    release()
    acks: list[Any] = []
    while len(acks) < 3:
        acks += other.receive_data(second.recv(4096))
    assert {(ack.stream_id, ack.frame_id): ack.variables for ack in acks} == {
        (n, 7): {"sess.n": n} for n in range(3)
    }
    assert count(server, Cell.ACKS_ELSEWHERE) == 3
    for each in (without, stranger):
        each.setblocking(False)
        with pytest.raises(BlockingIOError):
            each.recv(1)
        each.close()
    second.close()
