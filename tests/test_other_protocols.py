"""Peers that speak another protocol: they are recognised, and refused at once."""

from __future__ import annotations

import contextlib
import logging
import socket
from types import ModuleType

import pytest
from implementations import intake_class
from serving import served, wait_until_serving
from wire import connect

from spop import Agent, codec
from spop.connection import AgentConnection, Disconnect, EngineConnection
from spop.constants import Status
from spop.errors import FrameTooBigError, InvalidFrameError, ProtocolError

OTHERS = {
    b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n": "HTTP",
    b"OPTIONS / HTTP/1.0\r\n\r\n": "HTTP",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": "HTTP",
    b"HTTP/1.1 400 Bad Request\r\n\r\n": "HTTP",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": "TLS",
    b"\x15\x03\x03\x00\x02\x02\x28": "TLS",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n": "a PROXY protocol header",
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c": "a PROXY protocol header",
}


@pytest.mark.parametrize(("data", "name"), OTHERS.items())
def test_both_ends_recognise_another_protocol(data: bytes, name: str) -> None:
    for connection in (AgentConnection(), EngineConnection()):
        (end,) = connection.receive_data(data)
        assert isinstance(end, Disconnect)
        assert end.code == Status.TOO_BIG
        assert end.message.startswith(f"this looks like {name}, not like SPOP")


@pytest.mark.parametrize(("data", "name"), OTHERS.items())
def test_both_twins_recognise_another_protocol(twin: ModuleType, data: bytes, name: str) -> None:
    with pytest.raises(FrameTooBigError, match=f"looks like {name}, not like SPOP"):
        twin.decode_frames(data)


@pytest.mark.parametrize(
    ("length", "error"), [(0, InvalidFrameError), (6, InvalidFrameError), (2**31, FrameTooBigError)]
)
@pytest.mark.parametrize("size", range(4, 9))
@pytest.mark.parametrize("pieces", [True, False])
def test_a_first_length_that_is_wrong_is_refused_before_the_flags_come(
    dispatch: ModuleType, length: int, error: type[ProtocolError], size: int, pieces: bool
) -> None:
    data = (length.to_bytes(4, "big") + b"\1\0\0\0\1")[:size]
    dispatcher, intake = dispatch.Dispatcher(()), intake_class(dispatch)(16380)
    with pytest.raises(error):
        for piece in [data[i : i + 1] for i in range(size)] if pieces else [data]:
            dispatcher.receive(intake, piece)
    assert intake.whole  # Nobody knows whether HAProxy 1.7 asks, which an answer crashes.


def test_without_flags_a_wrong_length_is_not_answered() -> None:
    connection = AgentConnection()
    (end,) = connection.receive_data(bytes(4))
    assert end == Disconnect(Status.INVALID, "frame of 0 bytes, 7 at least", False)
    assert connection.should_close
    assert not connection.data_to_send()


def test_with_flags_a_wrong_length_is_answered() -> None:
    connection = AgentConnection()
    connection.receive_data(bytes(4) + b"\1\0\0\0\1")
    ((frame,), _) = codec.decode_frames(connection.data_to_send())
    assert frame.items["status-code"] == Status.INVALID


@pytest.mark.parametrize(("data", "name"), OTHERS.items())
def test_the_servers_log_names_another_protocol(
    data: bytes, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), Agent().serve_in_background() as server:
        with connect(server) as sock:
            sock.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass
        with socket.create_connection((server.address.host, server.address.port)) as sock:
            sock.sendall(bytes(4))
            assert sock.recv(4096) == b""  # It does not wait for more.
    assert f"this looks like {name}, not like SPOP" in caplog.text


def test_a_hello_in_pieces_is_still_taken() -> None:
    hello = EngineConnection().data_to_send()
    connection = AgentConnection()
    for place in range(len(hello)):
        assert not connection.should_close
        connection.receive_data(hello[place : place + 1])
    assert connection.peer is not None


def test_spop_serve_names_another_protocol() -> None:
    with served("--bind", "127.0.0.1:0") as process:
        wait_until_serving(process)
        port = int(process.log.partition("127.0.0.1:")[2].split()[0])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            process.wait_for_log("this looks like HTTP, not like SPOP")
