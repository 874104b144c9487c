"""Loops that do not come round: told where there is no supervisor, replaced where there is one."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import partial

from spop.counters import Cell, Cells, age
from spop.logs import SafeLogger
from spop.server.children import WorkerProcess, Workers
from spop.server.timers import Timer, Timers

logger = SafeLogger("spop.server")

STEPS = 10
"""Number of steps in which the supervisor counts the time that a worker has to answer."""
ABORT_TIMEOUT = 5.0
"""Seconds in which a worker shows where its threads are before it is killed."""


class StuckLog:
    """Logs once of each round that takes longer than `timeout` seconds, in a thread of its own.

    Args:
        threads: those of the loops.
        rows: their rows.
    """

    def __init__(
        self, threads: Sequence[threading.Thread], rows: Sequence[Cells], timeout: float
    ) -> None:
        self._loops = list(zip(threads, rows, strict=True))
        self._timeout = timeout
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spop-stuck", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        told: dict[threading.Thread, int] = {}
        while not self._ended.wait(self._timeout):
            for thread, row in self._loops:
                began = row[Cell.ROUND_BEGAN]
                if age(began) > self._timeout and told.get(thread) != began:
                    told[thread] = began
                    logger.error(
                        "%s is stuck for %.0f s, in %s", thread.name, age(began), _place(thread)
                    )


def _place(thread: threading.Thread) -> str:
    """Where a thread is."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "no code of Python"
    last = traceback.extract_stack(frame, limit=1)[0]
    return f"{last.name} ({last.filename}:{last.lineno})"


class StuckWorkers:
    """Finds workers of which a loop does not come round any more, and ends them.

    Once in `timeout` seconds each worker is asked to wake its loops, and answers when all of them
    have come round. One that does not answer for as long shows with SIGABRT where its threads
    are, and is killed if it survives that. The time is counted in steps of the supervisor's own,
    so that none passes while it or the whole machine is stopped, nor while a signal stops the
    worker.
    """

    def __init__(self, workers: Workers, timers: Timers, timeout: float) -> None:
        self._workers = workers
        self._timers = timers
        self._timeout = timeout
        self._steps: dict[WorkerProcess, int] = {}
        self._stepping = False
        self._timer: Timer | None = None

    def start(self) -> None:
        self._timer = self._timers.call_later(self._timeout, self._ask)

    def stop(self) -> None:
        """Find no more: the workers end anyway."""
        if self._timer is not None:
            self._timer.cancel()
        self._steps.clear()

    def answered(self, worker: WorkerProcess) -> None:
        """All loops of a worker have come round."""
        self._steps.pop(worker, None)

    def _ask(self) -> None:
        for worker in self._workers.serving():
            if worker not in self._steps:
                self._steps[worker] = 0
                worker.channel.send({"type": "wake"})
        if self._steps and not self._stepping:
            self._stepping = True
            self._timers.call_later(self._timeout / STEPS, self._step)
        self.start()

    def _step(self) -> None:
        serving = self._workers.serving()
        self._steps = {worker: steps for worker, steps in self._steps.items() if worker in serving}
        for worker in list(self._steps):
            self._steps[worker] += not worker.stopped
            if self._steps[worker] == STEPS:
                self._end(worker)
        self._stepping = bool(self._steps)
        if self._stepping:
            self._timers.call_later(self._timeout / STEPS, self._step)

    def _end(self, worker: WorkerProcess) -> None:
        logger.error(
            "worker %d is stuck: a loop has not come round for %g s", worker.pid, self._timeout
        )
        worker.kill(signal.SIGABRT)
        self._timers.call_later(ABORT_TIMEOUT, partial(self._kill, worker))

    def _kill(self, worker: WorkerProcess) -> None:
        if worker in self._workers:
            worker.kill(signal.SIGKILL)
