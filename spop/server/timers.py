"""Calls that are ordered for later: one heap, for a loop and for the supervisor.

The thread that orders calls also runs them. It asks `run_due` how long it may wait.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable

Call = Callable[[], object]

MIN_PURGED = 64
"""Number of calls below which cancelled ones stay in the heap until they are due."""


class Timer:
    """A call that was ordered for later and can be cancelled."""

    __slots__ = ("_timers", "call")

    def __init__(self, timers: Timers, call: Call) -> None:
        self._timers = timers
        self.call: Call | None = call

    def cancel(self) -> None:
        """Do not call it. Nothing happens if it was called or cancelled before."""
        if self.call is not None:
            self.call = None
            self._timers.cancelled()


class Timers:
    """The calls of one thread.

    Args:
        run: runs a call that is due. Where it raises, `run_due` does, and can be called again.
    """

    def __init__(self, run: Callable[[Call], object] = lambda call: call()) -> None:
        self._run = run
        self._heap: list[tuple[float, int, Timer]] = []
        self._ids = itertools.count()
        self._cancelled = 0

    def __len__(self) -> int:
        """Number of calls in the heap, those included that were cancelled and not yet purged."""
        return len(self._heap)

    def call_later(self, delay: float, call: Call) -> Timer:
        """Have `run_due` run `call` once `delay` seconds have passed."""
        timer = Timer(self, call)
        heapq.heappush(self._heap, (time.monotonic() + delay, next(self._ids), timer))
        return timer

    def wait(self) -> float | None:
        """Seconds until the next call is due; None without one."""
        heap = self._heap
        return max(0.0, heap[0][0] - time.monotonic()) if heap else None

    def run_due(self) -> float | None:
        """Run the calls that are due. Returns the seconds until the next; None without one.

        A call that is ordered meanwhile waits for the next `run_due`.
        """
        heap = self._heap
        if not heap:
            return None
        now = time.monotonic()
        while heap and (heap[0][0] <= now or heap[0][2].call is None):
            timer = heapq.heappop(heap)[2]
            call, timer.call = timer.call, None
            if call is None:
                self._cancelled -= 1
            else:
                self._run(call)
        return max(0.0, heap[0][0] - now) if heap else None

    def cancelled(self) -> None:
        """Count a cancelled call. More than half of a heap of some size are purged at once."""
        self._cancelled += 1
        if self._cancelled > max(MIN_PURGED, len(self._heap)) // 2:
            # In place, as `run_due` may be at work on it.
            self._heap[:] = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0
