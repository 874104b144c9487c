"""Whether a server does its work, read from what its loops and the supervisor write themselves.

Each writes when its present round began, and 0 while it waits. Nobody is asked, so that nobody
has to be waited for. A process is alive where no round is older than ``--stuck-timeout``, and
ready where none is older than `READY_WITHIN`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spop.counters import Cell, Cells, age
from spop.server.board import Board, Place

READY_WITHIN = 1.0


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a process or a service does its work, and whether it takes more."""

    alive: bool
    ready: bool


def oldest_round(rows: Iterable[Cells]) -> float:
    """Seconds since the oldest of the loops' present rounds began; 0.0 where all wait."""
    return max((age(row[Cell.ROUND_BEGAN]) for row in rows), default=0.0)


def health_of(seconds: float, stuck_timeout: float) -> Health:
    """That of a process whose oldest round began so many seconds ago."""
    return Health(not stuck_timeout or seconds <= stuck_timeout, seconds <= READY_WITHIN)


def service_health(board: Board, stuck_timeout: float) -> Health:
    """That of a supervisor with its workers."""
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
