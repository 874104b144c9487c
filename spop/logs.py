"""Log lines as text or JSON that nothing a peer sent can break or forge."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

_CONTEXT = ("spop_message", "spop_stream_id", "spop_frame_id", "spop_peer", "spop_engine_id")


def escaped(text: str) -> str:
    """The text with all that is not printable as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def text_of(value: object, show: Callable[[Any], str] = str) -> str:
    """`show(value)`, or, where that raises, what raised what."""
    try:
        return show(value)
    except BaseException as error:
        return f"<{type(value).__name__} that raises {type(error).__name__} when it is shown>"


def traceback_of(error: BaseException) -> str:
    """The traceback as Python prints it, or the place alone where the exception prevents that."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:
        place = "".join(traceback.format_tb(error.__traceback__))
        return f"{place}{type(error).__name__}: {text_of(error)}"


def escaped_traceback(error: BaseException) -> str:
    """A traceback of which each line is marked as one, so that none can pass for a log line."""
    return "\n".join(f"  | {escaped(line)}" for line in traceback_of(error).splitlines())


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that never raises, whatever filters, handlers and what is logged do."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(BaseException):
            super().log(level, msg, *args, **kwargs)

    def failure(self, error: BaseException, message: str, *args: object) -> None:
        """Log an error with its traceback, whose text may hold what a peer sent, and so is
        escaped."""
        with contextlib.suppress(BaseException):
            if not self.isEnabledFor(logging.ERROR):
                return
            record = self.logger.makeRecord(
                self.logger.name, logging.ERROR, __file__, 0, message, args,
                (type(error), error, error.__traceback__), "failure",
            )  # fmt: skip
            record.exc_text = escaped_traceback(error)
            self.logger.handle(record)


class RateLimitedLog:
    """Logs so many lines a second, and how many it left out; for those that a peer can cause at
    will. Threads share it."""

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


class TextFormatter(logging.Formatter):
    """A line of text for each record, and marked lines below it for a traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = escaped(super().formatMessage(record))
        message = getattr(record, "spop_message", None)
        if message is None:
            return line
        peer, stream = getattr(record, "spop_peer", None), getattr(record, "spop_stream_id", None)
        return f"{line} {{message={message!r} stream={stream} peer={peer!r}}}"

    def formatException(self, ei: Any) -> str:
        return escaped_traceback(ei[1])


class JSONFormatter(logging.Formatter):
    """A JSON object on a line for each record."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        for name in _CONTEXT:
            value = getattr(record, name, None)
            if value is not None:
                fields[name] = value
        if record.exc_info and record.exc_info[1]:
            fields["exception"] = traceback_of(record.exc_info[1])
        return json.dumps(fields, ensure_ascii=True, default=str)


FORMATTERS = {"text": TextFormatter, "json": JSONFormatter}


def configure(level: str, style: str, filters: Iterable[logging.Filter] = ()) -> None:
    """Log everything from `level` up to standard error.

    Args:
        style: a key of `FORMATTERS`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTERS[style]())
    for each in filters:
        handler.addFilter(each)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
