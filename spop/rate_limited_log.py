"""Log lines that a peer can cause at will, at a limited rate."""

from __future__ import annotations

import logging
import threading
import time

from spop.logs import SafeLogger


class RateLimitedLog:
    """Logs so many lines a second, and how many it left out. Threads share it."""

    def __init__(self, logger: logging.Logger | SafeLogger, per_second: int) -> None:
        self._logger = logger
        self._per_second = per_second
        self._lock = threading.Lock()
        self._second = 0
        self._used = 0
        self._left_out = 0

    def allows(self) -> int | None:
        """None: not now. Else how many were left out since the last one."""
        second = int(time.monotonic())
        with self._lock:
            if second != self._second:
                self._second, self._used = second, 0
            if self._used >= self._per_second:
                self._left_out += 1
                return None
            self._used += 1
            left_out, self._left_out = self._left_out, 0
            return left_out

    def warning(self, message: str, *args: object) -> None:
        """Log a warning, if there may be one."""
        left_out = self.allows()
        if left_out is None:
            return
        if left_out:
            message += f" (and {left_out} times more before)"
        self._logger.warning(message, *args)
