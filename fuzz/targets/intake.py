"""The intake before and after HELLO: bytes in pieces, limits, fragments; no handler is called."""

from __future__ import annotations

from typing import Any

from pair import Twins, attempt, exact
from structure import OPTIONS, Options, mutate

from spop.errors import ProtocolError
from spop.frames import Notify

__all__ = ["mutate", "outcome"]


def outcome(twins: Twins, data: bytes) -> Any:
    options = Options(data)
    dispatcher = twins.dispatch.Dispatcher()
    intake = twins.dispatch.Intake(
        options.take([1 << 20, 16380, 256]), options.take([1 << 20, 300, 20])
    )
    intake.memory.room = options.take([1 << 20, 1000])
    events: list[str] = []
    intake.memory.exceeded = lambda: None  # Buffers grow in other steps.
    intake.memory.fragmented = lambda: events.append("fragmented")
    intake.max_in_flight = options.take([1000, 2])
    intake.takes_fragments = options.take([True, True, False])
    intake.is_open = options.take([False, True])
    answers = options.take([True, False])
    found: list[Any] = []
    for piece in [*options.pieces(data[OPTIONS:]), b"", b""]:
        answer = attempt(dispatcher.receive, intake, exact(piece))
        found.append((answer, *_state(intake)))
        if isinstance(answer, ProtocolError):
            break
        intake.is_open |= bool(answer[0])
        if answers:
            intake.in_flight -= sum(isinstance(frame, Notify) for frame in answer[0])
    allocated = intake.allocated
    intake.close()
    return found, events, allocated >= 0, intake.size, intake.allocated


def _state(intake: Any) -> Any:
    waiting = intake.unread, intake.size, intake.in_flight
    flags = intake.little_endian, intake.whole, intake.begun, intake.at_rest, intake.paused
    return *waiting, *flags
