"""The status of a server of one process or several.

The status page, /status.json, /metrics and the log show it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from spop import codec
from spop.counters import Counts, HandlerCounts, OwnMetric, Totals
from spop.logs import SafeLogger, fields
from spop.server.health import Health
from spop.version import __version__

WORKER_STATES = ("starting", "ready", "busy", "stuck", "stopped", "leaving")
"""A busy worker has had a round for more than a second; a signal has stopped a stopped one."""

_LOGGED = ("agent", "alive", "ready", "draining", "restarts", "frames_lost")


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums of counts, by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker process.

    Attributes:
        started: seconds since the epoch.
        state: one of `WORKER_STATES`.
        connections: how many it has.
        round: age in seconds of the oldest present round of its loops; 0.0 if all wait.
        frames_received, frames_in_hand, queued, running: as those of `Counts`, its own.
        cpu_seconds: processor time that it has used.
        memory_bytes: its resident memory.
    """

    pid: int
    started: float
    state: str
    connections: int
    round: float
    frames_received: int
    frames_in_hand: int
    queued: int
    running: int
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The status of a service.

    Attributes:
        time, started: seconds since the epoch: when this was so, and when the service started.
        alive, ready: what /healthz and /readyz answer.
        draining: it stops.
        restarts: number of workers that were restarted because one had died.
        restart_reasons: how often workers were restarted or replaced, by reason.
        frames_lost: number of NOTIFY frames in the hands of workers that died.
        limits: how often a limit took effect, by option.
        metrics: the agent's own.
        disconnects: number of DISCONNECTs by sender, "agent" or "peer", and status code.
        without_handler: number of messages that no handler is for, by name, of the workers that
            serve.
        connections: up to 1000 of them, for people.
    """

    agent: str
    version: str = __version__
    codec: str = codec.IMPLEMENTATION
    time: float
    started: float
    alive: bool
    ready: bool
    draining: bool
    workers: Sequence[WorkerStatus] = ()
    restarts: int = 0
    restart_reasons: dict[str, int] = field(default_factory=dict)
    frames_lost: int = 0
    counts: Counts
    limits: dict[str, int]
    disconnects: dict[str, dict[str, int]]
    handlers: Sequence[HandlerCounts]
    metrics: Sequence[OwnMetric] = ()
    without_handler: dict[str, int] = field(default_factory=dict)
    connections: Sequence[dict[str, Any]] = ()

    @classmethod
    def of(cls, totals: Totals, health: Health, **more: Any) -> Self:
        """The status with these counts, this health and the other attributes."""
        return cls(
            time=time.time(),
            alive=health.alive,
            ready=health.ready,
            counts=totals.counts(),
            limits=totals.limits(),
            disconnects=totals.disconnects(),
            handlers=totals.handlers(),
            metrics=totals.metrics(),
            **more,
        )

    def to_json(self) -> dict[str, Any]:
        """The same in types of JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """The status that `to_json` was called for."""
        made = {
            "workers": [WorkerStatus(**each) for each in found["workers"]],
            "counts": Counts(**found["counts"]),
            "handlers": [HandlerCounts(**each) for each in found["handlers"]],
            "metrics": [OwnMetric(**each) for each in found["metrics"]],
        }
        return cls(**{**found, **made})

    def log(self, logger: SafeLogger) -> None:
        """Log a line, on SIGUSR1."""
        what = fields(
            "status",
            **{name: getattr(self, name) for name in _LOGGED},
            workers=len(self.workers),
            duration=round(time.time() - self.started, 1),
            **dataclasses.asdict(self.counts),
        )
        logger.info("%s", self, extra=what)

    def __str__(self) -> str:
        """A line for the log."""
        state = "ready" if self.ready else "not ready" if self.alive else "stuck"
        counts = self.counts
        return (
            f"agent {self.agent!r} is {'draining' if self.draining else state}, "
            f"up for {time.time() - self.started:.0f} s: {len(self.workers)} workers, "
            f"{counts.connections} connections, {counts.frames_received} frames, "
            f"{counts.frames_in_hand} in hand, {counts.queued} queued, {counts.running} running"
        )
