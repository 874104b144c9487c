"""Which message is being handled, for logs and for the functions that a handler calls.

A context variable has it. So `current` works inside of any handler, inline, blocking or
``async def``, and in the functions that it calls. `ContextFilter` puts it into log records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from spop.parameters import RUNNING, Running


def current() -> Running | None:
    """The message that is being handled: its name, stream_id, frame_id and connection.

    None outside of a handler.
    """
    running = RUNNING.get(None)
    if isinstance(running, tuple):
        return Running(*running)
    return None if running is None else running()


def set_running(running: Callable[[], Running | None] | tuple[str, int, int, Any]) -> None:
    """Servers set the message of this context, or a call that gives it."""
    RUNNING.set(running)


class ContextFilter(logging.Filter):
    """Gives each log record ``spop_message``, ``spop_stream_id``, ``spop_frame_id``,
    ``spop_peer`` and ``spop_engine_id``; None outside of a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        running = current()
        peer = running.connection if running else None
        record.spop_message = running.name if running else None
        record.spop_stream_id = running.stream_id if running else None
        record.spop_frame_id = running.frame_id if running else None
        record.spop_peer = peer.address if peer else None
        record.spop_engine_id = peer.engine_id if peer else None
        return True
