"""The fast path gives what the dispatcher gives, however the bytes come through the socket."""

from __future__ import annotations

import socket
from types import ModuleType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from implementations import intake_class, route_class
from streams import READ, TakenFromSocket, cut, implementations, streams
from test_intake import taken

from spop import Message, codec
from spop.constants import FrameType


def taken_from_socket(
    pieces: list[bytes], dispatch: ModuleType, port: ModuleType, **limits: int
) -> dict[str, Any]:
    with TakenFromSocket(dispatch, port, **limits) as connection:
        for piece in pieces:
            if not connection.is_over:
                connection.feed(piece)
        connection.drain()
        found = connection.outcome()
        if not connection.is_over:
            connection.finish()
            assert connection.error == (EOFError, "", None)
            assert connection.outcome()["acks"] == found["acks"]
    return found


@given(
    streams(),
    st.lists(st.integers(0, 5000), max_size=5),
    st.sampled_from([7, 100, 65536]),
    st.sampled_from([1, 200, 2**18]),
    st.sampled_from([1, 3]),
    st.booleans(),
)
def test_frames_answers_and_errors_are_those_of_all_bytes_at_once(
    data: bytes,
    places: list[int],
    buffer: int,
    max_answer_size: int,
    max_in_flight: int,
    is_full: bool,
) -> None:
    expected = taken([data], implementations()[0][0])
    for modules in implementations():
        found = taken_from_socket(
            cut(data, places),
            *modules,
            buffer=buffer,
            is_full=is_full,
            max_answer_size=max_answer_size,
            max_in_flight=max_in_flight,
        )
        assert found == expected


def test_what_is_behind_a_disconnect_is_not_taken_before_it() -> None:
    """The frame before it is one that the dispatcher keeps."""
    hello, notify, disconnect = (
        bytes(codec.encode_raw_frame(type_, 0, 0, 0, bytes(payload)))
        for type_, payload in (
            (FrameType.HAPROXY_HELLO, codec.encode_kv_list({"supported-versions": "2.0"})),
            (FrameType.NOTIFY, codec.encode_messages([Message("left", [("a", 1)])])),
            (FrameType.HAPROXY_DISCONNECT, codec.encode_kv_list({"status-code": 0})),
        )
    )
    pieces = [hello, notify + disconnect * 2]
    for modules in implementations():
        found = taken_from_socket(pieces, *modules, max_in_flight=3)
        assert found == taken(pieces, modules[0])
        assert len(found["frames"]) == 3  # Nobody looks behind the first DISCONNECT.


def test_acks_that_do_not_fit_the_socket_are_given_back(
    dispatch: ModuleType, port: ModuleType
) -> None:
    size = 2**20
    route = route_class(dispatch)("large", lambda: {"txn.large": "x" * size})
    dispatcher = dispatch.Dispatcher([route])
    intake = intake_class(dispatch)(2 * size)
    intake.is_open = True
    told: list[Any] = []

    def go_on(*what: Any) -> None:
        told.append(what)

    shared = port.FastPaths(dispatcher, bytearray(4096), None, go_on, None)
    ours, engine = socket.socketpair()
    with ours, engine:
        ours.setblocking(False)
        fast_path = port.FastPath(shared, intake, ours.fileno(), "it")
        fast_path.enabled = True
        engine.sendall(codec.encode_notify(1, 1, [Message("large")]))
        fast_path(READ)
        ((connection, frames, unsent, error),) = told
        assert (connection, frames, error) == ("it", [], None)
        ours.close()
        sent = bytearray()
        while data := engine.recv(size):
            sent += data
    assert 0 < len(unsent) < size
    assert sent + unsent == codec.encode_ack(1, 1, {"txn.large": "x" * size})
    assert fast_path.active
