"""Workers that have served enough: the supervisor replaces all, as by SIGHUP."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

from spop.logs import SafeLogger, fields
from spop.options import Options
from spop.server.children import WorkerProcess, Workers
from spop.server.timers import Timers
from spop.server.usage import usage_of

logger: SafeLogger = SafeLogger("spop.server")

INTERVAL = 1.0
"""Seconds between two looks at the workers."""
PATIENCE = 60.0
"""Seconds between two replacements at least: a limit may be below what a fresh worker has."""
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
        self._replaced = -PATIENCE
        self._warned = False

    def start(self) -> None:
        """Look from now on, if there is a limit."""
        if self._requests or self._memory:
            self._timers.call_later(INTERVAL, self._look)

    def _look(self) -> None:
        serving = self._workers.serving()
        self._seen = {
            worker: self._seen.get(worker) or random.uniform(1 - JITTER, 1) for worker in serving
        }
        for worker, part in self._seen.items():
            beyond = [each for each in self._measures(worker) if each[1] >= part * each[2]]
            if beyond and self._replace_for(worker, *beyond[0]):
                self._seen[worker] = float("inf")
                break
        self.start()

    def _replace_for(self, worker: WorkerProcess, name: str, value: int, limit: int) -> bool:
        now = time.monotonic()
        if now - self._replaced < PATIENCE:
            self._warn(worker, name, value, limit)
            return False
        if not self._replace(f"worker {worker.pid}: {name} is reached"):
            return False
        self._replaced, self._warned = now, False
        return True

    def _measures(self, worker: WorkerProcess) -> Iterator[tuple[str, int, int]]:
        """The name of each limit, what the worker has of it, and the limit."""
        if self._requests:
            yield "max_requests", self._workers.requests_of(worker), self._requests
        if self._memory:
            yield "max_worker_memory", usage_of(worker.pid).memory_bytes, self._memory

    def _warn(self, worker: WorkerProcess, name: str, value: int, limit: int) -> None:
        """Say once between two replacements that the limit is too low."""
        if self._warned:
            return
        self._warned = True
        age = worker.lived
        what = fields(
            "limit too low", option=name, limit=limit, value=value, worker=worker.pid,
            duration=round(age, 1),
        )  # fmt: skip
        logger.warning(
            "%s is %d, but a worker reaches %d in %.1f s; workers are replaced every %g s at most",
            name, limit, value, age, PATIENCE,
            extra=what,
        )  # fmt: skip
