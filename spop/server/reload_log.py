"""Log lines about reloads: each begins, and is done or failed.

A reload is done when the last old worker has ended. Another may begin before that.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from spop.logs import fields
from spop.server.children import Workers

logger: logging.Logger = logging.getLogger("spop.server")


@dataclass
class _Reload:
    generation: int
    began: float
    moved: int
    """Number of connections that had been moved when it began."""
    ready: bool = False


class ReloadLog:
    """The reloads of a service that are under way."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._reloads: list[_Reload] = []

    def begun(self, why: str, generation: int) -> None:
        """Workers of a new generation start."""
        logger.info("%s: replacing the workers", why, extra=fields("reload", reason=why))
        self._reloads.append(_Reload(generation, time.monotonic(), self._moved()))

    def ready(self) -> None:
        """The last generation serves, and the old workers leave."""
        for each in self._reloads:
            each.ready = True

    def failed(self, why: str) -> None:
        """The last generation could not start."""
        seconds = time.monotonic() - self._reloads.pop().began
        what = fields("reload failed", reason=why, duration=round(seconds, 3))
        text = "reload failed after %.1f s: %s; the workers are not replaced"
        logger.error(text, seconds, why, extra=what)

    def look(self) -> None:
        """Log the reloads that are done, if any. Call this when a worker has ended."""
        oldest = min((worker.generation for worker in self._workers), default=0)
        for each in [each for each in self._reloads if each.ready and oldest >= each.generation]:
            self._reloads.remove(each)
            self._done(each)

    def _done(self, reload: _Reload) -> None:
        seconds = time.monotonic() - reload.began
        workers = len(self._workers.of(reload.generation))
        moved = self._moved() - reload.moved
        what = fields(
            "reload done", workers=workers, connections_moved=moved, duration=round(seconds, 3)
        )
        text = "reload done: %d new workers, %d connections moved, %.1f s"
        logger.info(text, workers, moved, seconds, extra=what)

    def _moved(self) -> int:
        return self._workers.totals().counts().connections_handed_over
