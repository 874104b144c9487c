"""A child process ends when its parent has ended, whatever ended that and whatever the child does."""

from __future__ import annotations

import os
import signal
import threading
import time

_PR_SET_PDEATHSIG = 1
WATCH_INTERVAL = 0.5


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Get a signal when the process `parent` has ended, which has forked this one.

    Call this after a change of the user, which takes it back.
    """
    if not _ask_system(number):
        threading.Thread(
            target=_watch, args=[parent, number], name="spop-parent", daemon=True
        ).start()
    elif os.getppid() != parent:  # It had ended before.
        os.kill(os.getpid(), number)


def _ask_system(number: signal.Signals) -> bool:
    """Have the system send the signal: it does so even if no thread can run. Linux has this."""
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return False
    return bool(prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0) == 0)


def _watch(parent: int, number: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_INTERVAL)
    os.kill(os.getpid(), number)
