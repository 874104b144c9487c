"""The agent's end of a connection, from HELLO to its end, with handlers of each kind."""

from __future__ import annotations

from typing import Any

from handlers import Ends
from pair import Twins, exact
from structure import OPTIONS, Options, mutate

from spop.frames import Notify

__all__ = ["mutate", "outcome"]


def outcome(twins: Twins, data: bytes) -> Any:
    options = Options(data)
    ends = Ends(twins, max_answer_size=options.take([1 << 16, 50]))
    with_handlers = options.take([True, False])
    ready = options.take([True, True, False])
    connection = twins.connection.AgentConnection(
        max_frame_size=options.take([16380, 256]),
        max_payload_size=options.take([1 << 20, 100]),
        capabilities=frozenset(options.take([["fragmentation", "pipelining", "async"], []])),
        max_in_flight=options.take([1000, 1, 2]),
        dispatcher=ends.dispatcher if with_handlers else None,
        is_ready=lambda: ready,
    )
    acknowledges, gives_up = options.take([True, True, False]), options.take([20, 100, 10**9])
    found: list[Any] = []
    for number, piece in enumerate([*options.pieces(data[OPTIONS:]), b"", b""]):
        events = connection.receive_data(exact(piece))
        found.append((_events(events), _state(connection)))
        if acknowledges:
            for event in events:
                _answer(ends, connection, event)
            found.append((_events(connection.resume()), connection.data_to_send()))
        if number == gives_up:
            connection.disconnect()
    _check(connection)
    found.append((connection.receive_eof(), _state(connection), connection.data_to_send()))
    return found, ends.failures


def _answer(ends: Ends, connection: Any, event: Any) -> None:
    if hasattr(event, "calls"):
        if not connection.should_close:
            ends.end(connection.intake, event)
    elif isinstance(event, Notify) and not connection.should_close:
        connection.acknowledge(event.stream_id, event.frame_id, {"sess.n": len(event.messages)})


def _check(connection: Any) -> None:
    """What holds in every state."""
    assert connection.in_flight >= 0
    if connection.should_close:
        assert not connection.intake.unread
        assert connection.receive_data(b"\0\0\0\1") == []


def _events(events: list[Any]) -> list[Any]:
    return [
        (event.stream_id, event.frame_id, event.actions) if hasattr(event, "calls") else event
        for event in events
    ]


def _state(connection: Any) -> Any:
    numbers = connection.in_flight, connection.max_frame_size
    return connection.state.name, connection.peer, *numbers, connection.paused, connection.at_rest
