"""The last ten minutes of a service, for the charts of the status page.

The admin server adds a status every `INTERVAL` seconds. What lies between two of them is a sample.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from spop.counters import quantile
from spop.server.status import Status

INTERVAL = 5.0
LENGTH = 120


@dataclass(frozen=True, slots=True)
class Sample:
    """What happened in an interval.

    Attributes:
        time: its end, in seconds since the epoch.
        frames, errors: NOTIFY frames, and messages that failed or timed out, a second.
        p50, p99: bounds in seconds below which 50 % and 99 % of the handlers' calls stayed; None
            if there was no call.
    """

    time: float
    frames: float
    errors: float
    p50: float | None
    p99: float | None


class History:
    """Samples, the oldest first."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=LENGTH)
        self._last: Status | None = None

    def add(self, status: Status) -> None:
        """Take the service's next status."""
        last, self._last = self._last, status
        if last is not None and status.time > last.time:
            self._samples.append(_sample(last, status))

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(sample) for sample in self._samples]


def _sample(last: Status, status: Status) -> Sample:
    seconds = status.time - last.time
    calls = {bound: n - _calls(last).get(bound, 0) for bound, n in _calls(status).items()}
    return Sample(
        time=status.time,
        frames=_rate(last.counts.frames_received, status.counts.frames_received, seconds),
        errors=_rate(_errors(last), _errors(status), seconds),
        p50=quantile(calls, 0.5),
        p99=quantile(calls, 0.99),
    )


def _rate(before: int, now: int, seconds: float) -> float:
    return max(0, now - before) / seconds


def _errors(status: Status) -> int:
    return sum(handler.errors + handler.timeouts for handler in status.handlers)


def _calls(status: Status) -> dict[str, int]:
    """Bounds and the number of calls of all handlers below each."""
    calls: dict[str, int] = {}
    for handler in status.handlers:
        for bound, count in handler.buckets:
            calls[bound] = calls.get(bound, 0) + count
    return calls
