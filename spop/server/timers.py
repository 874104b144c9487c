"""Calls that are scheduled for later, in one heap. Loops and the supervisor have one each.

The thread that schedules calls also runs them, with `run_due`.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Call = Callable[[], object]
Item = TypeVar("Item")

MIN_PURGED = 64
"""Number of calls below which cancelled ones may stay in the heap until they are due."""


class Timer:
    """A call that is scheduled for later and can be cancelled."""

    __slots__ = ("_timers", "call")

    def __init__(self, timers: Timers, call: Call) -> None:
        self._timers = timers
        self.call: Call | None = call

    def cancel(self) -> None:
        """Do not make the call. Nothing happens if it was made or cancelled before."""
        if self.call is not None:
            self.call = None
            self._timers.cancelled()


class Timers:
    """The calls of one thread.

    Args:
        run: runs a call that is due. What it raises, `run_due` raises, and can be called again.
    """

    def __init__(self, run: Callable[[Call], object] = lambda call: call()) -> None:
        self._run = run
        self._heap: list[tuple[float, int, Timer]] = []
        self._ids = itertools.count()
        self._cancelled = 0

    def __len__(self) -> int:
        """Number of calls in the heap, cancelled ones included."""
        return len(self._heap)

    def call_later(self, delay: float, call: Call) -> Timer:
        """Schedule `call` for a `run_due` after `delay` seconds."""
        timer = Timer(self, call)
        heapq.heappush(self._heap, (time.monotonic() + delay, next(self._ids), timer))
        return timer

    def wait(self) -> float | None:
        """Seconds until the next call is due; None without one."""
        heap = self._heap
        return max(0.0, heap[0][0] - time.monotonic()) if heap else None

    def run_due(self) -> float | None:
        """Run the calls that are due. Returns the seconds until the next; None without one.

        A call that one of them schedules waits for the next `run_due`.
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
        """Count a cancelled call. Purge the cancelled ones if they are over half of the heap."""
        self._cancelled += 1
        if self._cancelled > max(MIN_PURGED, len(self._heap)) // 2:
            # In place, as `run_due` may be at work on it.
            self._heap[:] = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0


class Deadlines(Generic[Item]):
    """Items, such as connections, with `seconds` to do something, ordered by their deadlines."""

    def __init__(self, timers: Timers, seconds: float, expired: Callable[[Item], object]) -> None:
        self._timers = timers
        self._seconds = seconds
        self._expired = expired
        self._ends: dict[Item, float] = {}
        self._timed = False

    def add(self, item: Item) -> None:
        """The time of an item begins now."""
        self._ends[item] = time.monotonic() + self._seconds
        self._order_call(self._seconds)

    def discard(self, item: Item) -> None:
        """The item has done it, or is closed."""
        self._ends.pop(item, None)

    def _order_call(self, delay: float) -> None:
        if not self._timed:
            self._timed = True
            self._timers.call_later(delay, self._end)

    def _end(self) -> None:
        self._timed = False
        now = time.monotonic()
        for item, end in list(self._ends.items()):
            if end > now:
                self._order_call(end - now)
                return
            del self._ends[item]
            self._expired(item)
