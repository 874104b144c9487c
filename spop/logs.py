"""Log lines as text, JSON or logfmt that nothing a peer sent can break or forge.

A record may have an event and fields beside its text, see `fields`. JSON and logfmt show these in
place of the text.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from spop.constants import MAX_TEXT_SIZE

REPORT_AFTER = 10.0
"""Seconds after which a line tells how many lines of its kind were left out."""
LONGEST_TRACEBACK = 200
"""Lines of a traceback that are logged, the last ones."""

_CONTEXT = {
    "message": "spop_message",
    "stream_id": "spop_stream_id",
    "frame_id": "spop_frame_id",
    "peer": "spop_peer",
    "engine": "spop_engine",
}
"""Names of fields, and the attributes of records that `spop.context.ContextFilter` sets."""


def fields(event: str, **values: object) -> dict[str, Any]:
    """The `extra` of a record: a short text that never varies, and values by name."""
    return {"spop_event": event, "spop_fields": values}


def level_number(name: str) -> int:
    """The number of a level, such as "info"."""
    return logging.getLevelNamesMapping()[name.upper()]


def escaped(text: str) -> str:
    """The text with all that is not printable as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str) -> str:
    """The text, or its beginning if it is longer than what may be logged of a peer's text."""
    return text if len(text) <= MAX_TEXT_SIZE else f"{text[: MAX_TEXT_SIZE - 3]}..."


def text_of(value: object, show: Callable[[Any], str] = str) -> str:
    """`show(value)`, or, where that raises, what raised what."""
    try:
        return str.__str__(show(value))  # Not of a subclass, whose methods may raise.
    except BaseException as error:
        return f"<{class_name(value)} that raises {class_name(error)} when it is shown>"


def class_name(value: object) -> str:
    """The name of its class, even if its metaclass raises."""
    return str.__str__(type.__dict__["__name__"].__get__(type(value)))


def trace_of(error: BaseException) -> TracebackType | None:
    """Its traceback, even if its class raises."""
    found: TracebackType | None = BaseException.__dict__["__traceback__"].__get__(error)
    return found


def traceback_of(error: BaseException) -> str:
    """The traceback as Python prints it, or the place alone where the exception prevents that.

    Lines are shortened, and so is the whole: they may hold what a peer sent.
    """
    try:
        # An exception that is raised again and again has ever more frames. Each has two lines.
        shown = "".join(traceback.format_exception(error, limit=-LONGEST_TRACEBACK))
    except BaseException:
        place = "".join(traceback.format_tb(trace_of(error), limit=-LONGEST_TRACEBACK))
        shown = f"{place}{class_name(error)}: {text_of(error)}"
    return "\n".join(map(shortened, shown.splitlines()[-LONGEST_TRACEBACK:]))


def escaped_traceback(error: BaseException) -> str:
    """A traceback of which each line is marked as one, so that none can pass for a log line."""
    return _marked(traceback_of(error))


def _marked(text: str) -> str:
    return "\n".join(f"  | {escaped(line)}" for line in text.splitlines())


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that never raises, whatever filters, handlers and what is logged do."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Keep the `extra` of a call, which Python 3.11 and 3.12 replace."""
        return msg, kwargs

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(BaseException):
            super().log(level, msg, *args, **kwargs)

    def failure(
        self,
        error: BaseException,
        message: str,
        *args: object,
        extra: dict[str, Any] | None = None,
        level: int = logging.ERROR,
    ) -> None:
        """Log an error with its traceback, whose text may hold what a peer sent, and so is
        escaped."""
        with contextlib.suppress(BaseException):
            if not self.isEnabledFor(level):
                return
            record = self.logger.makeRecord(
                self.logger.name, level, __file__, 0, message, args,
                (type(error), error, trace_of(error)), "failure", extra,
            )  # fmt: skip
            record.exc_text = escaped_traceback(error)
            self.logger.handle(record)

    def failure_elsewhere(
        self, trace: str, message: str, *args: object, extra: dict[str, Any]
    ) -> None:
        """Log an error of another process, whose traceback, if it has one, is a text."""
        with contextlib.suppress(BaseException):
            if not self.isEnabledFor(logging.ERROR):
                return
            record = self.logger.makeRecord(
                self.logger.name, logging.ERROR, __file__, 0, message, args, None, "failure",
                {**extra, "spop_traceback": trace},
            )  # fmt: skip
            record.exc_text = _marked(trace)
            self.logger.handle(record)


Line = tuple[str, tuple[object, ...], dict[str, Any] | None]
"""The message of a line, its arguments, and its `extra`."""


class RateLimitedLog:
    """Logs so many lines a second, for those that a peer can cause at will. Threads share it.

    If lines were left out, the last of them is logged after `REPORT_AFTER` seconds, with their
    number.
    """

    def __init__(self, logger: logging.Logger | SafeLogger, per_second: int) -> None:
        self._logger = logger
        self._per_second = per_second
        self._lock = threading.Lock()
        self._second = 0
        self._used = 0
        self._left_out = 0
        self._last: tuple[int, Callable[[], Line]] = logging.WARNING, lambda: ("", (), None)

    def allows(
        self, level: int, message: str, *args: object, extra: dict[str, Any] | None = None
    ) -> bool:
        """Whether the line may be logged now. If not, it is counted."""
        return self._allows(level, lambda: (message, args, extra))

    def _allows(self, level: int, make: Callable[[], Line]) -> bool:
        second = int(time.monotonic())
        with self._lock:
            if second != self._second:
                self._second, self._used = second, 0
            if self._used < self._per_second:
                self._used += 1
                return True
            self._left_out += 1
            self._last = level, make
            if self._left_out > 1:
                return False
        timer = threading.Timer(REPORT_AFTER, self._report)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # The system has no thread for it: the next line tries again.
            with self._lock:
                self._left_out = 0
        return False

    def log(
        self, level: int, message: str, *args: object, extra: dict[str, Any] | None = None
    ) -> None:
        """Log a line, if there may be one."""
        self.log_made(level, lambda: (message, args, extra))

    def log_made(self, level: int, make: Callable[[], Line]) -> None:
        """Log the line that `make` returns, if there may be one. It is called for no other."""
        if self._logger.isEnabledFor(level) and self._allows(level, make):
            message, args, extra = make()
            self._logger.log(level, message, *args, extra=extra)

    def warning(self, message: str, *args: object, extra: dict[str, Any] | None = None) -> None:
        """Log a warning, if there may be one."""
        self.log(logging.WARNING, message, *args, extra=extra)

    def _report(self) -> None:
        with self._lock:
            more, self._left_out = self._left_out - 1, 0
            level, make = self._last
        message, args, extra = make()
        if more:
            message += " ... and %d more in the last %g s"
            args = *args, more, REPORT_AFTER
            if extra is not None:
                extra = {**extra, "spop_fields": {**extra["spop_fields"], "left_out": more}}
        self._logger.log(level, message, *args, extra=extra)


class TextFormatter(logging.Formatter):
    """A line of text for each record, and marked lines below it for a traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = escaped(super().formatMessage(record))
        message, ids = getattr(record, "spop_message", None), getattr(record, "spop_ids", None)
        if message is None and not ids:
            return line
        shown = {
            "message": message,
            "stream": getattr(record, "spop_stream_id", None),
            "peer": getattr(record, "spop_peer", None),
            **(ids or {}),
        }
        return f"{line} {{{' '.join(f'{name}={value!r}' for name, value in shown.items())}}}"

    def formatException(self, ei: Any) -> str:
        return escaped_traceback(ei[1])


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """All that a record tells, by name. A record's own fields replace those of its context."""
    found: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
        "level": record.levelname.lower(),
        "logger": record.name,
        "process": record.process,
        "event": getattr(record, "spop_event", None) or record.getMessage(),
    }
    found.update({name: getattr(record, each, None) for name, each in _CONTEXT.items()})
    for more in ("spop_ids", "spop_fields"):
        found.update(getattr(record, more, None) or {})
    if record.exc_info and record.exc_info[1] is not None:
        found["exception"] = traceback_of(record.exc_info[1])
    elif trace := getattr(record, "spop_traceback", ""):
        found["exception"] = trace
    return {name: value for name, value in found.items() if value is not None}


class JSONFormatter(logging.Formatter):
    """A JSON object on a line for each record."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields_of(record), ensure_ascii=True, default=str)


class LogfmtFormatter(logging.Formatter):
    """A line of ``name=value`` for each record."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{name}={_quoted(value)}" for name, value in fields_of(record).items())


def _quoted(value: object) -> str:
    """A value of logfmt: in quotes if it is not a plain word."""
    text = str(value)
    plain = text and text.isascii() and text.isprintable() and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text)


FORMATTERS = {"text": TextFormatter, "json": JSONFormatter, "logfmt": LogfmtFormatter}


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
