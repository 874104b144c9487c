"""Processes that a handler forks, in which nothing may go on as in their parent.

Such a child has the sockets of its parent, its poller and the jobs of its pool. What it sent
would be a second answer. So it ends where the handler comes back from its code to ours.
"""

from __future__ import annotations

import os
import threading
from typing import NoReturn

from spop.logs import SafeLogger

logger: SafeLogger = SafeLogger("spop.server")

FORKED: list[int] = []
"""Not empty in a process that a thread that serves has forked. A list is one object for all."""

_thread = threading.local()


def serve_in_this_thread(serves: bool = True) -> None:
    """From now on a process that this thread forks must not go on serving.

    False: of the servers of this thread one has ended.
    """
    _thread.servers = getattr(_thread, "servers", 0) + (1 if serves else -1)
    FORKED.clear()  # What began to serve only now, in a child, may.


def end_child() -> NoReturn:
    """End this process, as it is `FORKED`."""
    logger.error("a handler forked and came back in both processes: the child ends")
    os._exit(1)


def _forked() -> None:
    if getattr(_thread, "servers", 0):
        FORKED.append(os.getpid())


if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=_forked)
