"""The dispatcher and the intake: NOTIFYs to handlers of each kind, in pieces and fragments.

Handlers that wait end between two pieces, in the way that the options choose.
"""

from __future__ import annotations

from typing import Any

from handlers import Ends
from pair import Twins, attempt, exact
from structure import OPTIONS, Options, mutate

from spop.counters import Cell, RouteCell, row_size
from spop.errors import ProtocolError
from spop.frames import Peer

__all__ = ["mutate", "outcome"]

UNCOUNTED = (Cell.ROUND_BEGAN,)
COUNTED = (RouteCell.CALLS, RouteCell.ERRORS, RouteCell.HITS, RouteCell.MISSES)


def outcome(twins: Twins, data: bytes) -> Any:
    options = Options(data)
    ends = Ends(
        twins,
        max_answer_size=options.take([1 << 16, 1 << 16, 1, 100]),
        max_messages=options.take([1000, 1000, 2]),
        max_arguments=options.take([1000, 1000, 3]),
        max_tasks=options.take([100, 1, 0]),
        on_unknown=options.take([b"", b"\x01\x03\x02\x01u\x11"]),
    )
    dispatcher, intake = ends.dispatcher, opened(twins, options)
    dispatcher.path = options.take([ends, None])
    how = options.take([None, "end", "later", "take back"])
    found: list[Any] = []
    waiting: list[Any] = []
    for piece in [*options.pieces(data[OPTIONS:]), b"", b"", b""]:
        answer = attempt(dispatcher.receive, intake, exact(piece))
        found.append(
            (answer if isinstance(answer, ProtocolError) else _plain(*answer), *_state(intake))
        )
        if isinstance(answer, ProtocolError):
            break
        waiting += [frame for frame in answer[0] if hasattr(frame, "calls")]
        intake.suspended = False
        _end(ends, intake, waiting, how)
        found.append((intake.take_acks(), intake.in_flight, dispatcher.tasks))
    taken_back = [_of_deferred(each) for each in dispatcher.take_back(intake)]
    return found, taken_back, ends.failures, _counts(dispatcher), dispatcher.unknown


def opened(twins: Twins, options: Options) -> Any:
    """The intake of a connection whose HELLO was answered."""
    limit = options.take([16380, 16380, 256, 60])
    intake = twins.dispatch.Intake(limit, options.take([1 << 20, 50]))
    intake.peer = Peer("127.0.0.1:1", "2.0", limit, frozenset())
    intake.max_in_flight = options.take([20, 1, 2])
    intake.takes_fragments = options.take([True, True, True, False])
    intake.little_endian = options.take([False, False, True])
    intake.whole = options.take([False, False, False, True])
    intake.is_open = True
    return intake


def _end(ends: Ends, intake: Any, waiting: list[Any], how: str | None) -> None:
    if how == "end" or (how == "later" and len(waiting) > 1):
        while waiting:
            ends.end(intake, waiting.pop())
    if how == "take back":
        waiting += ends.dispatcher.take_back(intake)
    elif how is not None:
        ends.end_kept()


def _plain(frames: list[Any], acks: bytes) -> Any:
    return [_of_deferred(each) if hasattr(each, "calls") else each for each in frames], acks


def _of_deferred(deferred: Any) -> Any:
    # The values of a call that has begun serve nobody.
    calls = [(each.route.name, each.begun is None and each.values) for each in deferred.calls]
    ids = deferred.stream_id, deferred.frame_id
    return *ids, deferred.actions, calls, deferred.room, deferred.size


def _state(intake: Any) -> Any:
    return intake.unread, intake.size, intake.in_flight, intake.begun, intake.at_rest, intake.paused


def _counts(dispatcher: Any) -> list[int]:
    cells = list(dispatcher.cells)
    counts = [cells[cell] for cell in Cell if cell not in UNCOUNTED]
    for place in range(len(dispatcher.routes)):
        counts += [cells[row_size(place) + cell] for cell in COUNTED]
    return counts
