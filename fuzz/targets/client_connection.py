"""HAProxy's end of a connection, from AGENT-HELLO to its end, with NOTIFYs that wait."""

from __future__ import annotations

from typing import Any

from pair import Twins, exact
from structure import OPTIONS, Options, mutate

from spop.errors import LocalProtocolError, ProtocolError
from spop.frames import Message

__all__ = ["mutate", "outcome"]


def outcome(twins: Twins, data: bytes) -> Any:
    options = Options(data)
    connection = twins.connection.EngineConnection(
        max_frame_size=options.take([16380, 256]),
        capabilities=frozenset(options.take([["pipelining", "async"], ["pipelining"], []])),
        fragments=options.take([True, False]),
        engine_id=options.take([None, "engine"]),
        healthcheck=options.take([False, False, True]),
    )
    size, gives_up = options.take([10, 700]), options.take([10**9, 3])
    found: list[Any] = []
    for number, piece in enumerate(options.pieces(data[OPTIONS:])):
        found.append((connection.receive_data(exact(piece)), _state(connection)))
        found.append(_notify(connection, number // 2, size))
        if number == gives_up:
            connection.disconnect()
        found.append(connection.data_to_send())
    found.append((connection.receive_eof(), _state(connection)))
    assert connection.should_close
    return found


def _notify(connection: Any, number: int, size: int) -> str:
    """What became of a further NOTIFY, which may be refused."""
    try:
        connection.notify(number, 1, [Message("m", a=bytes(size))])
    except (LocalProtocolError, ProtocolError) as error:
        return str(error)
    return "sent"


def _state(connection: Any) -> Any:
    flags = connection.pipelined, connection.asynchronous, connection.max_frame_size
    return connection.state.name, connection.peer, sorted(connection.waiting), *flags
