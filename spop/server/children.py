"""The supervisor's children: how they start, which workers exist, what they have counted."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from spop.counters import Cell, Totals
from spop.logs import fields
from spop.metrics import Description
from spop.server.board import Board, Place
from spop.server.channel import Channel
from spop.server.health import health_of, oldest_round
from spop.server.status import WorkerStatus
from spop.server.usage import usage_of
from spop.start_errors import StartError

logger: logging.Logger = logging.getLogger("spop.server")


def child(run: Callable[[], int]) -> int:
    """Fork a process that runs `run` and exits with what it returns. Returns its pid.

    No error in the child returns into the caller's code.
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
        logger.exception("process failed", extra=fields("process failed"))
    finally:
        with contextlib.suppress(Exception):
            logging.shutdown()
        os._exit(status)


@dataclass(eq=False)
class WorkerProcess:
    """A worker, as the supervisor sees it.

    Attributes:
        place: its place on the board.
        number: no other worker of its generation has it. A port of each range has it, too.
        ports: numbers of the ports that it accepts from.
        passed: number of movable connections that it was given.
        stopped: SIGSTOP or its like has stopped it.
        error: why it could not start, or was ended.
    """

    pid: int
    channel: Channel
    generation: int
    place: int
    number: int = 0
    ports: list[int] = field(default_factory=list)
    passed: int = 0
    started: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    ready: bool = False
    leaving: bool = False
    stopped: bool = False
    handlers: list[str] = field(default_factory=list)
    metrics: Sequence[Description] = ()
    error: StartError | None = None

    ended: bool = False

    @property
    def lived(self) -> float:
        """Seconds since its start, whatever the wall clock does."""
        return time.monotonic() - self.began

    def kill(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended and another may have its pid."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, number: signal.Signals, why: str) -> None:
        """End it by a signal, for this reason."""
        self.error = StartError(why)
        self.kill(number)


class Workers:
    """The workers that exist, and the counts of those that have ended."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._workers: list[WorkerProcess] = []
        self._retired = Totals()

    @property
    def frames_lost(self) -> int:
        """Number of frames that workers had not answered when they ended."""
        return self._retired.cells[Cell.FRAMES_LOST]

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(list(self._workers))

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, worker: WorkerProcess) -> bool:
        return worker in self._workers

    def add(self, worker: WorkerProcess) -> None:
        self._workers.append(worker)

    def is_ready(
        self, worker: WorkerProcess, handlers: list[str], metrics: Sequence[Description] = ()
    ) -> None:
        """A worker serves, with handlers of these names and these metrics of its own."""
        worker.ready = True
        worker.handlers = handlers
        worker.metrics = metrics
        self._post(worker)

    def is_stopped(self, worker: WorkerProcess, stopped: bool) -> None:
        """A signal has stopped a worker, or has continued it."""
        worker.stopped = stopped
        self._post(worker)

    def leaves(self, worker: WorkerProcess) -> None:
        """A worker was told to end."""
        worker.leaving = True
        self._post(worker)

    def _post(self, worker: WorkerProcess) -> None:
        """Write the state of a worker to the board."""
        states = (
            (Place.LEAVING, worker.leaving),
            (Place.STOPPED, worker.stopped),
            (Place.STARTING, not worker.ready),
            (Place.SERVING, True),
        )
        self._board.places[worker.place] = next(place for place, holds in states if holds)

    def remove(self, worker: WorkerProcess) -> int:
        """A worker has ended. Returns the number of frames that it had not answered."""
        self._workers.remove(worker)
        worker.ended = True
        totals = self._totals_of(worker)
        self._board.free(worker.place)
        totals.end()
        self._retired.merge(totals)
        return totals.cells[Cell.FRAMES_LOST]

    def serving(self) -> list[WorkerProcess]:
        """The workers that serve and do not leave, ordered by number of connections."""
        found = [worker for worker in self if worker.ready and not worker.leaving]
        return sorted(found, key=lambda worker: self._board.connections[worker.place])

    def free_number(self, generation: int) -> int:
        """The lowest that no worker of a generation has."""
        taken = {worker.number for worker in self.of(generation)}
        return next(number for number in itertools.count() if number not in taken)

    def of(self, generation: int) -> list[WorkerProcess]:
        """The workers of a generation."""
        return [worker for worker in self if worker.generation == generation]

    def totals(self) -> Totals:
        """The sums of all counts, those of workers that have ended included."""
        totals = Totals()
        totals.merge(self._retired)
        for worker in self:
            totals.merge(self._totals_of(worker))
        return totals

    def statuses(self, stuck_timeout: float) -> list[WorkerStatus]:
        """The status of each worker."""
        return [self._status_of(worker, stuck_timeout) for worker in self]

    def requests_of(self, worker: WorkerProcess) -> int:
        """Number of NOTIFY frames that a worker has received."""
        return self._totals_of(worker).counts().frames_received

    def _totals_of(self, worker: WorkerProcess) -> Totals:
        totals = Totals()
        for row in self._board.rows(worker.place):
            totals.add(row, worker.handlers, worker.metrics)
        return totals

    def _status_of(self, worker: WorkerProcess, stuck_timeout: float) -> WorkerStatus:
        seconds = oldest_round(self._board.loops(worker.place))
        health = health_of(seconds, stuck_timeout)
        place = Place(self._board.places[worker.place])
        serving = "ready" if health.ready else "busy" if health.alive else "stuck"
        counts = self._totals_of(worker).counts()
        return WorkerStatus(
            pid=worker.pid,
            started=worker.started,
            state=serving if place is Place.SERVING else place.name.lower(),
            connections=counts.connections,
            round=seconds,
            frames_received=counts.frames_received,
            frames_in_hand=counts.frames_in_hand,
            queued=counts.queued,
            running=counts.running,
            **usage_of(worker.pid)._asdict(),
        )
