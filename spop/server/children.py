"""The supervisor's children: how they start, which workers there are, and what they count."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from spop.counters import Totals
from spop.server.board import Board, Place
from spop.server.channel import Channel
from spop.server.health import health_of, oldest_round
from spop.server.status import WorkerStatus

logger = logging.getLogger("spop.server")


def child(run: Callable[[], int]) -> int:
    """Fork a process that runs `run` and exits with what it returns. Returns its pid.

    Whatever goes wrong there, it does not come back into the caller's code.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        status = run()
    except BaseException:
        logger.exception("process failed")
    finally:
        with contextlib.suppress(Exception):
            logging.shutdown()
        os._exit(status)


@dataclass(eq=False)
class WorkerProcess:
    """A worker, as the supervisor sees it.

    Attributes:
        place: on the board.
        stopped: a signal stops it, until another lets it go on.
        error: why it could not start.
    """

    pid: int
    channel: Channel
    generation: int
    place: int
    started: float = field(default_factory=time.time)
    ready: bool = False
    leaving: bool = False
    stopped: bool = False
    handlers: list[str] = field(default_factory=list)
    error: str = ""

    def kill(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Workers:
    """The workers that exist, and what those had counted that have ended."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._workers: list[WorkerProcess] = []
        self._retired = Totals()
        self.frames_lost = 0

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(list(self._workers))

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, worker: WorkerProcess) -> bool:
        return worker in self._workers

    def add(self, worker: WorkerProcess) -> None:
        self._workers.append(worker)

    def is_ready(self, worker: WorkerProcess, handlers: list[str]) -> None:
        """A worker serves, with such handlers."""
        worker.ready = True
        worker.handlers = handlers
        self._post(worker)

    def is_stopped(self, worker: WorkerProcess, stopped: bool) -> None:
        """A signal has stopped a worker, or another has let it go on."""
        worker.stopped = stopped
        self._post(worker)

    def leaves(self, worker: WorkerProcess) -> None:
        """A worker is to end."""
        worker.leaving = True
        self._post(worker)

    def _post(self, worker: WorkerProcess) -> None:
        """Tell on the board what became of a worker."""
        states = (
            (Place.LEAVING, worker.leaving),
            (Place.STOPPED, worker.stopped),
            (Place.STARTING, not worker.ready),
            (Place.SERVING, True),
        )
        self._board.places[worker.place] = next(place for place, holds in states if holds)

    def remove(self, worker: WorkerProcess) -> int:
        """A worker has ended. Returns the frames that were in its hands."""
        self._workers.remove(worker)
        totals = self._totals_of(worker)
        self._board.free(worker.place)
        lost = totals.in_hand
        self.frames_lost += lost
        totals.end()
        self._retired.merge(totals)
        return lost

    def serving(self) -> list[WorkerProcess]:
        """Those that serve and will go on, the one with the fewest connections first."""
        found = [worker for worker in self if worker.ready and not worker.leaving]
        return sorted(found, key=lambda worker: self._board.connections[worker.place])

    def of(self, generation: int) -> list[WorkerProcess]:
        """Those of a generation."""
        return [worker for worker in self if worker.generation == generation]

    def totals(self) -> Totals:
        """What was counted, by those that have ended, too."""
        totals = Totals()
        totals.merge(self._retired)
        for worker in self:
            totals.merge(self._totals_of(worker))
        return totals

    def statuses(self, stuck_timeout: float) -> list[WorkerStatus]:
        """What there is to see of each."""
        return [self._status_of(worker, stuck_timeout) for worker in self]

    def _totals_of(self, worker: WorkerProcess) -> Totals:
        totals = Totals()
        for row in self._board.rows(worker.place):
            totals.add(row, worker.handlers)
        return totals

    def _status_of(self, worker: WorkerProcess, stuck_timeout: float) -> WorkerStatus:
        seconds = oldest_round(self._board.loops(worker.place))
        health = health_of(seconds, stuck_timeout)
        place = Place(self._board.places[worker.place])
        serving = "ready" if health.ready else "busy" if health.alive else "stuck"
        return WorkerStatus(
            pid=worker.pid,
            started=worker.started,
            state=serving if place is Place.SERVING else place.name.lower(),
            connections=self._totals_of(worker).counts().connections,
            round=seconds,
        )
