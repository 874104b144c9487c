"""Signals that can be waited for.

The interpreter's own handler writes them to a pipe as bytes. A handler in Python would run only
once the main thread wakes up, and maybe while that thread holds a lock.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Any, Self

from spop.twins import twin

alarm: Any = twin("spop.server._alarm")

GRACE = 5.0
"""Seconds that a process has beyond the drain timeout before it is killed."""
START_GRACE = 1.0
"""Seconds that a process which still starts has to end: it has nothing in hand."""
_ENDS = (signal.SIGTERM, signal.SIGINT)
AGAIN = 1.0
"""Seconds within which a second signal is the same: ``timeout`` sends its own to a process and
to the group of that process."""


class Hurry:
    """Whether a stop has to hurry, as a second signal says that comes `AGAIN` after the first."""

    def __init__(self) -> None:
        self._first: float | None = None

    def signalled(self) -> bool:
        """A signal that ends the process has come. Returns whether to hurry."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first >= AGAIN


class Signals:
    """Some signals, in the main thread, inside of a ``with`` statement.

    Args:
        end_after: kill the process that many seconds after SIGTERM or SIGINT, unless it has left
            the ``with`` statement.
    """

    def __init__(self, *numbers: signal.Signals, end_after: float | None = None) -> None:
        self._numbers = numbers
        self._end_after = end_after
        self._hurry = Hurry()

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._handlers = {n: signal.signal(n, lambda *_: None) for n in self._numbers}
        if self._end_after is not None:
            self._order_on(self._end_after)
        return self

    def end_after(self, seconds: float) -> None:
        """Kill the process after another time from now on, and not for a signal that has come."""
        alarm.cancel()
        self._order_on(seconds)

    def _order_on(self, seconds: float) -> None:
        for number in set(self._numbers).intersection(_ENDS):
            signal.signal(number, lambda *_: None)
            alarm.order_on(number, seconds)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._read_end

    def wait(self) -> signal.Signals | None:
        """The next signal, or None after `wake`."""
        while True:
            number = os.read(self._read_end, 1)[0]
            if number == 0:
                return None
            if number in self._numbers:
                if number in _ENDS:
                    self._hurry.signalled()
                return signal.Signals(number)

    def wake(self) -> None:
        """Make `wait` return. Any thread may call this."""
        os.write(self._write_end, b"\0")

    def hurry(self, seconds: float) -> bool:
        """Wait for signals for some seconds. Returns whether one says that the stop has to hurry."""
        poll = select.poll()  # It takes no file descriptor.
        poll.register(self, select.POLLIN)
        return bool(poll.poll(1000 * seconds)) and any(
            number in _ENDS and self._hurry.signalled() for number in self.received()
        )

    def received(self) -> list[signal.Signals]:
        """The signals that have come. Call this when `fileno` is readable."""
        numbers = os.read(self._read_end, 1024)
        return [signal.Signals(number) for number in numbers if number in self._numbers]

    def close(self) -> None:
        """Close the pipe. A child process calls it, as a byte in the pipe is a signal."""
        os.close(self._read_end)
        os.close(self._write_end)

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        alarm.cancel()
        self.close()
