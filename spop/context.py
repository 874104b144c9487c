"""Which message a handler works on, for its logs and for whatever it calls.

`current` answers inside of any handler: inline, blocking or ``async def``, and in what these
call, as it is kept in a context variable. `ContextFilter` puts it into log records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar

from spop.dispatch import Running

_source: ContextVar[Callable[[], Running | None]] = ContextVar("spop_running")


def current() -> Running | None:
    """The message that is being handled: its name, stream_id, frame_id and connection.

    None outside of a handler.
    """
    source = _source.get(None)
    return None if source is None else source()


def set_source(source: Callable[[], Running | None]) -> None:
    """Servers say, once in each context, who knows what is being handled."""
    _source.set(source)


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
