"""Whether a server works. It is read from cells that the loops and the supervisor write.

Each writes when its present round began, and 0 while it waits. No process has to answer. A
process is alive if no round is older than ``--stuck-timeout`` seconds. It is ready if none is
older than `READY_WITHIN` seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spop.counters import Cell, Cells, age
from spop.server.board import Board, Place

READY_WITHIN = 1.0


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a process or a service is alive, and whether it takes connections."""

    alive: bool
    ready: bool


def oldest_round(rows: Iterable[Cells]) -> float:
    """The age in seconds of the oldest present round; 0.0 if all loops wait."""
    return max((age(row[Cell.ROUND_BEGAN]) for row in rows), default=0.0)


def health_of(seconds: float, stuck_timeout: float) -> Health:
    """The health of a process whose oldest round is `seconds` old."""
    return Health(not stuck_timeout or seconds <= stuck_timeout, seconds <= READY_WITHIN)


def service_health(board: Board, stuck_timeout: float) -> Health:
    """The health of a supervisor and its workers."""
    supervisor = health_of(oldest_round([board.supervisor]), stuck_timeout)
    starting, serving = (
        [
            health_of(oldest_round(board.loops(place)), stuck_timeout)
            for place, found in enumerate(board.places)
            if found == wanted
        ]
        for wanted in (Place.STARTING, Place.SERVING)
    )
    return Health(
        supervisor.alive and any(worker.alive for worker in starting + serving),
        not board.draining and any(worker.ready for worker in serving),
    )
