"""Which message is being handled, for logs and for the functions that a handler calls.

A context variable has it. So `current` works inside of any handler, inline, blocking or
``async def``, and in the functions that it calls. `ContextFilter` puts it into log records.
`log_ids` adds ids that HAProxy sends, such as its unique-id.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from spop.logs import shortened
from spop.parameters import RUNNING, Running

if TYPE_CHECKING:
    from spop.agent import Agent
    from spop.frames import Message

__all__ = [
    "ContextFilter",
    "current",
    "log_ids",
]

_IDS: ContextVar[dict[str, str]] = ContextVar("spop_ids")


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


def forget_running() -> None:
    """No message, or more than one, is handled in this context from now on."""
    RUNNING.set(None)
    _IDS.set({})


def log_ids(agent: Agent, *names: str) -> None:
    """Have log records of an agent's handlers show these arguments of their message.

    Records of failed handlers have them, too. The argument ``traceparent`` (W3C Trace Context) is
    shown as ``trace_id`` and ``span_id``. By default it is this and ``unique-id``.
    """
    wanted = names or ("unique-id", "traceparent")

    @agent.wrap
    def with_ids(call: Callable[[], Any], message: Message) -> Any:
        with logged_ids(_ids_of(message, wanted)):
            return call()

    @agent.wrap
    async def with_ids_async(call: Callable[[], Any], message: Message) -> Any:
        with logged_ids(_ids_of(message, wanted)):
            return await call()


def _ids_of(message: Message, names: tuple[str, ...]) -> dict[str, str]:
    ids: dict[str, str] = {}
    arguments = dict(zip(message.names, message.values, strict=True))
    for name in names:
        value = arguments.get(name)
        parts = str(value).split("-")
        if name == "traceparent" and len(parts) >= 4:
            ids.update(trace_id=parts[1], span_id=parts[2])
        elif value is not None:
            ids[name.replace("-", "_")] = shortened(str(value))
    return ids


@contextlib.contextmanager
def logged_ids(ids: dict[str, str]) -> Iterator[None]:
    """Have log records show these ids, by name, beside those that they show already."""
    ids = {**_IDS.get({}), **ids}
    token = _IDS.set(ids)
    try:
        yield
    except BaseException as error:  # The server logs it outside of this context.
        with contextlib.suppress(BaseException):
            error.spop_ids = {**ids, **_ids_kept(error)}  # type: ignore[attr-defined]
        raise
    finally:
        _IDS.reset(token)


def _ids_kept(error: BaseException | None) -> dict[str, str]:
    with contextlib.suppress(BaseException):  # Its class may raise.
        return getattr(error, "spop_ids", {})
    return {}


class ContextFilter(logging.Filter):
    """Gives each log record ``spop_message``, ``spop_stream_id``, ``spop_frame_id``,
    ``spop_peer`` and ``spop_engine``; None outside of a handler. ``spop_ids`` has what
    `log_ids` asks for, by name."""

    def filter(self, record: logging.LogRecord) -> bool:
        running = current()
        peer = running.connection if running else None
        record.spop_message = running.name if running else None
        record.spop_stream_id = running.stream_id if running else None
        record.spop_frame_id = running.frame_id if running else None
        record.spop_peer = peer.address if peer else None
        record.spop_engine = peer.engine if peer else None
        error = record.exc_info[1] if record.exc_info else None
        record.spop_ids = _ids_kept(error) or _IDS.get({})
        return True
