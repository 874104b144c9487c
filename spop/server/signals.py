"""Signals as something to wait for.

They arrive as bytes in a pipe, written by the interpreter's own handler: a handler in Python
may run inside of any lock that the main thread holds, and only once that thread wakes up.
"""

from __future__ import annotations

import os
import signal
from typing import Self


class Signals:
    """Some signals, in the main thread, inside of a ``with`` statement."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._handlers = {n: signal.signal(n, lambda *_: None) for n in self._numbers}
        return self

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
                return signal.Signals(number)

    def wake(self) -> None:
        """Have `wait` return. Any thread may call this."""
        os.write(self._write_end, b"\0")

    def received(self) -> list[signal.Signals]:
        """The signals that have come. To be called when `fileno` is readable."""
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
        self.close()
