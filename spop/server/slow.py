"""A log of handlers that keep their loop for too long."""

from __future__ import annotations

import threading

from spop.logs import SafeLogger, fields

logger: SafeLogger = SafeLogger("spop.server")


class SlowLog:
    """Logs each message whose handler kept its loop for too long, once. Threads share it.

    Args:
        after: seconds that a handler may keep its loop; 0: no limit.

    Attributes:
        after: the same in nanoseconds.
    """

    def __init__(self, after: float) -> None:
        self.after: int = int(after * 1e9)
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def __call__(self, name: str, nanoseconds: int) -> None:
        """The handler of message `name` ran for that long without a pause."""
        with self._lock:
            if name in self._told:
                return
            self._told.add(name)
        logger.warning(
            "the handler of message %r ran for %.3g s without a pause, and all connections of its "
            "loop waited; blocking=True or asyncio.to_thread() prevents that",
            name,
            nanoseconds / 1e9,
            extra=fields("handler slow", message=name, duration=round(nanoseconds / 1e9, 3)),
        )
