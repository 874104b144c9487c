"""Kills a process that does not end in time, in pure Python.

`_alarm.pyx` is the compiled twin. Here a thread of `faulthandler` shows where all threads are and
ends the process with status 1. That thread needs no GIL, but `order` does.
"""

from __future__ import annotations

import faulthandler
import signal
from types import FrameType

_ordered = False


def order(seconds: float) -> None:
    """Kill this process in `seconds`. An earlier order stays as it is."""
    global _ordered
    if not _ordered:
        _ordered = True
        faulthandler.dump_traceback_later(min(max(seconds, 1.0), 1e9), exit=True, file=2)


def order_on(number: int, seconds: float) -> None:
    """When a signal comes, call `order`, and then the handler that the signal has now.

    That handler must be a Python function. All signals have the same `seconds`.
    """
    handler = signal.getsignal(number)
    assert callable(handler)

    def signalled(number: int, frame: FrameType | None) -> None:
        order(seconds)
        handler(number, frame)

    signal.signal(number, signalled)


def cancel() -> None:
    """Take an order back."""
    global _ordered
    if _ordered:
        faulthandler.cancel_dump_traceback_later()
        _ordered = False
