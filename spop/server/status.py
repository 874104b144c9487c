"""What there is to see of a server, made here alone, for one process and for several.

The status page, /status.json, /metrics and the log read it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from spop import codec
from spop.counters import Counts, HandlerCounts, Totals
from spop.server.health import Health
from spop.version import __version__


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker process.

    Attributes:
        started: seconds since the epoch.
        state: "starting", "ready", "busy" (for more than a second), "stuck", "stopped" (by a signal)
            or "leaving".
        connections: how many it has.
        round: seconds since the oldest of its loops' present rounds began; 0.0 where all wait.
    """

    pid: int
    started: float
    state: str
    connections: int
    round: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """All there is to see.

    Attributes:
        started: seconds since the epoch.
        alive, ready: as /healthz and /readyz have them.
        draining: it stops.
        restarts: workers that were started again because one had died.
        frames_lost: NOTIFY frames that were in the hands of workers that died.
        limits: how often a limit took effect, by option.
        disconnects: by sender, "agent" or "peer", and status code.
        connections: for people; up to 1000 of them.
    """

    agent: str
    version: str = __version__
    codec: str = codec.IMPLEMENTATION
    started: float
    alive: bool
    ready: bool
    draining: bool
    workers: Sequence[WorkerStatus] = ()
    restarts: int = 0
    frames_lost: int = 0
    counts: Counts
    limits: dict[str, int]
    disconnects: dict[str, dict[str, int]]
    handlers: Sequence[HandlerCounts]
    connections: Sequence[dict[str, Any]] = ()

    @classmethod
    def of(cls, totals: Totals, health: Health, **more: Any) -> Self:
        """The status that follows from the counts, the health and the other attributes."""
        return cls(
            alive=health.alive,
            ready=health.ready,
            counts=totals.counts(),
            limits=totals.limits(),
            disconnects=totals.disconnects(),
            handlers=totals.handlers(),
            **more,
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON can have it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        made = {
            "workers": [WorkerStatus(**each) for each in fields["workers"]],
            "counts": Counts(**fields["counts"]),
            "handlers": [HandlerCounts(**each) for each in fields["handlers"]],
        }
        return cls(**{**fields, **made})

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
