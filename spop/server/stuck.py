"""Loops that are stuck in a round: a server logs them, a supervisor replaces their workers."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import partial

from spop.counters import Cell, Cells, age
from spop.logs import SafeLogger, fields
from spop.server.children import WorkerProcess, Workers
from spop.server.timers import Timer, Timers

logger: SafeLogger = SafeLogger("spop.server")

STEPS = 10
"""Number of steps in which the supervisor counts a worker's time to answer."""
ABORT_TIMEOUT = 5.0
"""Seconds between SIGABRT, which logs where a worker's threads are, and SIGKILL."""


class StuckLog:
    """Logs each round that takes longer than `timeout` seconds, once, in its own thread.

    Args:
        threads: the threads of the loops.
        rows: the rows of the loops.
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
                        "%s is stuck for %.0f s, in %s",
                        thread.name,
                        age(began),
                        place_of(thread),
                        extra=fields("loop stuck", duration=age(began), place=place_of(thread)),
                    )


def place_of(thread: threading.Thread) -> str:
    """The function, file and line that a thread runs."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "no code of Python"
    last = traceback.extract_stack(frame, limit=1)[0]
    return f"{last.name} ({last.filename}:{last.lineno})"


class StuckWorkers:
    """Finds workers with a loop that is stuck, and ends them.

    Every `timeout` seconds it asks each worker to wake its loops. The worker answers when all of
    them have run a round. One that does not answer for `timeout` seconds gets SIGABRT, which logs
    where its threads are, and then SIGKILL. The supervisor counts that time in steps of its own.
    So no time passes while the supervisor, the machine or, by a signal, the worker is stopped.
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
        """Look for no more: the workers end anyway."""
        if self._timer is not None:
            self._timer.cancel()
        self._steps.clear()

    def answered(self, worker: WorkerProcess) -> None:
        """All loops of a worker have run a round."""
        self._steps.pop(worker, None)

    def _ask(self) -> None:
        for worker in self._workers.serving():
            if worker not in self._steps and worker.channel.send({"type": "wake"}):
                self._steps[worker] = 0
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
                logger.error(
                    "worker %d is stuck: a loop has not come round for %g s",
                    worker.pid,
                    self._timeout,
                    extra=fields("worker stuck", worker=worker.pid, duration=self._timeout),
                )
                self.end(worker)
        self._stepping = bool(self._steps)
        if self._stepping:
            self._timers.call_later(self._timeout / STEPS, self._step)

    def end(self, worker: WorkerProcess) -> None:
        """End a worker that is stuck. It logs where its threads are."""
        worker.kill(signal.SIGABRT)
        self._timers.call_later(ABORT_TIMEOUT, partial(self._kill, worker))

    def _kill(self, worker: WorkerProcess) -> None:
        if worker in self._workers:
            worker.kill(signal.SIGKILL)
