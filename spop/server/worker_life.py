"""Workers that have served enough: the supervisor replaces all, as by SIGHUP."""

from __future__ import annotations

from collections.abc import Callable

from spop.options import Options
from spop.server.children import WorkerProcess, Workers
from spop.server.timers import Timers
from spop.server.usage import usage_of

INTERVAL = 1.0
"""Seconds between two looks at the workers."""
JITTER = 0.1
"""Part of a limit that it is lower by at most, so that services do not reload together."""


class WorkerLife:
    """Looks for workers beyond `max_requests` or `max_worker_memory`.

    Args:
        replace: replaces the workers for a reason. Returns False if it can't now.
    """

    def __init__(
        self, workers: Workers, options: Options, timers: Timers, replace: Callable[[str], bool]
    ) -> None:
        self._workers = workers
        self._requests, self._memory = options.max_requests, options.max_worker_memory
        self._timers = timers
        self._replace = replace
        self._seen: dict[WorkerProcess, float] = {}
        """The part of the limits that counts for a worker; infinite once it was reported."""

    def start(self) -> None:
        """Look from now on, if there is a limit."""
        if self._requests or self._memory:
            self._timers.call_later(INTERVAL, self._look)

    def _look(self) -> None:
        import random  # Only where there is a limit.

        serving = self._workers.serving()
        self._seen = {
            worker: self._seen.get(worker) or random.uniform(1 - JITTER, 1) for worker in serving
        }
        for worker, part in self._seen.items():
            why = self._beyond(worker, part)
            if why and self._replace(f"worker {worker.pid}: {why}"):
                self._seen[worker] = float("inf")
                break
        self.start()

    def _beyond(self, worker: WorkerProcess, part: float) -> str:
        if self._requests and self._workers.requests_of(worker) >= part * self._requests:
            return "max_requests is reached"
        if self._memory and usage_of(worker.pid).memory_bytes >= part * self._memory:
            return "max_worker_memory is reached"
        return ""
